"""One run's output folder: whose it is, whether it has ended, and nobody else's meanwhile."""

import getpass
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from fields import DataOptions, ModelOptions
from filelock import FileLock, Timeout
from resolved import data_values, model_values, training_values

from hf_sam import SAMConfig
from hf_sam.model_card import write_json

OPTIONS, RECORD = "options.json", "run.json"
HALF_WRITTEN = "options.*.tmp"  # by `write_json`, when it is killed
LENGTH = ("num_train_epochs", "max_steps")  # a run may be made longer
# What a run did before there was an option to ask for something else.
UNSET = {f.name: f.default for kind in (DataOptions, ModelOptions) for f in fields(kind)}
# Beginnings of the names of options that do not change what is trained.
ASIDE = ("output_dir", "resume", "push", "hub", "logging", "disable_tqdm", "report_to", "run_name")
ASIDE += ("save", "eval_strategy", "eval_steps", "dataloader", "restore")


def asked(data: DataOptions, model: ModelOptions, args: SAMConfig) -> dict[str, Any]:
    """Return all options that decide what is trained, as JSON has them."""
    values = data_values(data) | model_values(data, model) | training_values(args)
    chosen = {n: v for n, v in values.items() if v is not None and not n.startswith(ASIDE)}
    return json.loads(json.dumps(chosen | {"devices": args.world_size}, default=str))


class FolderInUseError(ValueError):
    """Another process is training in a folder."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make a folder and hold it for one process of this machine; one killed lets go as well.

    The process that holds it may claim it once more.

    Raises:
        FolderInUseError: If another process holds it.
        ValueError: If it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"`output_dir` must be a folder that can be written, got {str(folder)!r}: {error}."
        ) from error
    name = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"hf_sam-{getpass.getuser()}-{name}.lock"
    lock = FileLock(path, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FolderInUseError(
            f"another process is training in {str(folder)!r}: wait for it, or pass another "
            "`--output_dir`."
        ) from error
    try:
        yield
    finally:
        lock.release()


def note_options(folder: Path, options: Mapping[str, Any], *, resumed: bool) -> None:
    """Write down the options of the run in a folder.

    Raises:
        ValueError: If the run that is resumed has others.
    """
    if resumed:
        _require_same(folder, options, besides=LENGTH)
    write_json(folder / OPTIONS, options)


def has_ended(folder: Path, options: Mapping[str, Any]) -> bool:
    """Say whether the run of these options has ended in a folder.

    Raises:
        ValueError: If the folder holds a run with other options, or something else.
    """
    if not folder.is_dir() or not set(folder.iterdir()) - set(folder.glob(HALF_WRITTEN)):
        return False
    if not (folder / OPTIONS).exists():
        raise ValueError(
            f"{str(folder)!r} must be empty or hold a run of this plan, and holds something else: "
            "pass another `--output_dir`, or remove that folder."
        )
    _require_same(folder, options)
    return (folder / RECORD).exists()


def clear(folder: Path) -> None:
    """Remove what an interrupted run has left, and last of all the note whose it is."""
    for path in folder.glob("*"):
        if path.name != OPTIONS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / OPTIONS).unlink(missing_ok=True)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run that has ended."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _require_same(folder: Path, options: Mapping[str, Any], besides: tuple[str, ...] = ()) -> None:
    if not (folder / OPTIONS).exists():  # of a checkpoint that came from elsewhere
        return
    before = UNSET | json.loads((folder / OPTIONS).read_text())
    options = UNSET | options
    names = sorted((before.keys() | options.keys()) - set(besides))
    for name in names:
        if before.get(name) != options.get(name):
            raise ValueError(
                f"{str(folder)!r} holds a run with other options, `{name}` {before.get(name)} and "
                f"not {options.get(name)}: pass the options it was started with, or another "
                "`--output_dir`."
            )
