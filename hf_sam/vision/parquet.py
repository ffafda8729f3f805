"""Parquet files of a folder, found and loaded by split."""

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
from datasets import DatasetDict

from .folders import split_of
from .walk import Walk

SHARD = r"[-_.]\d+([-_.]of[-_.]\d+.*)?$"  # train-00000-of-00002


def parquet_files(root: Path, asked: Sequence[str] = ()) -> dict[str, list[Path]]:
    """Return a folder's parquet files by split."""
    found: dict[str, list[Path]] = {}
    for path in Walk(frozenset([".parquet"])).files(root):
        found.setdefault(_split_of_file(path.relative_to(root), asked), []).append(path)
    return found


def _split_of_file(path: Path, asked: Sequence[str]) -> str:
    """Return the split of a file: by the topmost folder with a split's name, else by its own name.

    A file's name counts without its number, or up to the first hyphen, as files on the Hub are
    named; a name that is no known split becomes a split of its own.
    """
    name = re.sub(SHARD, "", path.stem)
    known = (split_of(part, asked) for part in (*path.parts[:-1], name, path.stem.split("-")[0]))
    return next(filter(None, known), name)


def load_parquet(files: Mapping[str, Sequence[Path]]) -> DatasetDict:
    """Load parquet files split by split; together, all would get the features of the first."""
    return DatasetDict(
        {
            split: datasets.load_dataset(
                "parquet", data_files=[glob.escape(str(path)) for path in paths], split="train"
            )
            for split, paths in files.items()
        }
    )
