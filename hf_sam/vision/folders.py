"""Image folders (`<split>/<class>/<image>`) as data sets, without reading the images."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import PIL.Image
from datasets import ClassLabel, DatasetDict, Image
from transformers.utils import logging

from .walk import Walk, folders_in

logger = logging.get_logger(__name__)

# Names of folders and parquet files, in lower case, and the split that each stands for.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
ONLY_IDENTIFIED = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow opens, but cannot decode them
Table = dict[str, list[Path]]  # image files by class


def split_of(name: str, asked: Sequence[str] = ()) -> str | None:
    """Return the split that the name of a file or folder stands for, or None.

    Args:
        name: Compared as a whole, not by parts.
        asked: Names of splits that the user has given.
    """
    return name if name in asked else SPLIT_NAMES.get(name.lower())


def load_image_folder(root: Path, asked: Sequence[str] = ()) -> DatasetDict:
    """List an image folder; no image is read.

    Args:
        root: Holds `<split>/<class>/<image>`, or `<class>/<image>`, which becomes `train`. Images
            in subfolders of a class belong to it. A single folder around everything is skipped.
        asked: Names of splits, which are folders in `root` or paths below it. An image that is
            linked from several splits belongs to the first one only.

    Returns:
        The splits, with `image` and `label`; the classes of a split are those with images in it.

    Raises:
        ValueError: If there are no images, or no folders of classes.
    """
    root = _without_wrapper(root, asked)
    walk, nested = Walk(readable_suffixes()), dict[str, None]()
    parts = _split_folders(root, asked)
    tables = {split: _table_of(root, folders, walk, nested) for split, folders in parts.items()}
    remarks = [
        *_of_splits(root, parts, walk),
        *_of_classes(tables),
        *_of_nested(list(nested)),
        *_of_left_out(walk),
    ]
    if not any(files for table in tables.values() for files in table.values()):
        raise ValueError("; ".join(["no image in a class folder", *remarks]))
    for remark in remarks:
        logger.warning(f"{root}: {remark}")
    return DatasetDict({split: _rows(table) for split, table in tables.items()})


def readable_suffixes() -> frozenset[str]:
    """Return the suffixes of the files that Pillow can decode, plugins included."""
    kinds = PIL.Image.registered_extensions().items()
    readable = PIL.Image.OPEN.keys() - set(ONLY_IDENTIFIED)
    return frozenset(suffix for suffix, kind in kinds if kind in readable)


def has_images(root: Path) -> bool:
    """Whether there are images anywhere below a folder."""
    return any(Walk(readable_suffixes()).files(root))


def _holds_images(folder: Path) -> bool:
    """Whether there are images in a folder itself."""
    suffixes = readable_suffixes()
    return any(path.suffix.lower() in suffixes and path.is_file() for path in folder.iterdir())


def _without_wrapper(root: Path, asked: Sequence[str]) -> Path:
    """Return the folder that holds the splits or classes: `root`, or the only folder in it."""
    folders = folders_in(root)
    is_here = any("/" in name and (root / name).is_dir() for name in asked)
    if len(folders) != 1 or split_of(folders[0].name, asked) or is_here:
        return root
    return folders[0] if folders_in(folders[0]) else root


def _split_folders(root: Path, asked: Sequence[str]) -> dict[str, list[Path]]:
    """Return the folders of each split, those asked for first."""
    parts: dict[str, list[Path]] = {
        name: [root / name] for name in asked if (root / name).is_dir() and "/" in name
    }
    folders = folders_in(root)
    exact = [path.name for path in folders if path.name in asked]
    above = {folder for paths in parts.values() for path in paths for folder in path.parents}
    for path in folders:
        split = None if path in above else split_of(path.name, asked)
        if split and (path.name == split or split not in exact):
            parts.setdefault(split, []).append(path)
    if not parts or _is_class_called_so(parts, folders):
        return {"train": [root]}
    order = [*asked, *dict.fromkeys(SPLIT_NAMES.values())]
    return {split: parts[split] for split in dict.fromkeys(order) if split in parts}


def _is_class_called_so(parts: Mapping[str, list[Path]], folders: list[Path]) -> bool:
    """Whether a single folder named like a split is a class: it has images, as its siblings do."""
    named = [path for paths in parts.values() for path in paths]
    if len(named) != 1 or folders_in(named[0]) or not _holds_images(named[0]):
        return False
    return any(_holds_images(path) for path in folders if path not in named)


def _table_of(root: Path, folders: list[Path], walk: Walk, nested: dict[str, None]) -> Table:
    """Return the files of each class; a class without readable images has none."""
    table: Table = {}
    for folder in folders:
        table |= {path.name: table.get(path.name, []) for path in folders_in(folder)}
        for file in walk.files(folder):
            below = file.relative_to(folder).parts
            if len(below) == 1:
                walk.left_out["outside the class folders"] += 1
                continue
            table[below[0]].append(file)
            if len(below) > 2:
                nested[os.path.relpath(folder.joinpath(*below[:2]), root)] = None
    return table


def _of_splits(root: Path, parts: Mapping[str, list[Path]], walk: Walk) -> Iterator[str]:
    """Yield remarks on splits that join several folders, and on folders that are not used."""
    for split, paths in parts.items():
        if len(paths) > 1:
            yield f"the split {split} is {_listed([path.name for path in paths])} together"
    used = {path for paths in parts.values() for path in paths}
    if root in used:
        return
    inside = used.union(*(path.parents for path in used))
    rest = Walk(walk.suffixes)
    rest.found = set(walk.found)
    names = [path.name for path in folders_in(root) if path not in inside and any(rest.files(path))]
    if names:
        yield (
            f"folders that are no split are left out: {_listed(names)}; `--train_split` and "
            "`--eval_split` name any"
        )


def _of_classes(tables: Mapping[str, Table]) -> Iterator[str]:
    """Yield remarks on classes without images, and on folders that may not be meant as classes."""
    for split, table in tables.items():
        if empty := [name for name, files in table.items() if not files]:
            yield f"no image that can be read of these classes of {split}: {_listed(empty)}"
        if odd := [name for name, files in table.items() if files and name.startswith("__")]:
            yield f"taken as classes of {split}: {_listed(odd)}"


def _of_nested(nested: Sequence[str]) -> Iterator[str]:
    if nested:
        yield (
            f"folders within a class count as that class: {_listed(nested)}; if they are classes, "
            "name the folder above them, such as `--train_split train/images`"
        )


def _of_left_out(walk: Walk) -> Iterator[str]:
    if walk.left_out:
        counts = (f"{count} {reason}" for reason, count in sorted(walk.left_out.items()))
        yield f"files left out: {', '.join(counts)}"


def _listed(names: Sequence[str], most: int = 9) -> str:
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def _rows(table: Table) -> datasets.Dataset:
    """Return a table as a data set, ordered by the names of classes and files."""
    classes = sorted(name for name, files in table.items() if files)
    files = [(str(file), code) for code, name in enumerate(classes) for file in table[name]]
    columns = {"image": [file for file, _ in files], "label": [code for _, code in files]}
    features = datasets.Features(image=Image(), label=ClassLabel(names=classes))
    return datasets.Dataset.from_dict(columns, features=features)
