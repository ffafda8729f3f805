"""The recipe from the command line to a saved model that two libraries load."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import patience
import pytest
import torch
from huggingface_hub import ModelCard
from images import LABEL_NAMES, TINY, dataset, finetune_on, pictures, write_parquet
from PIL import Image
from places import ROOT
from transformers import AutoModelForImageClassification

from hf_sam import SAMTrainer
from hf_sam.finetuning import finetune
from hf_sam.finetuning.loading import load_splits, task_of
from hf_sam.finetuning.options import parse_options
from hf_sam.reporting.model_card import RunRecord
from hf_sam.vision import TASKS, ImageDataset, build_transforms, with_class_labels

RECIPE = ROOT / "recipes" / "finetune.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("label_type", ["ClassLabel", "string", "int64"])
@pytest.mark.parametrize("name", [name for name in TASKS if name != "digits"])
def test_each_data_set_of_the_paper_from_local_files(
    name: str, label_type: str, tmp_path: Path
) -> None:
    task = TASKS[name]
    splits = (*task.train_split.split("+"), task.eval_split)
    folder = write_parquet(
        tmp_path / "data",
        splits,
        image_column=task.image_column,
        label_column=task.label_column,
        label_type=label_type,
    )
    metrics = finetune_on(folder, tmp_path / "out", "--dataset", name, "--max_eval_samples", "6")
    assert 0 <= metrics["eval_top1_error"] <= 100
    assert metrics["eval_top5_error"] == 0  # three classes
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert f"report {task.paper.b7_sam:.2f} %" in (tmp_path / "out" / "README.md").read_text()
    names = {"int64": ["0", "10", "20"]}.get(label_type, LABEL_NAMES)
    assert config["label_names"] == names
    trained = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert trained["max_steps"] == 2


def test_the_record_has_the_batch_size_that_fitted_and_the_length_that_counted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SAMTrainer.training_step

    def fits_two(self: SAMTrainer, model: Any, inputs: dict[str, Any], *args: Any) -> Any:
        if len(inputs["labels"]) > 2:
            raise RuntimeError("CUDA out of memory.")
        return step(self, model, inputs, *args)

    monkeypatch.setattr(SAMTrainer, "training_step", fits_two)
    finetune_on(data, tmp_path, "--auto_find_batch_size")
    used = RunRecord.read(tmp_path / "run.json").hyperparameters
    assert used["per_device_train_batch_size"] <= 2
    assert used["max_steps"] == 2
    assert "num_train_epochs" not in used


def test_image_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for i, picture in enumerate(pictures(12)):
            folder = tmp_path / "data" / split / LABEL_NAMES[i % 3]
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{i}.png")
    finetune_on(tmp_path / "data", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["label_names"] == LABEL_NAMES


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_images_of_any_mode_become_rgb(mode: str) -> None:
    rows = dataset(3, mode=mode).add_column("index", range(3))
    shown = ImageDataset(rows, np.asarray, split="train")
    plain = ImageDataset(dataset(3).add_column("index", range(3)), np.asarray, split="train")
    image, original = shown[0]["pixel_values"].astype(float), plain[0]["pixel_values"].astype(float)
    assert image.shape == (28, 20, 3)
    assert abs(image.mean() - original.mean()) < 12  # neither clipped nor black


def test_labels_agree_by_name_and_columns_may_be_called_anything() -> None:
    """Two splits that list their classes in another order, in columns that look like ours."""
    first, second = ["cat", "dog", "hen"], ["hen", "cat", "dog"]
    splits = []
    for names in (first, second):
        rows = dataset(6, image_column="label", label_column="index")
        kinds = datasets.Features(rows.features | {"index": datasets.ClassLabel(names=names)})
        splits.append(rows.cast(kinds))
    found = with_class_labels(
        *splits, image_column="label", label_column="index", eval_split="test"
    )
    assert found.label_names == first
    assert list(found.train["label"]) == [0, 1, 2, 0, 1, 2]
    assert list(found.eval["label"]) == [2, 0, 1, 2, 0, 1]
    assert found.train.column_names == found.eval.column_names == ["image", "label", "index"]


def test_each_parquet_file_keeps_its_own_classes(tmp_path: Path) -> None:
    for split, names in (("train", ["a", "b", "c"]), ("test", ["c", "b", "a"])):
        dataset(3).cast_column("label", datasets.ClassLabel(names=names)).to_parquet(
            tmp_path / f"{split}.parquet"
        )
    data, _, _ = parse_options(["--data_dir", str(tmp_path)])
    splits = load_splits(data, task_of(data), seed=0)
    assert splits.label_names == ["a", "b", "c"]
    assert (list(splits.train["label"]), list(splits.eval["label"])) == ([0, 1, 2], [2, 1, 0])


def test_best_model_is_that_of_the_smallest_error(tmp_path: Path) -> None:
    options = ["--load_best_model_at_end", "--metric_for_best_model", "top1_error"]
    assert parse_options(options)[2].greater_is_better is False
    assert parse_options([*options[:2], "mean_class_accuracy"])[2].greater_is_better is True


def test_images_as_bytes(tmp_path: Path) -> None:
    rows = dataset().cast_column("image", datasets.Image(decode=False)).to_list()
    rows = [{"image": row["image"]["bytes"], "label": row["label"]} for row in rows]
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "data" / f"{split}.parquet")
    finetune_on(tmp_path / "data", tmp_path / "out")


def test_sharded_parquet_and_joined_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        dataset().to_parquet(tmp_path / "data" / f"{name}.parquet")
    data, _, _ = parse_options(["--data_dir", str(tmp_path / "data")])
    splits = load_splits(data, task_of(data), seed=0)
    assert (len(splits.train), len(splits.eval), splits.eval_split) == (24, 12, "validation")
    data.train_split = "train+validation"
    assert len(load_splits(data, task_of(data), seed=0).train) == 36


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    # 5e-2 is a string to YAML 1.1, and a number to the user
    config.write_text(
        "rho: 5e-2\nlearning_rate: 0.3\nadaptive: true\nmodel_kwargs: {drop_rate: 0.1}\n"
        "crop_scale: [0.3, 1]\ndataset: cifar10\n"
    )
    data, model, args = parse_options(["--config", str(config), "--learning_rate", "0.7"])
    assert (args.rho, args.learning_rate, args.adaptive) == (0.05, 0.7, True)
    assert (data.dataset, data.crop_scale) == ("cifar10", [0.3, 1])
    assert model.parsed_kwargs() == {"drop_rate": 0.1}
    assert (args.optim, args.optim_args) == ("sgd", "momentum=0.9")
    assert args.output_dir == "runs/cifar10-rho0.05"


@pytest.mark.parametrize(
    "average", ["", "--rho 0 --weight_average ema:0.5", "--weight_average swa:0.5"]
)
def test_resume_gives_the_same_model(average: str, data: Path, tmp_path: Path) -> None:
    steps = ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2"]
    steps += average.split()
    finetune_on(data, tmp_path / "straight", *steps)
    interrupted = tmp_path / "interrupted"

    class KilledError(Exception):
        pass

    from hf_sam import SAMTrainer

    original = SAMTrainer.training_step

    def dies_in_step_five(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            raise KilledError
        return original(self, *args, **kwargs)

    SAMTrainer.training_step = dies_in_step_five
    try:
        with pytest.raises(KilledError):
            finetune_on(data, interrupted, *steps)
    finally:
        SAMTrainer.training_step = original
    finetune_on(data, interrupted, *steps, "--resume_from_checkpoint", "last")
    first, second = (
        AutoModelForImageClassification.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "straight", interrupted)
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_augmentations_and_mixup_train(data: Path, tmp_path: Path) -> None:
    metrics = finetune_on(
        data, tmp_path / "out", "--mixup", "0.4", "--label_smoothing_factor", "0.1",
        "--auto_augment", "rand-m9-mstd0.5", "--gradient_accumulation_steps", "2",
    )  # fmt: skip
    assert math.isfinite(metrics["eval_loss"])
    trained = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert all(math.isfinite(entry["train_loss"]) for entry in trained if "train_loss" in entry)


def test_crops_depend_on_seed_epoch_and_index_only(data: Path, tmp_path: Path) -> None:
    def crops(*options: str, epoch: int = 0) -> torch.Tensor:
        argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path), *options]
        parsed = parse_options(argv)
        run = finetune.load(*parsed)
        dataset = finetune.build_trainer(parsed[0], parsed[2], run).train_dataset
        dataset.epoch.fill_(epoch)
        torch.manual_seed(len(options))  # must not matter
        return torch.stack([dataset[i]["pixel_values"] for i in range(4)])

    first = crops()
    assert torch.equal(first, crops("--rho", "0.3"))
    assert not torch.equal(first, crops(epoch=1))
    assert not torch.equal(first, crops("--seed", "7"))
    assert torch.equal(first, crops("--seed", "7", "--data_seed", "42"))


def test_padded_crops_show_most_of_the_image_at_any_size() -> None:
    """A white image of 32 pixels, enlarged: no more than the padding of two sides is black."""
    config = {"input_size": (3, 320, 320), "mean": (0, 0, 0), "std": (1, 1, 1)}
    config |= {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
    train, _ = build_transforms(config, crop_padding=40, horizontal_flip=0.0)
    torch.manual_seed(0)
    shown = [train(Image.new("RGB", (32, 32), "white")) for _ in range(20)]
    assert {image.shape for image in shown} == {(3, 320, 320)}
    shares = [float(image.mean()) for image in shown]
    assert min(shares) >= (280 / 320) ** 2
    assert len(set(shares)) > 10


def test_samples_are_drawn_at_random_and_repeat(data: Path) -> None:
    options, _, _ = parse_options(["--data_dir", str(data), "--max_train_samples", "6"])
    first, second, third = (
        list(load_splits(options, task_of(options), seed=seed).train["index"]) for seed in (0, 0, 1)
    )
    assert first == second != third
    assert first != sorted(first)


def test_card_says_what_was_done(data: Path, tmp_path: Path) -> None:
    token = "hf_" + "x" * 30
    metrics = finetune_on(data, tmp_path / "out", "--rho", "0.2", "--hub_token", token)
    text = (tmp_path / "out" / "README.md").read_text()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.tags[0] == "sharpness-aware-minimization"
    result = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert result["top1_error"] == pytest.approx(metrics["eval_top1_error"], abs=1e-3)
    for part in (
        "| `rho` | 0.2 |",
        "foret2021",
        "not Segment Anything",
        "transformers 5",
        "Limits",
    ):
        assert part in text
    for file in (tmp_path / "out").rglob("*"):
        assert not file.is_file() or token.encode() not in file.read_bytes(), file


def test_command_line_end_to_end(tmp_path: Path) -> None:
    """As a user types it, on the bundled digits."""
    command = [sys.executable, str(RECIPE), "--use_cpu", "--save_strategy", "steps"]
    command += ["--save_steps", "1", "--max_eval_samples", "40", "--model", "test_resnet"]
    command += ["--init_scratch", "--image_size", "32", "--output_dir", str(tmp_path / "out")]
    command += ["--max_steps", "4"]
    done = patience.run(command, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| top-1 error |" in done.stdout
    for noise in ("warn", "mtime", "pin_memory", "not passed", "Writing model", "Loading weights"):
        assert noise not in done.stdout + done.stderr, "nothing that a user cannot act on"
    assert "data: 1,437 images to train on, 40 of the split test to measure on" in done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"all_results.json", "README.md", "config.json", "model.safetensors"} <= names
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert {"eval_top1_error", "eval_top5_error", "eval_mean_class_accuracy"} <= results.keys()
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_top1_error" in entry for entry in log)


def test_bad_input_exits_with_status_one() -> None:
    command = [sys.executable, str(RECIPE), "--rho", "-1"]
    done = patience.run(command, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("finetune.py: `rho` must be >= 0")
    assert "Traceback" not in done.stderr
