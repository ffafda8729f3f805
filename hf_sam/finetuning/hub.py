"""Pushing a finished run to the Hub: one upload of its results at the end."""

import re
import shlex
import textwrap
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import logging

from ..reporting.model_card import HUB_TOKEN

logger = logging.get_logger("finetune")
# Listed by name, as the folder also holds training_args.bin (a pickle), logs and checkpoints.
PUBLISHED = (
    ("README.md", "config.json", "preprocessor_config.json", "model.safetensors")
    + ("model.safetensors.index.json", "model-*-of-*.safetensors")
    + ("run.json", "all_results.json", "comparison.json", "*.png")
)
OF_THE_HUB = ("push_to_hub", "hub_")  # prefixes of the options for pushing
IN_FOLDERS = "*/*"  # excluded, as * in the patterns above matches slashes too


class HubError(Exception):
    """A failure of the Hub or the network, shown as one message without a token."""


def require_token() -> None:
    """Raise a ValueError if nobody is logged in to the Hub."""
    if get_token() is None:
        raise ValueError(
            "`push_to_hub` needs a token of the Hub, and there is none: log in with `hf auth "
            "login`, or set HF_TOKEN."
        )


def create_repo(name: str | None, folder: Path, *, private: bool | None) -> str:
    """Create the repository unless it exists, and return its full name, with the owner.

    To be called before training, so that a missing permission is noticed before hours of it.

    Args:
        name: The repository, with or without its owner; None takes the folder's name.
        folder: The folder that will be pushed.
        private: Whether the repository is private; None for the Hub's default.

    Raises:
        HubError: If the repository cannot be written.
    """
    hub, name = HfApi(), name or folder.absolute().name
    try:
        repo_id = hub.create_repo(name, private=private, exist_ok=True).repo_id
        hub.auth_check(repo_id, write=True)  # one that exists may be someone else's
        found = hub.model_info(repo_id)
    except Exception as error:  # from the client, its HTTP library or the network
        by_hand = upload_command(name if "/" in name else f"owner/{name}", folder, private=private)
        raise HubError(
            f"`push_to_hub` cannot write {name!r} on the Hub ({_reason(error)}). Nothing was "
            "trained. Check `--hub_model_id` and the token (`hf auth login`, HF_TOKEN); without a "
            f"network leave `--push_to_hub` out, and push the finished folder later: `{by_hand}`."
        ) from error
    if private and not found.private:
        raise HubError(
            f"`hub_private_repo` must go with a private repository, and {repo_id} is public: make "
            "it private in its settings on the Hub, or pass another `--hub_model_id`."
        )
    if any(file.rfilename == "config.json" for file in found.siblings or ()):
        logger.warning(f"{repo_id} holds a model already: the push will replace its files")
    return repo_id


def push(folder: Path, repo_id: str) -> str:
    """Upload the results in a folder, and return their URL.

    Raises:
        HubError: If the upload failed; the folder is not changed.
    """
    try:
        HfApi().upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Model, card and results",
            allow_patterns=list(PUBLISHED),
            ignore_patterns=[IN_FOLDERS],
        )
    except (Exception, KeyboardInterrupt) as error:  # in any case, the results stay here
        raise HubError(
            f"the run has ended, and {str(folder)!r} holds all its results, but they could not be "
            f"pushed to {repo_id} ({_reason(error)}). Push them with "
            f"`{upload_command(repo_id, folder)}`."
        ) from error
    return f"{HfApi().endpoint}/{repo_id}"


def upload_command(repo_id: str, folder: Path, *, private: bool | None = None) -> str:
    """Return the command that creates the repository and uploads the same files by hand."""
    command = ["hf", "upload", repo_id, str(folder), "--exclude", IN_FOLDERS]
    command += [part for pattern in PUBLISHED for part in ("--include", pattern)]
    return shlex.join(command + ["--private"] * bool(private))


def _reason(error: BaseException) -> str:
    """Return an error as one line, without tokens."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, HfHubHTTPError):
        answer = error.response
        text = f"{answer.status_code} {answer.reason_phrase}: {error.server_message}"
    elif isinstance(error, RuntimeError) and error.__cause__ is not None:
        text = f"{error} {_reason(error.__cause__)}"  # the file, then the reason
    text = re.sub(r"(?<=Bearer )[^\s'\"]+", "***", HUB_TOKEN.sub("***", text))
    return textwrap.shorten(text, 300).rstrip(".: ")
