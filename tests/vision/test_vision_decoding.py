"""Pixels from files of every kind, and files that give none, which are named."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from folders import write
from images import TINY, dataset, finetune_on, message_of
from PIL import Image

from hf_sam.vision import BadImageError, ImageDataset
from hf_sam.vision.decoding import decode


def tiff(values: Any, kind: str) -> dict[str, Any]:
    """A file of these values, as datasets stores it."""
    with BytesIO() as file:
        Image.fromarray(np.asarray(values, kind)).save(file, "TIFF")
        return {"bytes": file.getvalue(), "path": "a/b.tif"}


def test_our_limit_of_pixels_stands_in_for_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which warns above its limit and fails above twice that: a larger one of ours allows both."""
    rows = dataset(1).add_column("index", range(1))  # 560 pixels
    for limit in (100, 400):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = ImageDataset(rows, np.asarray, split="train", max_pixels=560)[0]
            assert image["pixel_values"].shape == (28, 20, 3)
            with pytest.raises(BadImageError, match="at most 559 pixels, got 20x28"):
                ImageDataset(rows, np.asarray, split="train", max_pixels=559)[0]
        assert limit == Image.MAX_IMAGE_PIXELS


RANGES = [
    ([[0, 1000], [2000, 4000]], "int32", [[0, 64], [128, 255]]),
    ([[-4, -2], [0, 4]], "int32", [[0, 64], [128, 255]]),
    ([[0, 0.5], [0.25, 1]], "float32", [[0, 128], [64, 255]]),
    ([[-1e9, np.nan], [1e9, np.inf]], "float32", [[0, 0], [255, 255]]),
    ([[7, 7], [7, 7]], "int32", [[128, 128], [128, 128]]),
    ([[0, 256], [32768, 65535]], "uint16", [[0, 1], [128, 255]]),
]


@pytest.mark.parametrize(("values", "kind", "shown"), RANGES)
def test_values_of_more_than_8_bits_are_scaled(values: Any, kind: str, shown: Any) -> None:
    image = np.asarray(decode({"image": tiff(values, kind), "index": 0}, "train"))
    assert image[:, :, 0].tolist() == shown
    assert (image == image[:, :, :1]).all()


def test_values_that_are_none_are_refused() -> None:
    with BytesIO() as file:
        Image.fromarray(np.full((2, 2), np.nan, "float32")).save(file, "TIFF")
        encoded = {"bytes": file.getvalue(), "path": "a/b.tif"}
    with pytest.raises(
        BadImageError, match=r"image 3 of the train split \(a/b.tif\) cannot .*finite"
    ):
        decode({"image": encoded, "index": 3}, "train")


def broken_images(folder: Path, bad: int = 7) -> Path:
    """Parquet whose image number `bad` is no image."""
    folder.mkdir()
    for split in ("train", "test"):
        rows = dataset().cast_column("image", datasets.Image(decode=False)).to_list()
        if split == "train":
            rows[bad]["image"] = {"bytes": b"no image at all", "path": None}
        features = dataset().features.copy()
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def test_corrupt_image_is_named(tmp_path: Path) -> None:
    folder = broken_images(tmp_path / "data")
    argv = [*TINY, "--data_dir", str(folder), "--output_dir", str(tmp_path / "out")]
    said = message_of([*argv, "--max_steps", "10"])
    assert "image 7 of the train split cannot be decoded" in said
    assert "`--skip_bad_images`" in said


def test_a_corrupt_image_is_named_by_its_file_from_a_worker_too(tmp_path: Path) -> None:
    root = write(tmp_path / "data", ["{train,test}/{a,b,c}/{1,2}.png", "train/b/7.jpg:broken"])
    argv = [*TINY, "--data_dir", str(root), "--output_dir", str(tmp_path / "out")]
    argv += ["--dataloader_num_workers", "1", "--max_steps", "3"]
    said = message_of(argv)
    assert said.startswith(f"hf-sam finetune: image {root}/train/b/7.jpg cannot be decoded (")


def test_corrupt_images_can_be_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = broken_images(tmp_path / "data")
    metrics = finetune_on(folder, tmp_path / "out", "--skip_bad_images", "--max_steps", "10")
    assert metrics["eval_top1_error"] >= 0
    assert "1 of 12 images of the train split cannot be decoded and are left out: 7" in caplog.text
