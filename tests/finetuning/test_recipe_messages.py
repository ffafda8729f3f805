"""Bad input ends in one message that says what is wrong and what to do."""

import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from images import TINY, dataset, finetune_on, message_of, pictures, write_parquet
from safetensors.torch import save_file

import hf_sam.vision.data
from hf_sam import SAMConfig, SAMTrainer
from hf_sam.comparing import compare
from hf_sam.finetuning import finetune, loading
from hf_sam.finetuning.options import parse_options
from hf_sam.vision import TASKS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data"))


OPTIONS: list[tuple[str, str]] = [
    ("--dataset mnist", r"`dataset` must be one of digits, fgvc_aircraft, .*, got 'mnist'"),
    ("--dataset digits --data_dir x", "`data_dir` must not go with digits"),
    ("--dataset a/b --data_dir x", "got 'a/b': leave it out beside `data_dir`"),
    ("--dataset /some/where", "got the path '/some/where': pass `--data_dir /some/where`"),
    ("--dataset ./images", "must be a data set's name, got the path './images': pass `--data_dir"),
    ("--dataset ~/images", "got the path '~/images': pass `--data_dir ~/images`"),
    ("--dataset a/b/c", "got the path 'a/b/c': pass `--data_dir a/b/c`"),
    ("--dataset images/", "got the path 'images/'"),
    (r"--dataset C:\images", "got the path 'C:"),
    ("--data_dir no_such_folder", "`--data_dir` must be a folder, got 'no_such_folder'"),
    ("--rho -0.1", "`rho` must be >= 0, got -0.1"),
    ("--perturbation_norm 1", "`perturbation_norm` must be > 1, got 1.0"),
    ("--ascent_scope batch", "`ascent_scope` must be one of micro_batch, rank, global, got"),
    ("--rhoo 0.1", "unknown option --rhoo: did you mean --rho?"),
    ("--model resnet999", "model `resnet999` cannot be loaded.*`--model` takes a timm name"),
    ("--model owner/name", "model `owner/name` cannot be loaded.*Without a network use a local"),
    ("--model resnet18", "model `resnet18` cannot be loaded.*`--weights FILE` or `--init_scratch`"),
    ("--model timm/resnet18.a1_in1K", "got 'resnet18.a1_in1K': they are .*resnet18.a1_in1k"),
    ("--model mobilenetv2_035", "timm has no pretrained weights for `mobilenetv2_035`: pass"),
    ("--weights w.safetensors --init_scratch", "`--weights` and `--init_scratch` exclude"),
    ("--weights none.safetensors", "`--weights` must be a safetensors file, got 'none.safetens"),
    ("--model_kwargs {drop", "`model_kwargs` must be JSON, got '{drop'"),
    ("--model_kwargs [1]", "`model_kwargs` must be a JSON object"),
    ('--model_kwargs {"wings":2} --init_scratch --model resnet18', "timm cannot build `resnet18`"),
    ('--model_kwargs {"act_layer":"x"} --init_scratch --model resnet18', "build `resnet18` .* 'x'"),
    ('--model_kwargs {"in_chans":1}', "must take three channels .*, got 1"),
    ('--model_kwargs {"in_chans":"3"}', "must take three channels .*, got '3'"),
    ("--mean 0.5", r"`mean` must be three values \(red, green, blue\), got \[0.5\]"),
    (
        "--mean 123.7 116.3 103.5",
        r"`mean` must be in \[0, 1\], got \[123.7, 116.3, 103.5\]",
    ),
    ("--std 0.5 0.5 0", "`std` must be > 0"),
    ("--crop_scale 0.5 0.1", "`crop_scale` must be two shares"),
    ("--horizontal_flip 2", r"`horizontal_flip` must be in \[0, 1\], got 2.0"),
    ("--mixup nan", "`mixup` must be >= 0, got nan"),
    ("--mean nan 0 0", "`mean` must be three values"),
    (
        "--auto_augment junk --model test_vit --init_scratch",
        "`auto_augment` must be cifar10 or a policy",
    ),
    ("--dataloader_drop_last", "`dataloader_drop_last` would leave out evaluation images"),
    ("--prediction_loss_only", "`prediction_loss_only` would leave no errors to measure"),
    ("--mixup -1", "`mixup` must be >= 0, got -1.0"),
    ("--max_train_samples 0", "`max_train_samples` must be >= 1, got 0"),
    ("--image_size 0", "`image_size` must be >= 1, got 0"),
    ("--config none.yaml", "`--config` 'none.yaml' cannot be read as YAML"),
    (
        "--hub_strategy every_save",
        "`hub_strategy` must be end, got every_save: a run is",
    ),
    ("--hub_revision draft", "`hub_revision` must be None, got draft"),
    ("--hub_always_push", "`hub_always_push` must be False, got True"),
    ("--resume_from_checkpoint last", "needs a checkpoint in .*, and there is none"),
    ("--resume_from_checkpoint nowhere", "must be a checkpoint folder of the Trainer, or last"),
    ("--model test_vit --init_scratch --freeze_batch_norm", "needs a model with BatchNorm"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=[o for o, _ in OPTIONS])
def test_options(options: str, message: str, tmp_path: Path) -> None:
    said = message_of(["--output_dir", str(tmp_path / "out"), *options.split()])
    assert re.search(message, said), said


DATA: list[tuple[dict[str, Any], str, str]] = [
    ({"splits": ("train",)}, "", "split `test` is not in the data, which has: train"),
    ({}, "--train_split training", "split `training` is not in the data, which has: test, train"),
    ({}, "--image_column photo", "image column `photo` is not in the data, which has: image, lab"),
    (
        {},
        "--image_column label",
        "image column `label` must hold images, or the paths of some",
    ),
    ({}, "--label_column kind", "label column `kind` is not in the data.*`--label_column`"),
    ({}, "--dataset cifar100", "image column `img` is not in the data.*`--image_column`"),
    ({"splits": ("train", "test")}, "--dataset fgvc_aircraft", "split `validation` is not in the"),
    ({}, "--per_device_train_batch_size 64", "must be <= 12, the number of training examples, got"),
]


@pytest.mark.parametrize(("written", "options", "message"), DATA, ids=[d[1] or "-" for d in DATA])
def test_data(written: dict[str, Any], options: str, message: str, tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data", **written)
    argv = [*TINY, "--data_dir", str(folder), "--output_dir", str(tmp_path / "out")]
    said = message_of([*argv, *options.split()])
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--perturb bn", "`perturb` must be .* got 'bn': (did you mean|it has) "),
        ("--method msam --optim_args momentum=0", "msam must find a momentum, got none in SGD"),
        ("--method gsam --ascent_scope micro_batch --gradient_accumulation_steps 2", "be global"),
    ],
)
def test_what_only_the_model_shows(options: str, message: str, data: Path, tmp_path: Path) -> None:
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    said = message_of([*argv, *options.split()])
    assert re.search(message, said), said


