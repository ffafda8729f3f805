"""Small image data sets on disk, and the recipe run on them."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_sam.finetuning import finetune

LABEL_NAMES = ["cat", "dog", "hen"]
TINY = [
    "--model",
    "test_resnet",
    "--init_scratch",
    "--image_size",
    "32",
    "--max_steps",
    "2",
    "--eval_strategy",
    "no",
    "--save_strategy",
    "no",
    "--per_device_train_batch_size",
    "4",
    "--use_cpu",
    "--disable_tqdm",
    "true",
]


def pictures(count: int, mode: str = "RGB", size: tuple[int, int] = (20, 28)) -> list[Image.Image]:
    """Noise, of a different seed each; `size` is (width, height)."""
    shape = (size[1], size[0], 3)
    noise = [np.random.default_rng(i).integers(0, 255, shape, dtype="uint8") for i in range(count)]
    if mode == "I;16":
        return [Image.fromarray(257 * pixels.mean(axis=2).astype("uint16")) for pixels in noise]
    return [Image.fromarray(pixels).convert(mode) for pixels in noise]


def dataset(
    count: int = 12,
    *,
    image_column: str = "image",
    label_column: str = "label",
    label_type: str = "ClassLabel",
    mode: str = "RGB",
) -> datasets.Dataset:
    """Images with labels 0, 1, 2, 0, ... as class labels, strings or integers."""
    codes = [i % len(LABEL_NAMES) for i in range(count)]
    kinds: dict[str, tuple[list[Any], Any]] = {
        "ClassLabel": (codes, datasets.ClassLabel(names=LABEL_NAMES)),
        "string": ([LABEL_NAMES[code] for code in codes], datasets.Value("string")),
        "int64": ([10 * code for code in codes], datasets.Value("int64")),
    }
    labels, feature = kinds[label_type]
    return datasets.Dataset.from_dict(
        {image_column: pictures(count, mode), label_column: labels, "file": ["x"] * count},
        features=datasets.Features(
            {
                image_column: datasets.Image(),
                label_column: feature,
                "file": datasets.Value("string"),
            }
        ),
    )


def write_parquet(folder: Path, splits: tuple[str, ...] = ("train", "test"), **kwargs: Any) -> Path:
    """Write one parquet file a split, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        dataset(**kwargs).to_parquet(folder / f"{split}.parquet")
    return folder


def finetune_on(data_dir: Path, output_dir: Path, *options: str) -> dict[str, float]:
    """Train a tiny network for two steps, unless the options say otherwise."""
    common = ["--data_dir", str(data_dir), "--output_dir", str(output_dir)]
    return finetune.main([*TINY, *common, *options])


def message_of(argv: list[str]) -> str:
    """What the recipe says when it stops at bad input; it must not be a status of success."""
    with pytest.raises(SystemExit) as stop:
        finetune.main(argv)
    assert isinstance(stop.value.code, str), "a message is what makes the exit status 1"
    assert "\n" not in stop.value.code, "one message"
    return stop.value.code
