"""Which images `hf-sam report` measures, and that they are those the classifier was trained for."""

import json
from pathlib import Path

import datasets
import pytest
from classifiers import save
from folders import write

from hf_sam.diagnostics import images
from hf_sam.diagnostics.images import fingerprint_of, known_task, load_images, sample
from hf_sam.diagnostics.trained import Trained, load_trained, training_seed
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
    ("recorded", "asked", "said"),
    [
        ({"eval_share": 0.1}, (0.1, None), None),
        ({}, (None, None), None),
        ({"eval_share": 0.2}, (0.1, None), "must be that of the training, 0.2, got 0.1"),
        ({}, (0.1, None), "has no `eval_share`"),
        ({"max_train_samples": 9}, (None, 9), None),
        ({"max_train_samples": 9}, (None, None), "must be that of the training, 9, got None"),
        ({"max_train_samples": 9}, (None, 8), "must be that of the training, 9, got 8"),
        ({"label_noise": 0.4}, (None, None), "had `label_noise` 0.4, which the report has not"),
        ({"holdout": 0.1}, (None, None), "had `holdout` 0.1, which the report has not"),
    ],
)
def test_images_are_those_of_the_training(
    recorded: dict[str, float], asked: tuple[float | None, int | None], said: str | None,
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = save(tmp_path / "model", seed=0)
    record = json.loads((folder / "run.json").read_text())
    record["data_options"] = recorded
    (folder / "run.json").write_text(json.dumps(record))
    trained = load_trained(str(folder), [str(i) for i in range(10)])
    if said and said.startswith("must"):
        with pytest.raises(ValueError, match=said):
            trained.require_images(*asked)
        return
    trained.require_images(*asked)
    assert said in caplog.text if said else not caplog.text


def test_a_sample_is_that_of_the_training_seed(tmp_path: Path) -> None:
    write(tmp_path, ["{train,test}/{a,b}/{1,2,3,4,5}.png"])
    data = parse_options(["--data_dir", str(tmp_path), "--max_train_samples", "4"])[0]
    expected = load_splits(data, task_of(data), seed=7)
    models = [Trained(None, {"seed": 7}), Trained(None, {"seed": 7})]
    rows = load_images(str(tmp_path), split="train").train
    found = sample(rows, 4, training_seed(models, 0))
    assert found["index"] == expected.train["index"] != sample(rows, 4, 0)["index"]
    assert training_seed([Trained(None, {})], 3) == 3
    with pytest.raises(ValueError, match="models of one seed.*got 7 and 8"):
        training_seed([*models, Trained(None, {"seed": 8})], 0)


def test_other_images_or_labels_have_another_fingerprint(tmp_path: Path) -> None:
    write(tmp_path, ["{train,test}/{a,b}/{1,2,3}.png"])
    rows = load_images(str(tmp_path), split="train").eval
    before = fingerprint_of(rows)
    assert before == fingerprint_of(rows) != fingerprint_of(rows.select(range(5)))
    swapped = rows.remove_columns("label").add_column("label", [1 - x for x in rows["label"]])
    assert fingerprint_of(swapped) != before
    (tmp_path / "test/a/1.png").write_bytes((tmp_path / "test/b/1.png").read_bytes())
    assert fingerprint_of(load_images(str(tmp_path), split="train").eval) != before
    (tmp_path / "test/a/1.png").unlink()  # decoding names it
    assert fingerprint_of(rows) != before


def test_both_splits_have_the_columns(tmp_path: Path) -> None:
    write(tmp_path, ["train.parquet", "test.parquet"])
    rows = datasets.Dataset.from_parquet(str(tmp_path / "test.parquet"))
    column = "label" if "label" in rows.column_names else "labels"
    rows.rename_column(column, "kind").to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="kind"):
        load_images(str(tmp_path), split="train")


def test_a_folder_may_have_the_name_of_a_known_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "food101", ["{train,test}/{a,b}/{1,2}.png"])
    monkeypatch.chdir(tmp_path)
    assert known_task("food101") is None and known_task("oxford_pets") is TASKS["oxford_pets"]
    assert load_images("food101", split="train").label_names == ["a", "b"]