def test_what_only_the_model_shows_when_resuming(data: Path, tmp_path: Path) -> None:
    words = ["--method", "looksam", "--save_strategy", "steps", "--save_steps", "1"]
    finetune_on(data, tmp_path / "out", *words)
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-1")
    (checkpoint / "sam_memory.safetensors").write_bytes(b"junk")
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "new"), *words]
    said = message_of([*argv, "--max_steps", "3", "--resume_from_checkpoint", str(checkpoint)])
    assert "must be a file of safetensors" in said


def test_an_error_in_mid_training_keeps_its_traceback(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(SAMTrainer, "training_step", fails)
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="a fault"):
        finetune.main(argv)
    with pytest.raises(RuntimeError, match="base-seed0: training failed"):
        compare.main([*argv, "--seeds", "1"])


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    said = message_of(["--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")])
    assert "`--data_dir` must hold parquet files (`train.parquet`) or an image folder" in said


@pytest.mark.parametrize("name", ["owner/name", "birds", "birds.parquet"])
def test_a_data_set_that_is_a_file_here(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert f"pass `--data_dir {name}`" in message_of(["--dataset", name])
    (tmp_path / "digits").mkdir()  # the name of a known data set stays that
    assert parse_options(["--dataset", "digits"])[0].dataset == "digits"


def test_label_that_training_does_not_have(tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "data", ("train",), label_type="string")
    other = dataset(label_type="string")
    other.map(lambda row: {"label": "fox"}).to_parquet(data / "test.parquet")
    said = message_of([*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")])
    assert "the evaluation labels must be classes of the training split, got fox" in said


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        (
            [0, 1, -1, None],
            datasets.ClassLabel(names=["a", "b"]),
            "training .*, got None: .* None stands for a missing or negative label",
        ),
        (["x", "x", "x", "x"], datasets.Value("string"), r"two classes or more, got \['x'\]"),
        ([[0], [1], [0], [1]], datasets.List(datasets.Value("int64")), "must hold one label an im"),
    ],
)
def test_unusable_labels(labels: list[Any], feature: Any, message: str, tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    rows = datasets.Dataset.from_dict({"image": pictures(4), "label": labels}, features=features)
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / "data" / f"{split}.parquet")
    data = ["--data_dir", str(tmp_path / "data")]
    said = message_of([*TINY, *data, "--output_dir", str(tmp_path / "out")])
    assert re.search(message, said), said


def test_unknown_option_in_a_config_file(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("learning_rat: 0.1\n")
    said = message_of(["--config", str(config)])
    assert "unknown option 'learning_rat'" in said
    assert "did you mean --learning_rate?" in said


def test_no_network_names_the_alternatives(tmp_path: Path) -> None:
    said = message_of(["--dataset", "oxford_pets", "--output_dir", str(tmp_path)])
    assert "data set `timm/oxford-iiit-pet` cannot be loaded from the Hub" in said
    assert "`--data_dir DIR`" in said
    assert "`--dataset digits`" in said


def test_hub_copy_of_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = datasets.DatasetDict(train=dataset(), test=dataset())
    monkeypatch.setattr(loading, "load_task", lambda task: splits)
    said = message_of([*TINY, "--dataset", "oxford_pets", "--output_dir", str(tmp_path / "o")])
    assert "train has 12 examples, not 3680" in said
    assert "pass `--data_dir`" in said


def test_weights_of_another_network(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    argv = ["--model", "resnet18", "--weights", str(tmp_path / "w.safetensors")]
    said = message_of([*argv, "--output_dir", str(tmp_path / "out")])
    assert "must fit the model, got conv1.weight of shape (3, 3) for (64, 3, 7, 7)" in said
    save_file({"other": torch.zeros(3)}, tmp_path / "w.safetensors")
    assert "must have tensors of the backbone, got none of" in message_of(argv)


def test_checkpoint_of_another_network(data: Path, tmp_path: Path) -> None:
    finetune_on(data, tmp_path / "out", "--save_strategy", "steps", "--save_steps", "1")
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    resume = ["--resume_from_checkpoint", "last"]
    resume += ["--max_steps", "4"]
    said = message_of([*argv, *resume, "--model", "test_efficientnet"])
    assert "must fit the model, got" in said
    assert "pass the `--model`, data and `--model_kwargs` that it was written with" in said


def test_nothing_written_is_lost(data: Path, tmp_path: Path) -> None:
    finetune_on(data, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    said = message_of([*argv, "--rho", "0.1"])
    assert "`output_dir` must not hold an earlier run" in said
    assert "`--resume_from_checkpoint last`" in said
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert after == before


def test_a_run_that_has_ended_is_not_evaluated_away(data: Path, tmp_path: Path) -> None:
    finetune_on(data, tmp_path / "out", "--save_strategy", "steps", "--save_steps", "1")
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    said = message_of([*argv, "--resume_from_checkpoint", "last"])
    assert "has ended, at step 2" in said


@pytest.mark.parametrize("name", ["README.md", "config.json"])
def test_a_folder_with_something_of_its_own_is_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    assert "must not hold an earlier run or a model" in message_of(["--output_dir", str(tmp_path)])


def test_half_written_checkpoints_are_passed_over(tmp_path: Path) -> None:
    from hf_sam.finetuning.checkpoints import find_checkpoint

    for step, state in ((2, '{"global_step": 2, "max_steps": 9, "num_train_epochs": 3}'), (4, "{")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
        for name in ("scheduler.pt", "optimizer.pt"):
            (tmp_path / f"checkpoint-{step}" / name).touch()
    (tmp_path / "checkpoint-6").mkdir()
    args = SAMConfig(output_dir=str(tmp_path), resume_from_checkpoint="last")
    assert find_checkpoint(args) == str(tmp_path / "checkpoint-2")


def test_every_option_has_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        finetune.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in TASKS)
    order = ["--config", "\nSAM:", "--rho RHO", "\nimages:", "--data_dir", "\nnetwork:", "--model "]
    order += ["\nbatches:", "--batch_size", "\ntraining", "--learning_rate"]
    places = [shown.index(name) for name in order]
    assert places == sorted(places)
    starts = re.findall(r"^  (--\w+)", shown, flags=re.MULTILINE)
    assert len(starts) == len(set(starts)) > 150
    from transformers import HfArgumentParser

    from hf_sam.finetuning.fields import DataOptions, ModelOptions

    parser = HfArgumentParser((DataOptions, ModelOptions, SAMConfig))
    assert all(a.help for a in parser._actions if not a.option_strings[0].startswith("--no"))


def test_wrong_types_are_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        finetune.main(["--rho", "much"])
    assert stop.value.code == 2
    assert "argument --rho: invalid float value: 'much'" in capsys.readouterr().err


def test_unreadable_hub_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("first\nsecond")

    monkeypatch.setattr(hf_sam.vision.data.datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match="ConnectionError: first. Without a network use"):
        hf_sam.vision.data.load_hub("a/b")
