"""Folders and files as users have them: how many images and classes each gives, or what is said."""

import logging
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from folder_cases import CASES
from folders import write
from images import dataset

from hf_sam.diagnostics.images import load_images
from hf_sam.finetuning.loading import load_splits, task_of
from hf_sam.finetuning.options import parse_options
from hf_sam.vision import ImageDataset


def outcome(root: Path, options: str) -> tuple[list[tuple[int, int]], str]:
    """Images and classes of both parts, each image looked at, and the refusal if there is one."""
    try:
        data = parse_options(["--data_dir", str(root), *options.split()])[0]
        splits = load_splits(data, task_of(data), seed=0)
        if not (len(splits.train) and len(splits.eval)):
            return [], "both splits must have images"
    except ValueError as error:
        return [], str(error)
    counts, refusal = [], ""
    for rows, split in ((splits.train, "train"), (splits.eval, "test")):
        counts.append((len(rows), len(Counter(rows["label"]))))
        images = ImageDataset(rows, np.asarray, split=split, max_pixels=data.max_image_pixels)
        for i in range(len(images)):
            try:
                image = images[i]["pixel_values"]
            except ValueError as error:
                refusal = str(error)
                continue
            assert image.shape[2] == 3
            assert 90 < image.mean() < 165 and image.std() > 30, "neither black nor white nor flat"
    return counts, refusal


@pytest.mark.parametrize("name", CASES)
def test_folder(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = CASES[name]
    root = tmp_path / row.within
    root.mkdir(parents=True, exist_ok=True)
    write(root, row.lines)
    with caplog.at_level(logging.WARNING):
        counts, refusal = outcome(root, row.options)
    said = "\n".join([*caplog.messages, refusal])
    if row.said:
        assert re.search(row.said, said), said
    else:
        assert not said.strip(), "nothing to say"
    assert counts == ([] if row.train is None else [row.train, row.eval]), said


def test_parts_of_a_split_with_other_columns(tmp_path: Path) -> None:
    dataset().to_parquet(tmp_path / "train-00000-of-00002.parquet")
    dataset(label_column="kind").to_parquet(tmp_path / "train-00001-of-00002.parquet")
    counts, refusal = outcome(tmp_path, "")
    assert counts == []
    assert re.search("`--data_dir` must hold parquet files .*: DatasetGeneration", refusal), refusal


def test_a_name_that_is_no_text_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, ["{train,test}/{a,b}/{1,2}.png"])
    old = tmp_path / "train" / "a" / "1.png"
    try:
        os.rename(old, os.fsencode(old.parent) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    counts, refusal = outcome(tmp_path, "")
    assert (counts, refusal) == ([(3, 2), (4, 2)], "")
    assert "1 whose names are not in UTF-8" in caplog.text


def test_diagnostics_take_folders_of_any_name(tmp_path: Path) -> None:
    write(tmp_path, ["{fold1,fold2}/{a,b}/{1,2}.png"])
    splits = load_images(str(tmp_path), split="fold1", eval_split="fold2")
    assert (len(splits.train), len(splits.eval), splits.label_names) == (4, 4, ["a", "b"])
