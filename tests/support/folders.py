"""Folders of small files, written from a line each."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from images import dataset, pictures
from PIL import Image

WHITES = {"I": 65535, "F": 1.0, "I;16": 65535}


def expand(text: str) -> list[str]:
    """As a shell does: `{a,b}/1` is `a/1` and `b/1`."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", text)
    if found is None:
        return [text]
    head, tail = text[: found.start()], text[found.end() :]
    return [one for part in found[1].split(",") for one in expand(f"{head}{part}{tail}")]


def write(root: Path, lines: Sequence[str]) -> Path:
    """Write what the lines say, each image another one.

    `train/cat/1.png` is an image, `1.tif:I` one of that mode, `1.png:90x40` one of that size,
    `a -> b` a link from a to b, `1.heic` and whatever else Pillow does not read a file of text.
    """
    number = itertools.count()
    for line in itertools.chain.from_iterable(map(expand, lines)):
        name, _, target = line.partition(" -> ")
        name, _, how = name.partition(":")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(Path("../" * (len(Path(name).parts) - 1)) / target)
        elif name.endswith(".parquet"):
            dataset().to_parquet(path)
        elif name.endswith("/"):
            path.mkdir()
        elif Path(name).suffix.lower() in (".png", ".jpg", ".tif", ".gif", ".webp", ".bmp"):
            write_image(path, next(number), how)
        else:
            path.write_text(f"number {next(number)}")
    return root


def write_image(path: Path, number: int, how: str) -> None:
    """Write noise of that seed, of a mode, of a size, or bytes that are no image."""
    if how == "broken":
        path.write_bytes(f"no image {number}".encode())
    elif "x" in how:
        Image.new("1", tuple(map(int, how.split("x")))).save(path)
    elif how in WHITES:
        grey = np.asarray(pictures(number + 1)[-1].convert("L")) / 255
        kind = {"I": "int32", "F": "float32", "I;16": "uint16"}[how]
        Image.fromarray((grey * WHITES[how]).astype(kind)).save(path)
    else:
        pictures(number + 1)[-1].convert(how or "RGB").save(path)
