"""Checks of the command's options before anything is measured."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from ..reporting.sharpness_card import card_at
from .report import Plan

WRITTEN = ("report.json", "report.html")  # in the folder `--out`


def require_usable(
    names: Sequence[str], folders: Sequence[str], cards: Sequence[Path], out: Path, device: str
) -> None:
    """Raise a ValueError for what would otherwise fail after the measurements.

    Args:
        names: Names of the models in the report.
        folders: Folders of the models.
        cards: Model cards that get a section.
        out: Folder of the report; it need not exist.
        device: Device to compute on.

    Raises:
        ValueError: With the option that is invalid.
    """
    if len(names) != len(folders) or len(set(names)) != len(folders):
        raise ValueError(
            f"`--names` must be {len(folders)} different ones, got {' '.join(names)}: models are "
            "called by their folders unless you name them."
        )
    if unfit := [name for name in names if not re.fullmatch(r"[^\W_][\w .+=-]*", name)]:
        raise ValueError(
            f"`--names` must be of letters, digits, spaces and . _ + = -, got {unfit[0]!r}: pass "
            "`--names` with such names."
        )
    for card in cards:
        card_at(card)
    _require_writable(out)
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"`--device` must be one that torch can use here, got {device!r}: leave it out."
        ) from error


def _require_writable(out: Path) -> None:
    """Raise a ValueError if the report cannot be written to a folder; creates nothing."""
    nearest = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    folders = [nearest, *(path for path in [out / "portraits"] if os.path.lexists(path))]
    if wrong := [path for path in folders if not path.is_dir()]:
        raise ValueError(
            f"`--out` must be a folder, got {str(out)!r}, and {str(wrong[0])!r} is none: remove "
            "that, or pass another."
        )
    if not os.access(nearest, os.W_OK) or any((out / name).is_dir() for name in WRITTEN):
        raise ValueError(f"`--out` must be a folder to write to, got {str(out)!r}: pass another.")


def fitting_m(m: Sequence[int] | None, examples: int) -> tuple[int, ...]:
    """Return the `m` of m-sharpness: those asked for, or the default ones that fit.

    Raises:
        ValueError: If one that was asked for exceeds the number of images.
    """
    if m is None:
        usual = Plan().m
        fitting = tuple(n for n in usual if n <= examples)
        if fitting != usual:
            said = f"for m = {', '.join(map(str, fitting))}" if fitting else "left out"
            print(f"m-sharpness: {said}, as there are {examples} images", flush=True)
        return fitting
    if m and max(m) > examples:
        raise ValueError(
            f"`--m` must be from 1 to {examples}, the number of images, got {max(m)}: pass smaller "
            "ones, or more `--examples` where the split has them."
        )
    return tuple(m)
