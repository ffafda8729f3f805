"""What is typed wrong, or read by YAML as something else, is named with what may be meant."""

import json
from pathlib import Path

import pytest
from images import message_of

from hf_sam import SAMConfig
from hf_sam.finetuning import finetune
from hf_sam.finetuning.options import parse_options
from hf_sam.finetuning.suggestions import alike
from hf_sam.vision import TASKS

TYPED = [
    ("rhoo", "rho"),
    ("roh", "rho"),
    ("learning-rte", "learning_rate"),
    ("weight_dcay", "weight_decay"),
    ("lr", "learning_rate"),
    ("epochs", "num_train_epochs"),
    ("optimizer", "optim"),
    ("resume", "resume_from_checkpoint"),
    ("train_batch_size", "per_device_train_batch_size"),
    ("Cutout", "cutout"),
]
FAR = ["beta", "foo", "x", "sea", "gpus", "sharpness", "steps", "verbose", "pretrained", "seq"]


@pytest.mark.parametrize(("typed", "meant"), TYPED)
def test_the_option_that_is_meant(typed: str, meant: str) -> None:
    assert message_of([f"--{typed}", "1"]).endswith(f"--{typed}: did you mean --{meant}?")


@pytest.mark.parametrize("typed", FAR)
def test_nothing_absurd_is_suggested(typed: str) -> None:
    assert message_of([f"--{typed}=1"]) == f"hf-sam finetune: unknown option --{typed}: see --help."


DATASETS = {"oxford_pet": ["oxford_pets"], "CIFAR10": ["cifar10"], "mnist": [], "svhn": []}
DATASETS |= {"flowers": ["oxford_flowers"], "cifar": ["cifar10", "cifar100"]}


@pytest.mark.parametrize("typed", DATASETS)
def test_the_data_set_that_is_meant(typed: str) -> None:
    assert alike(typed, TASKS) == DATASETS[typed]
    meant = " or ".join(DATASETS[typed])
    end = f": did you mean {meant}?" if meant else "."
    assert message_of(["--dataset", typed]).endswith(f"got '{typed}'{end}")


def test_a_word_without_an_option_is_named() -> None:
    assert message_of(["--rho", "0.1", "digits"]).startswith(
        "hf-sam finetune: digits follows no op"
    )


FILES = [
    ("eval_strategy: no", '`eval_strategy` in .* must not be false.*quotes, as "no"'),
    ("save_strategy: off", "`save_strategy` in .* must not be false"),
    ("run_name: on", '`run_name` in .* must not be true.*quotes, as "on"'),
    ("rho: yes", "`rho` in .* must not be true"),
    ("mean: [0.5, 0.5, no]", "`mean` in .* must not be false"),
    ("crop_scale: [[0.5, 1]]", r"`crop_scale` in .* must be a list of values, got \[\[0.5, 1\]\]"),
    ("mean: [{a: 1}, 1, 1]", "`mean` in .* must be a list of values"),
    ("mean: [1, ~, 1]", "`mean` in .* must be a list of values"),
    ("std: []", r"`std` in .* must be a list of values, got \[\]"),
    ("rho: [0.1, 0.2]", r"`rho` in .* must be one value, got the list \[0.1, 0.2\]"),
    ("model: {name: resnet18}", "`model` in .* must be one value"),
    ("model_kwargs: {a: 2026-01-01}", "`model_kwargs` in .* must hold what JSON can"),
    ("model_kwargs: &a {b: *a}", "`model_kwargs` in .* must hold what JSON can"),
    ("run_name: 2026-13-45", "cannot be read as YAML .month must be in"),
    ("mean: " + "[" * 5000, "is nested too deeply: write `option: value` lines"),
    ("model_kwargs: " + "{a: " * 5000, "is nested too deeply: write `option: value` lines"),
]


@pytest.mark.parametrize(("text", "message"), FILES, ids=[text[:30] for text, _ in FILES])
def test_what_yaml_makes_of_a_value_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_options(["--config", str(tmp_path / "c.yaml")])


def test_values_that_mean_what_they_say(tmp_path: Path) -> None:
    lines = ['eval_strategy: "no"', "adaptive: on", "channels_last: no", "crop_scale: [0.5, 1]"]
    lines += ["resume_from_checkpoint: false", "lr_scheduler_kwargs: {num_cycles: 0.5}"]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    data, model, args = parse_options(["--config", str(tmp_path / "c.yaml")])
    assert (args.eval_strategy, args.adaptive, model.channels_last) == ("no", True, False)
    assert data.crop_scale == [0.5, 1]
    assert args.lr_scheduler_kwargs == {"num_cycles": 0.5}


@pytest.mark.parametrize("option", ["model_kwargs", "lr_scheduler_kwargs"])
def test_json_that_is_nested_too_deeply(option: str) -> None:
    said = message_of([f"--{option}", '{"a":' * 100_000])
    assert "must be JSON, got" in said or "is nested too deeply" in said
    assert len(said) < 500


def test_negations_say_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        finetune.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--no_channels_last, --no-channels-last Set --channels_last to false. " in shown
    assert "--no-replay-rng Set --replay_rng to false. " in shown
    assert "to false. (default" not in shown
    assert parse_options([])[1].channels_last
    assert not parse_options(["--no_channels_last"])[1].channels_last
    assert parse_options([])[2].replay_rng
    assert not parse_options(["--no-replay-rng"])[2].replay_rng


OF_NO_STEP = [
    ("--num_train_epochs 0", "`num_train_epochs` must be > 0 and finite, got 0"),
    ("--num_train_epochs -1", "`num_train_epochs` must be > 0 and finite, got -1"),
    ("--num_train_epochs nan", "`num_train_epochs` must be > 0 and finite, got nan"),
    ("--max_steps 0", "`max_steps` must be >= 1, got 0"),
    ("--max_steps -5", "`max_steps` must be >= 1, got -5"),
]


@pytest.mark.parametrize(("options", "message"), OF_NO_STEP, ids=[o for o, _ in OF_NO_STEP])
def test_a_run_of_no_step_is_refused(options: str, message: str, tmp_path: Path) -> None:
    assert message in message_of([*options.split(), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_steps_without_whole_epochs_are_some() -> None:
    assert isinstance(parse_options(["--num_train_epochs", "0.001"])[2], SAMConfig)
    assert parse_options(["--max_steps", "3", "--num_train_epochs", "0"])[2].max_steps == 3


@pytest.mark.parametrize("dataset", TASKS)
def test_each_option_is_printed_on_a_line_of_its_own(
    dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kwargs = json.dumps({"drop_rate": 0.1, "names": ["x, y"]})
    argv = ["--dataset", dataset, "--run_name", "a: b #c", "--model_kwargs", kwargs]
    finetune.main([*argv, "--print_config"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line and line[0] != "#"]
    assert all(line.split(":")[0].isidentifier() for line in lines)
    assert f"dataset: {dataset}" in lines
    assert "model_kwargs: {drop_rate: 0.1, names: ['x, y']}" in lines
