"""Which recipe a data set picks, and what --print_config shows."""

from pathlib import Path

import pytest
import yaml
from accelerate import PartialState
from images import message_of

from hf_sam import SAMConfig
from hf_sam.comparing import plan
from hf_sam.finetuning import arguments, finetune
from hf_sam.finetuning.folder import run_options
from hf_sam.finetuning.options import DEFAULTS, parse_options
from hf_sam.finetuning.resolved import training_values
from hf_sam.vision import TASKS


def picked(*argv: str) -> list[str]:
    """What is said of a recipe that was picked."""
    said: list[str] = []

    def listen(record: object) -> bool:
        said.append(record.getMessage())
        return True

    type(arguments.logger).warning_once.cache_clear()  # each is said once a process
    arguments.logger.addFilter(listen)
    try:
        parse_options(argv)
    finally:
        arguments.logger.removeFilter(listen)
    return said


@pytest.mark.parametrize("dataset", [name for name in TASKS if name != "digits"])
def test_a_data_set_alone_picks_its_recipe(dataset: str) -> None:
    said = picked("--dataset", dataset)
    assert len(said) == 1
    assert f"recipe: {Path('recipes', dataset, 'efficientnet_b0.yaml')};" in said[0]
    _, model, args = parse_options(["--dataset", dataset, "--learning_rate", "0.3"])
    assert model.freeze_batch_norm == (dataset == "imagenet")  # which keeps its head
    assert args.learning_rate == 0.3
    assert args.num_train_epochs != 15


@pytest.mark.parametrize(
    "options",
    ["", "--dataset digits", "--dataset owner/name", "--dataset ../recipes/cifar10"]
    + [
        f"--dataset oxford_pets {other}"
        for other in ("--model resnet18", "--weights w.safetensors", "--init_scratch")
    ],
)
def test_any_other_choice_picks_none(options: str) -> None:
    try:
        assert picked(*options.split()) == []
    except ValueError as error:
        assert "`dataset` must be" in str(error)  # noqa: PT017
        assert ".." in options  # noqa: PT017


def test_another_recipe_is_read_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("rho: 0.3\n")
    argv = ["--dataset", "oxford_pets", "--config", str(tmp_path / "c.yaml")]
    assert picked(*argv) == []
    _, model, args = parse_options(argv)
    assert (args.rho, args.num_train_epochs, model.freeze_batch_norm) == (0.3, 15, False)


@pytest.mark.parametrize("before", ["", "recipes/"])
def test_a_recipe_of_ours_is_found_from_any_folder(
    before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--config", f"{before}oxford_flowers/efficientnet_lite0.yaml"]
    shown = Path("recipes", "oxford_flowers", "efficientnet_lite0.yaml")
    assert picked(*argv) == [f"recipe: {shown}"]
    data, _, args = parse_options(argv)
    assert data.dataset == "oxford_flowers"
    own = tmp_path / argv[1]
    own.parent.mkdir(parents=True)
    own.write_text("rho: 0.3\n")
    assert picked(*argv) == []
    assert parse_options(argv)[2].rho == 0.3 != args.rho


def test_options_are_printed_and_nothing_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*args: object) -> None:
        raise AssertionError("loads or trains")

    for name in ("load", "build_trainer", "train"):
        monkeypatch.setattr(finetune, name, forbidden)
    monkeypatch.chdir(tmp_path)
    argv = ["--dataset", "fgvc_aircraft", "--m", "16", "--batch_size", "128", "--use_cpu"]
    assert finetune.main([*argv, "--print_config"]) == {}
    shown = capsys.readouterr().out
    assert shown.startswith("# 128 images a step: 16 in a micro-batch, 8 accumulated, devices: 1;")
    values = yaml.safe_load(shown)
    expected = {
        "dataset": "fgvc_aircraft",
        "train_split": "train+validation",
        "eval_split": "test",
        "label_column": "variant",
        "crop_scale": [0.08, 1.0],
        "model": "timm/efficientnet_b0.ra_in1k",
        "image_size": 224,
        "freeze_batch_norm": False,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 8,
        "rho": 0.05,
        "learning_rate": 0.02,
        "num_train_epochs": 100.0,
        "use_cpu": True,
    }
    assert {name: values.get(name) for name in expected} == expected
    assert not {"adam_beta1", "adaptive", "crop_padding", "weights"} & values.keys()
    assert list(tmp_path.iterdir()) == []


def test_what_is_printed_with_a_share_to_measure_on_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune.main(["--dataset", "digits", "--eval_share", "0.1", "--print_config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert parse_options(["--config", str(tmp_path / "printed.yaml")])[0].eval_share == 0.1


def test_collecting_the_options_leaves_the_processes_as_they_are(tmp_path: Path) -> None:
    """Arguments of the Trainer that are constructed set them up anew: of two, one is left."""
    data, model, args = parse_options(["--use_cpu", "--output_dir", str(tmp_path)])
    PartialState._shared_state["seen"] = True  # which setting up begins by emptying
    run_options(data, model, args)
    assert PartialState._shared_state.pop("seen")


def test_no_default_of_the_trainer_is_listed(tmp_path: Path) -> None:
    listed = training_values(SAMConfig(str(tmp_path)))
    assert listed.keys() == {*DEFAULTS, "rho", "output_dir", "gradient_accumulation_steps"}


def test_options_that_do_not_do_are_not_printed() -> None:
    assert "unknown option --rhoo" in message_of(["--rhoo", "1", "--print_config"])
    assert "`rho` must be >= 0" in message_of(["--rho", "-1", "--print_config"])
    with pytest.raises(ValueError, match=r"`print_config` is hf-sam finetune's: leave it out"):
        plan.parse_plan(["--print_config"])
