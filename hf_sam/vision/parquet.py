"""Parquet files by split."""

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
from datasets import DatasetDict

from .folders import split_of
from .walk import Walk

SHARD = r"[-_.]\d+([-_.]of[-_.]\d+)?$"  # train-00000-of-00002


def parquet_files(root: Path, asked: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Return a folder's parquet files by split.

    The split is the topmost folder that is named for one; or what the file is named for, without
    its number; or that name itself, which is then a split of its own.
    """
    found: dict[str, list[Path]] = {}
    for path in Walk(frozenset([".parquet"])).files(root):
        name = re.sub(SHARD, "", path.stem)
        folders = (split_of(part, asked) for part in path.relative_to(root).parts[:-1])
        split = next(filter(None, folders), None) or split_of(name, asked) or name
        found.setdefault(split, []).append(path)
    return found


def load_parquet(files: Mapping[str, Sequence[Path]]) -> DatasetDict:
    """Load parquet files by split, one by one: together, all would get the first one's features."""
    return DatasetDict(
        {
            split: datasets.load_dataset(
                "parquet", data_files=[glob.escape(str(path)) for path in paths], split="train"
            )
            for split, paths in files.items()
        }
    )
