"""Which images `hf-sam report` measures, and that they are those the classifier was trained for."""

import json
from pathlib import Path

import pytest
from classifiers import save
from folders import write

from hf_sam.diagnostics import images
from hf_sam.diagnostics.images import known_task, load_images, load_trained
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


def test_images_that_training_left_out_are_left_out(tmp_path: Path) -> None:
    write(
        tmp_path, ["{train,test}/{a,b}/{1,2,3}.png", "train/a/4.png:broken", "test/b/4.png:80x80"]
    )
    limits = ["--skip_bad_images", "--max_image_pixels", "6000"]
    data = parse_options(["--data_dir", str(tmp_path), *limits])[0]
    expected = load_splits(data, task_of(data), seed=3)
    found = load_images(str(tmp_path), split="train", skip_bad_images=True, max_pixels=6000)
    assert found.train["index"] == expected.train["index"] and len(found.train) == 6
    assert found.eval["index"] == expected.eval["index"] and len(found.eval) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "must have images to measure the error on, got train only: give `--eval_share`"),
        ({"eval_share": 1.5}, "`--eval_share` must be a share"),
        ({"eval_share": 0.5, "eval_split": "train"}, "exclude each other"),
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
    ("own", "given", "outcome"),
    [
        (["cat", "dog"], ["cat", "dog"], "same"),
        (["cat", "golden retriever"], ["Cat", "golden_retriever"], "same"),
        (["cat", "dog"], ["dog", "cat"], "refused"),
        (["cat", "dog"], ["cat", "hen"], "refused"),
        (["LABEL_0", "LABEL_1"], ["cat", "dog"], "same"),  # a classifier without names
        (["n01440764", "n01443537"], ["tench", "goldfish"], "told"),
    ],
)
def test_classes_are_those_of_the_data_in_their_order(
    own: list[str], given: list[str], outcome: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(save(tmp_path / "model", seed=0, names=own))
    if outcome == "refused":
        said = f"classifier of the data's classes in their order, got {', '.join(own)} for"
        with pytest.raises(ValueError, match=said):
            load_trained(folder, given)
        return
    assert load_trained(folder, given).classifier.report.head_drawn_anew is False
    assert ("they are taken in their order" in caplog.text) == (outcome == "told")


@pytest.mark.parametrize(
    ("recorded", "asked", "outcome"),
    [(0.1, 0.1, "same"), (None, None, "same"), (0.2, 0.1, "refused"), (None, 0.1, "told")],
)
def test_the_share_is_that_of_the_training(
    recorded: float | None, asked: float | None, outcome: str, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = save(tmp_path / "model", seed=0)
    record = json.loads((folder / "run.json").read_text())
    record["data_options"] = {} if recorded is None else {"eval_share": recorded}
    (folder / "run.json").write_text(json.dumps(record))
    trained = load_trained(str(folder), [str(i) for i in range(10)])
    if outcome == "refused":
        with pytest.raises(ValueError, match="must be that of the training, 0.2, got 0.1"):
            trained.require_share(asked)
        return
    trained.require_share(asked)
    assert ("has no `eval_share`" in caplog.text) == (outcome == "told")


def test_a_folder_may_have_the_name_of_a_known_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "food101", ["{train,test}/{a,b}/{1,2}.png"])
    monkeypatch.chdir(tmp_path)
    assert known_task("food101") is None and known_task("oxford_pets") is TASKS["oxford_pets"]
    assert load_images("food101", split="train").label_names == ["a", "b"]
