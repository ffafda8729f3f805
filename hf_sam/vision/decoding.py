"""Decoding of image files to RGB, with errors that name the image."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Image
from PIL.Image import Image as PILImage

MAX_IMAGE_PIXELS = 89_478_485  # where Pillow warns: a quarter of a gibibyte as RGB


class BadImageError(ValueError):
    """An image that cannot be decoded; the message names its file, or its split and row."""

    def __str__(self) -> str:
        """Return the message without the traceback that a worker process puts before it."""
        last = super().__str__().strip().splitlines()[-1]
        return last.removeprefix(f"{__name__}.{type(self).__name__}: ")


def decode(row: dict[str, Any], split: str, *, max_pixels: int = MAX_IMAGE_PIXELS) -> PILImage:
    """Decode one image to RGB, rotated by its EXIF orientation.

    Args:
        row: With `image`, as datasets stores it, and `index`.
        split: For the message.
        max_pixels: Largest number of pixels; a small file can decode to more than fits in memory.

    Raises:
        BadImageError: If it cannot be decoded, or is larger.
    """
    encoded = row["image"]
    try:
        content = encoded["bytes"]
        content = Path(encoded["path"]).read_bytes() if content is None else content
        with _without_pillows_limit():
            width, height = PIL.Image.open(BytesIO(content)).size  # reads the head only
            if width * height <= max_pixels:
                return _to_rgb(Image().decode_example({"bytes": content, "path": None}))
    except Exception as error:  # Pillow raises errors of many unrelated types on broken files
        raise BadImageError(
            f"image {name_of(row, split)} cannot be decoded ({first_line(error)}): remove it, or "
            "pass `--skip_bad_images`."
        ) from error
    raise BadImageError(
        f"image {name_of(row, split)} must have at most {max_pixels} pixels, got {width}x{height}: "
        "shrink or remove it, or pass a larger `--max_image_pixels`, or `--skip_bad_images`."
    )


def name_of(row: dict[str, Any], split: str = "") -> str:
    """Return how a user can find an image: its file, or its row with split and path."""
    encoded = row["image"] or {}  # which data sets may lack
    path = encoded.get("path")
    if path and encoded["bytes"] is None:
        return str(path)
    of_split = f" of the {split} split" if split else ""
    return f"{row['index']}{of_split}" + (f" ({path})" if path else "")


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Context manager that disables Pillow's own size limit, as `max_pixels` replaces it."""
    limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def _to_rgb(image: PILImage) -> PILImage:
    """Convert to RGB, scaling more than 8 bits down to 8, where Pillow would clip."""
    if image.mode.startswith("I;16"):
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = _by_its_range(np.asarray(image).astype(np.float64))
    return image.convert("RGB")


def _by_its_range(values: np.ndarray) -> PILImage:
    """Map the smallest value to black and the largest to white, as such files define no white.

    Args:
        values: (height, width). Values that are not finite become black; if all are equal, grey.

    Raises:
        ValueError: If no value is finite.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise ValueError("no pixel has a finite value")
    low, high = finite.min(), finite.max()
    shares = (
        np.nan_to_num((values - low) / (high - low)) if high > low else np.full_like(values, 0.5)
    )
    return PIL.Image.fromarray((255 * shares.clip(0, 1)).round().astype(np.uint8))
