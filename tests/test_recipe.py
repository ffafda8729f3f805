"""The recipe from the command line to a saved model that two libraries load."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import finetune
import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from images import LABEL_NAMES, TINY, dataset, finetune_on, pictures, write_parquet
from options import parse_options
from safetensors.torch import save_file
from tasks import TASKS
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_sam.vision import ImageDataset

RECIPE = Path(__file__).parent.parent / "recipes" / "finetune.py"


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
    names = {"int64": ["0", "10", "20"]}.get(label_type, LABEL_NAMES)
    assert config["label_names"] == names
    trained = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert trained["max_steps"] == 2


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
    shown = ImageDataset(rows, np.asarray, image_column="image", split="train")
    plain = ImageDataset(
        dataset(3).add_column("index", range(3)), np.asarray, image_column="image", split="train"
    )
    image, original = shown[0]["pixel_values"].astype(float), plain[0]["pixel_values"].astype(float)
    assert image.shape == (28, 20, 3)
    assert abs(image.mean() - original.mean()) < 12  # neither clipped nor black


def test_sharded_parquet_and_joined_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        dataset().to_parquet(tmp_path / "data" / f"{name}.parquet")
    data, _, _ = parse_options(["--data_dir", str(tmp_path / "data")])
    from loading import load_splits, task_of

    splits = load_splits(data, task_of(data), seed=0)
    assert (len(splits.train), len(splits.eval), splits.eval_split) == (24, 12, "validation")
    data.train_split = "train+validation"
    assert len(load_splits(data, task_of(data), seed=0).train) == 36


def logits(model: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = model.eval()(images)
    return out if isinstance(out, torch.Tensor) else out.logits


def backbone(path: Path) -> Path:
    """A weights file without its head, as backbones are published."""
    torch.manual_seed(3)
    state = timm.create_model("test_resnet").state_dict()
    save_file({n: t for n, t in state.items() if not n.startswith("fc.")}, path)
    return path


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--model", "test_vit"],
        ["--model", "test_efficientnet", "--model_kwargs", '{"drop_rate": 0.1}'],
        ["--model", "mobilenetv2_035", "--model_kwargs", '{"pad_type": "same", "bn_eps": 1e-3}'],
        ["--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25", "--no_channels_last"],
        ["--weights"],
    ],
    ids=str,
)
def test_saved_model_loads_in_both_libraries(
    options: list[str], data: Path, tmp_path: Path
) -> None:
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out"), *options]
    if options == ["--weights"]:
        argv[-1:] = ["--weights", str(backbone(tmp_path / "w.safetensors"))]
        argv.remove("--init_scratch")
    parsed = parse_options(argv)
    run = finetune.load(*parsed)
    trainer = finetune.build_trainer(parsed[0], parsed[2], run)
    trainer.train()
    trainer.save_model()
    out = tmp_path / "out"
    images = torch.randn(2, 3, 32, 32)
    trained = run.classifier.model.to(memory_format=torch.contiguous_format)
    expected = logits(trained, images)
    wrapped = AutoModelForImageClassification.from_pretrained(out)
    assert torch.equal(logits(wrapped, images), expected)
    assert wrapped.config.id2label == dict(enumerate(LABEL_NAMES))
    plain = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert torch.equal(logits(plain, images), expected)
    # both libraries prepare images as training did
    config = timm.data.resolve_data_config({}, pretrained_cfg=plain.pretrained_cfg)
    assert tuple(config["input_size"]) == (3, 32, 32)
    assert tuple(config["mean"]) == tuple(run.classifier.data_config["mean"])
    processor = AutoImageProcessor.from_pretrained(out)
    assert processor(pictures(1))["pixel_values"].shape == (1, 3, 32, 32)
    # and the folder is a start for another run, with another head
    argv[argv.index("--output_dir") + 1] = str(tmp_path / "again")
    again = [a for a in argv if a != "--init_scratch"]
    if "--weights" in again:
        del again[again.index("--weights") : again.index("--weights") + 2]
    reloaded = finetune.load(*parse_options([*again, "--model", str(out)])).classifier
    assert not reloaded.report.head_drawn_anew
    assert not reloaded.report.missing


def test_weights_are_reported(tmp_path: Path, data: Path) -> None:
    argv = [a for a in TINY if a != "--init_scratch"]
    argv += ["--weights", str(backbone(tmp_path / "w.safetensors")), "--data_dir", str(data)]
    report = finetune.load(*parse_options([*argv, "--output_dir", str(tmp_path)])).classifier.report
    assert report.missing == ("fc.weight", "fc.bias")
    assert (report.unexpected, report.head_drawn_anew) == ((), True)
    assert str(report) == (
        f"{report.loaded} tensors loaded, head drawn anew; 2 (fc.weight, fc.bias) missing, "
        "none unexpected"
    )


def small_vit(folder: Path, labels: int) -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, num_labels=labels,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    ViTImageProcessor(size=size, image_mean=[0.1, 0.2, 0.3]).save_pretrained(folder)
    return model


@pytest.mark.parametrize("labels", [3, 7])
def test_transformers_classifier(labels: int, data: Path, tmp_path: Path) -> None:
    """Its own head is kept where the number of classes agrees, and drawn anew where not."""
    start = small_vit(tmp_path / "vit", labels)
    argv = [a for a in TINY if a != "--init_scratch"]
    argv += ["--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    argv += ["--model", str(tmp_path / "vit")]
    classifier = finetune.load(*parse_options(argv)).classifier
    assert classifier.report.head_drawn_anew == (labels != 3)
    assert torch.equal(classifier.model.vit.embeddings.cls_token, start.vit.embeddings.cls_token)
    assert list(classifier.data_config["mean"]) == [0.1, 0.2, 0.3]
    finetune.main(argv)
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert saved.config.id2label == dict(enumerate(LABEL_NAMES))
    assert list(AutoImageProcessor.from_pretrained(tmp_path / "out").image_mean) == [0.1, 0.2, 0.3]


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


def test_resume_gives_the_same_model(data: Path, tmp_path: Path) -> None:
    steps = ["--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2"]
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


def test_frozen_batch_norm_keeps_its_statistics(data: Path, tmp_path: Path) -> None:
    options = ["--weights", str(backbone(tmp_path / "w.safetensors")), "--freeze_batch_norm"]
    argv = [a for a in TINY if a != "--init_scratch"]
    argv += ["--data_dir", str(data), "--output_dir", str(tmp_path / "out"), *options]
    finetune.main(argv)
    torch.manual_seed(3)
    before = timm.create_model("test_resnet").state_dict()
    after = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).state_dict()
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    affine = [name.replace("running_mean", "weight") for name in before if "running_mean" in name]
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert any(not torch.equal(before[name], after[name]) for name in affine)


def test_augmentations_and_mixup_train(data: Path, tmp_path: Path) -> None:
    metrics = finetune_on(
        data, tmp_path / "out", "--mixup", "0.4", "--label_smoothing_factor", "0.1",
        "--auto_augment", "rand-m9-mstd0.5", "--gradient_accumulation_steps", "2",
    )  # fmt: skip
    assert math.isfinite(metrics["eval_loss"])
    assert math.isfinite(metrics["train_loss"])


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


def test_samples_are_drawn_at_random_and_repeat(data: Path) -> None:
    from loading import load_splits, task_of

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
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", str(RECIPE)]
    command += ["--max_steps", "4", "--max_eval_samples", "40", "--model", "test_resnet"]
    command += ["--init_scratch", "--image_size", "32", "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| top-1 error |" in done.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"all_results.json", "README.md", "config.json", "model.safetensors"} <= names
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert {"eval_top1_error", "eval_top5_error", "eval_mean_class_accuracy"} <= results.keys()
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_top1_error" in entry for entry in log)


def test_bad_input_exits_with_status_one() -> None:
    command = [sys.executable, str(RECIPE), "--rho", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("finetune.py: `rho` must be >= 0")
    assert "Traceback" not in done.stderr
