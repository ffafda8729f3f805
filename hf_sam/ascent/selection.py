"""Selection of the perturbed parameters: all, norms only, the last blocks, or named modules."""

import difflib
import re
from collections.abc import Iterator
from contextlib import suppress

from torch import nn

from .blocks import last_blocks

# Matches class names, as timm and transformers have their own normalisation layers: BatchNormAct2d,
# RmsNorm, LlamaRMSNorm, T5LayerNorm. Excludes NormalizedLinear, NormedEmbedding, NormFreeBlock.
IS_NORM = re.compile(r"norm(?!al|ed|free)", re.IGNORECASE)


def perturbed_parameters(model: nn.Module, perturb: str) -> set[nn.Parameter] | None:
    """Return the parameters to perturb, as far as they are trainable; None for all.

    Args:
        model: Unwrapped; module names are those of its `named_modules`.
        perturb: `all`; `norm` for the normalisation layers only (SAM-ON, arXiv 2306.04226, which
            takes a rho about ten times larger); `last:0.33` for the last third of the blocks and
            what comes after; or names of modules, separated by commas.

    Raises:
        ValueError: If there is no such module, or nothing in it can be trained.
    """
    if perturb == "all":
        return None
    share = share_of_blocks(perturb)
    chosen = _of_modules(model, perturb) if share is None else last_blocks(model, share)
    if not any(param.requires_grad for param in chosen):
        raise ValueError(
            f"`perturb` must choose parameters that are trained, got {perturb!r}, which has none "
            "in this model: leave it out to perturb all."
        )
    return chosen


def share_of_blocks(perturb: str) -> float | None:
    """Return the share in `last:share`, or None if `perturb` is written otherwise.

    Raises:
        ValueError: If it is not a number above 0 and up to 1.
    """
    word, colon, written = perturb.partition(":")
    if word.strip() != "last" or not colon:
        return None
    with suppress(ValueError):
        if 0 < (share := float(written)) <= 1:
            return share
    raise ValueError(
        "`perturb=last:` must be followed by a share above 0 and at most 1, got "
        f"{perturb!r}: last:0.33 is the last third of the blocks."
    )


def _of_modules(model: nn.Module, perturb: str) -> set[nn.Parameter]:
    modules, recurse = _modules(model, perturb), perturb != "norm"
    return {param for module in modules for param in module.parameters(recurse=recurse)}


def _modules(model: nn.Module, perturb: str) -> Iterator[nn.Module]:
    modules = dict(model.named_modules(remove_duplicate=False))
    if perturb == "norm":
        yield from (m for m in modules.values() if IS_NORM.search(type(m).__name__))
        return
    for name in map(str.strip, perturb.split(",")):
        if not name or name not in modules:
            near = _near(name, [module for module in modules if module])
            outermost = ", ".join(child for child, _ in model.named_children()) or "no modules"
            raise ValueError(
                "`perturb` must be all, norm or last:share alone, or names of the model's modules, "
                f"got {name!r}: "
                + (f"did you mean {' or '.join(near)}?" if near else f"it has {outermost}.")
            )
        yield modules[name]


def _near(name: str, modules: list[str]) -> list[str]:
    """Return module names that resemble a name, or whose last part does."""
    last = {module.rpartition(".")[2]: module for module in reversed(modules)}
    of_parts = [last[part] for part in difflib.get_close_matches(name, last)]
    return difflib.get_close_matches(name, modules) or of_parts
