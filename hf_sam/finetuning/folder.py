"""A run's output folder: its lock, the options of its run, and whether that has finished."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import SAMConfig
from ..reporting.json_files import read_json, write_json
from ..reporting.model_card import RunRecord
from .fields import DataOptions, ModelOptions
from .image_errors import REMEDY
from .resolved import data_values, model_values, training_values

OPTIONS, RECORD = "options.json", "run.json"
LOCK = ".lock"  # in the folder itself, so that it is the same file for all paths and users
HALF_WRITTEN = "options.*.tmp"  # left by `write_json` when it is killed
LENGTH = ("num_train_epochs", "max_steps")  # may change, to train a run for longer
OF_THE_END = (*LENGTH, "skip_bad_images")  # may change where only the evaluation is left
# Values of options that did not exist when an older run was made.
UNSET = {f.name: f.default for kind in (DataOptions, ModelOptions) for f in fields(kind)}
# Prefixes of the options that do not change what is trained.
NOT_OF_A_RUN = (
    *("output_dir", "resume", "push", "hub", "logging", "disable_tqdm", "report_to", "run_name"),
    *("save", "eval_strategy", "eval_steps", "eval_accumulation", "per_device_eval", "dataloader"),
    *("restore", "log_"),
)


def run_options(data: DataOptions, model: ModelOptions, args: SAMConfig) -> dict[str, Any]:
    """Return all options that decide what is trained, as JSON types."""
    values = data_values(data) | model_values(data, model) | training_values(args)
    chosen = {n: v for n, v in values.items() if v is not None and not n.startswith(NOT_OF_A_RUN)}
    return json.loads(json.dumps(chosen | {"devices": args.world_size}, default=str))


class FolderInUseError(ValueError):
    """Another process is training in a folder."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Context manager that creates a folder and locks it for this process, even if that is killed.

    Folders that were created for a run which left nothing in them are removed on exit.

    Raises:
        FolderInUseError: If another process has locked it.
        ValueError: If it cannot be written.
    """
    made: list[Path] = []
    try:
        folder = folder.resolve()  # `a/../b` would create `a`
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        _remove_unused(made)
        raise ValueError(
            f"`output_dir` must be a folder that can be written, got {str(folder)!r}: {error}."
        ) from error
    with _locked(folder):
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)  # while locked, or it is another process's
            _remove_unused(made)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK, mode=0o666)  # minus the umask: a group may share a folder
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise FolderInUseError(
            f"another process is training in {str(folder)!r}: wait for it, or pass another "
            "`--output_dir`."
        ) from error
    except OSError as error:  # the file belongs to another user
        raise ValueError(
            f"{str(folder / LOCK)!r} cannot be locked ({error.strerror}): remove it if nobody is "
            "training there, or pass another `--output_dir`."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _remove_unused(made: Sequence[Path]) -> None:
    """Remove folders that were created, innermost first, unless they hold results."""
    with suppress(OSError):  # not empty, or never made
        if made and (left := set(made[0].iterdir())) <= _notes(made[0]):
            for note in left:
                note.unlink()
        for path in made:
            path.rmdir()


def _notes(folder: Path) -> set[Path]:
    """Return the files that a run writes to its folder before it trains."""
    return {folder / OPTIONS, folder / LOCK, *folder.glob(HALF_WRITTEN)}


def write_options(
    folder: Path, options: Mapping[str, Any], *, resumed: bool, has_trained: bool = False
) -> None:
    """Write the options of a run to its folder, and remove the record of what it was before.

    Args:
        folder: The output folder.
        options: As `run_options` returns them.
        resumed: Whether the run goes on from a checkpoint.
        has_trained: Whether nothing but its evaluation is left.

    Raises:
        ValueError: If the run is resumed and has other options.
    """
    if resumed:
        _require_same(folder, options, besides=OF_THE_END if has_trained else LENGTH)
    for half in folder.glob(HALF_WRITTEN):
        half.unlink()
    write_json(folder / OPTIONS, options)
    (folder / RECORD).unlink(missing_ok=True)


def has_ended(folder: Path, options: Mapping[str, Any]) -> bool:
    """Return whether a folder holds the finished run of these options.

    Raises:
        ValueError: If the folder holds a run with other options, other files, or a file that
            cannot be read.
    """
    notes = _notes(folder) - {folder / OPTIONS}
    if not folder.is_dir() or set(folder.iterdir()) <= notes:
        return False
    if not (folder / OPTIONS).exists():
        raise ValueError(
            f"{str(folder)!r} must be empty or hold a run of this plan, and holds something else: "
            "pass another `--output_dir`, or remove that folder."
        )
    for path in folder.iterdir():
        if path.is_symlink():
            raise ValueError(
                f"{str(path)!r} is a link, and a run's folder must hold none, as its files are "
                "overwritten or removed: replace the link by its target, or remove it."
            )
    _require_same(folder, options)
    if not (folder / RECORD).exists():
        return False
    record_of(folder)
    return True


def record_of(folder: Path) -> RunRecord:
    """Read the record of a finished run.

    Raises:
        ValueError: If it cannot be read, or a number is missing.
    """
    return read_json(folder / RECORD, RunRecord, remedy=REMEDY)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished run."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)  # another process may be removing it too


def _require_same(folder: Path, options: Mapping[str, Any], besides: tuple[str, ...] = ()) -> None:
    path = folder / OPTIONS
    if not path.exists():  # the checkpoint came from elsewhere
        return
    before = read_json(path, dict[str, Any], remedy=REMEDY)
    before, options = UNSET | before, {**UNSET, **options}
    names = (before.keys() | options.keys()) - set(besides)
    for name in sorted(names):
        is_aside = name.startswith(NOT_OF_A_RUN)  # written by an earlier version
        if before.get(name) != options.get(name) and not is_aside:
            raise ValueError(
                f"{str(folder)!r} holds a run with other options, `{name}` {before.get(name)!s:.80}"
                f" and not {options.get(name)}: pass the options it was started with, or another "
                "`--output_dir`."
            )
