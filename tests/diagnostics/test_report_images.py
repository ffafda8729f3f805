"""Which images `hf-sam report` measures, and that they are those the classifier was trained for."""

from pathlib import Path

import pytest
from classifiers import save
from folders import write

from hf_sam.diagnostics import images
from hf_sam.diagnostics.images import load_images, load_trained
from hf_sam.finetuning.loading import load_splits, task_of
from hf_sam.finetuning.options import parse_options
from hf_sam.vision import TASKS, Task


def test_a_share_is_that_which_training_left_out(tmp_path: Path) -> None:
    write(tmp_path, ["{a,b}/{1,2,3,4,5,6,7,8,9,10}.png"])
    data = parse_options(["--data_dir", str(tmp_path), "--eval_share", "0.2"])[0]
    expected = load_splits(data, task_of(data), seed=3)
    found = load_images(str(tmp_path), split="train", eval_share=0.2)
    assert found.eval["index"] == expected.eval["index"]
    assert found.train["index"] == expected.train["index"]
    assert not set(found.eval["index"]) & set(found.train["index"])
    assert found.eval_split == "train (split off)"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "must have images to measure the error on, got train only: give `--eval_share`"),
        ({"eval_share": 1.5}, "`--eval_share` must be a share"),
        ({"eval_share": 0.5, "eval_split": "train"}, "without `--eval_split`"),
    ],
)
def test_nothing_that_was_trained_on_is_called_unseen(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    write(tmp_path, ["{a,b}/{1,2}.png"])
    with pytest.raises(ValueError, match=message):
        load_images(str(tmp_path), split="train", **settings)
    splits = load_images(str(tmp_path), split="train", eval_split="train")  # if one insists
    assert len(splits.eval) == len(splits.train) == 4


def test_known_data_sets_go_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Task] = []

    def load(task: Task) -> None:
        asked.append(task)
        raise ValueError("no network")

    monkeypatch.setattr(images, "load_task", load)
    with pytest.raises(ValueError, match="no network"):
        load_images("oxford_pets", split="train")
    assert asked == [TASKS["oxford_pets"]]


@pytest.mark.parametrize(
    ("own", "given", "is_same"),
    [
        (["cat", "dog"], ["cat", "dog"], True),
        (["cat", "dog"], ["dog", "cat"], False),
        (["cat", "dog"], ["hen", "owl"], False),
        (["LABEL_0", "LABEL_1"], ["cat", "dog"], True),  # a classifier without names
        (["cat", "dog"], ["0", "1"], True),  # data without names
        (["0", "1"], ["10", "11"], False),
    ],
)
def test_classes_are_those_of_the_data_in_their_order(
    own: list[str], given: list[str], is_same: bool, tmp_path: Path
) -> None:
    folder = str(save(tmp_path / "model", seed=0, names=own))
    if is_same:
        assert load_trained(folder, given).classifier.report.head_drawn_anew is False
        return
    said = f"must be a classifier of the data's classes in their order, got {', '.join(own)} for"
    with pytest.raises(ValueError, match=said):
        load_trained(folder, given)
