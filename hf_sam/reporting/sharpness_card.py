"""The section "How sharp" of a model card: added, replaced and kept."""

import re
from pathlib import Path

from huggingface_hub import ModelCard
from yaml import YAMLError

BEGIN, END = "<!-- how sharp -->", "<!-- end of how sharp -->"
SECTION = f"{BEGIN}(.*?){END}"


def card_at(path: Path) -> ModelCard:
    """Load a model card from a file.

    Raises:
        ValueError: If there is none, or its metadata are invalid.
    """
    if not path.is_file():
        raise ValueError(
            f"`--card` needs a model card to add to, got none at {str(path)!r}: hf-sam finetune "
            "writes one."
        )
    try:
        return ModelCard.load(path)
    except (OSError, ValueError, TypeError, YAMLError) as error:
        fault = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"`--card` needs a model card with its metadata in YAML, got {str(path)!r} ({fault}): "
            "mend or remove what stands between the first two lines of ---."
        ) from error


def add_sharpness_to_card(path: Path, section: str) -> None:
    """Add the section "How sharp" to a model card file, replacing an older one.

    Args:
        path: The card.
        section: Markdown from a second-level heading on, as `hf_sam.diagnostics` writes it.

    Raises:
        ValueError: If there is no card at `path`.
    """
    card = card_at(path)
    text = re.sub(rf"\n*{SECTION}\n*", "\n\n", card.text, flags=re.DOTALL).rstrip()
    card.text = f"{text}\n\n{BEGIN}\n\n{section.strip()}\n\n{END}\n"
    card.save(path)


def sharpness_in_card(path: Path) -> str | None:
    """Return the section "How sharp" of a model card file; None without one."""
    if not path.is_file():
        return None
    found = re.search(SECTION, path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return found and found[1]
