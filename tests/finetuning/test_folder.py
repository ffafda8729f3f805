"""An output folder belongs to one run and one process, and its record is whole."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from images import TINY, finetune_on, message_of, write_parquet
from places import CARDS
from transformers import TrainerControl, TrainerState

from hf_sam.comparing.cards import write_comparison_card
from hf_sam.comparing.comparison import Comparison, Result
from hf_sam.finetuning import finetune
from hf_sam.finetuning.folder import claimed, has_ended, run_options
from hf_sam.finetuning.options import parse_options
from hf_sam.finetuning.stopwatch import Stopwatch
from hf_sam.reporting.model_card import RunRecord, write_json
from hf_sam.reporting.sharpness_card import add_sharpness_to_card


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data"))


def words(data: Path, folder: Path, *more: str) -> list[str]:
    return [*TINY, "--data_dir", str(data), "--output_dir", str(folder), *more]


def test_a_second_process_is_refused_until_the_first_is_gone(data: Path, tmp_path: Path) -> None:
    code = "from hf_sam.finetuning.folder import claimed; from pathlib import Path\n"
    code += f"with claimed(Path({str(tmp_path / 'out')!r})): print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    said = message_of(words(data, tmp_path / "out"))
    assert "another process is training in" in said
    other.send_signal(signal.SIGKILL)
    other.wait()
    with claimed(tmp_path / "out"):
        pass


@pytest.mark.parametrize("where", ["", "/below"], ids=["a file", "below a file"])
def test_a_folder_that_cannot_be_written(where: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    said = message_of(words(data, Path(f"{tmp_path}/file{where}")))
    assert "`output_dir` must be a folder" in said


def test_going_on_with_other_options_is_refused(data: Path, tmp_path: Path) -> None:
    saving = ["--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2"]
    finetune.main(words(data, tmp_path, *saving))
    resumed = [*saving, "--resume_from_checkpoint", str(tmp_path / "checkpoint-2")]
    (tmp_path / "run.json").unlink()
    said = message_of(words(data, tmp_path, *resumed, "--rho", "0.3"))
    assert "holds a run with other options, `rho` 0.05 and not 0.3" in said
    finetune.main(words(data, tmp_path, *resumed, "--max_steps", "6", "--logging_steps", "1"))
    assert "resume" not in RunRecord.read(tmp_path / "run.json").command


def test_a_record_from_before_an_option_goes_on(tmp_path: Path) -> None:
    """It has done what the option's default does, and no other value."""
    made = run_options(*parse_options([*TINY, "--output_dir", str(tmp_path)]))
    older = {name: value for name, value in made.items() if name not in ("label_noise", "squash")}
    assert older != made
    write_json(tmp_path / "options.json", older)
    recorded = CARDS / "cub200_first50-sgd.json"
    Comparison.read(recorded).record.write(tmp_path / "run.json")
    assert has_ended(tmp_path, made)
    for name, value in (("label_noise", 0.1), ("squash", True), ("mixup", None), ("rho", None)):
        with pytest.raises(ValueError, match=f"holds a run with other options, `{name}`"):
            has_ended(tmp_path, made | {name: value})


def test_a_diverged_run_says_so(data: Path, tmp_path: Path) -> None:
    metrics = finetune_on(data, tmp_path, "--learning_rate", "1e30", "--max_grad_norm", "0")
    assert metrics["eval_top1_error"] == 100
    text = (tmp_path / "run.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["metrics"]["eval_loss"] is None
    assert "Training has diverged" in (tmp_path / "README.md").read_text()


def test_the_best_checkpoint_is_no_estimate(data: Path, tmp_path: Path) -> None:
    best = ["--load_best_model_at_end", "--metric_for_best_model", "top1_error"]
    best += ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps"]
    finetune_on(data, tmp_path, *best, "--save_steps", "1", "--max_eval_samples", "6")
    card = (tmp_path / "README.md").read_text()
    assert "is no estimate for new images" in " ".join(card.split())
    assert "On a random 6 images" in card


def test_no_absolute_path_in_the_record(data: Path, tmp_path: Path) -> None:
    finetune_on(data, tmp_path)
    command = RunRecord.read(tmp_path / "run.json").command
    assert str(data) not in command
    assert f"--data_dir {data.name}" in command
    assert "output_dir" not in command


RIVALS = [
    ("max_steps: 7", "--num_train_epochs 3", lambda data, args: args.max_steps == -1),
    ("crop_padding: 4", "--crop_scale 0.5 1", lambda data, args: data.crop_padding is None),
    (
        "batch_size: 256",
        "--gradient_accumulation_steps 2",
        lambda data, args: args.gradient_accumulation_steps == 2,
    ),
    ("max_steps: 7", "--learning_rate 3", lambda data, args: args.max_steps == 7),
    ("max_steps: 7", "--run_name num_train_epochs", lambda data, args: args.max_steps == 7),
]


@pytest.mark.parametrize(("line", "typed", "holds"), RIVALS, ids=[r[0] + r[1] for r in RIVALS])
def test_what_is_typed_displaces_its_rival_in_a_file(
    line: str, typed: str, holds: object, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(line)
    data, _, args = parse_options(["--config", str(tmp_path / "c.yaml"), *typed.split()])
    assert holds(data, args)


def test_a_folder_is_named_for_the_data_and_not_within_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pictures would be a class of the next run's data."""
    monkeypatch.chdir(tmp_path)
    named = parse_options(["--data_dir", "birds/test/..", "--model", "resnet18"])[2]
    assert named.output_dir == "runs/birds-resnet18-rho0.05"
    Path("birds").mkdir()
    Path("linked").symlink_to("birds")
    for folder in ("birds", "birds/runs/out", "linked/out"):
        said = message_of(["--data_dir", "birds", "--output_dir", folder])
        assert f"`output_dir` must not be inside `data_dir`, got {folder!r} in 'birds'" in said
    assert parse_options(["--data_dir", "birds", "--output_dir", "birds_out"])
    (tmp_path / "birds/runs/a").mkdir(parents=True)
    (tmp_path / "birds/runs/a/options.json").write_text("{}")  # of before this was refused
    for folder in ("birds/runs/a", "birds/runs"):
        assert parse_options(["--data_dir", "birds", "--output_dir", folder])


def test_a_token_in_a_mistyped_option_is_not_repeated() -> None:
    said = message_of(["--hub_tokn=hf_" + "a" * 30])
    assert said == "hf-sam finetune: unknown option --hub_tokn: did you mean --hub_token?"


def test_the_stopwatch_goes_on_from_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    first, control = Stopwatch(), TrainerControl()
    first.on_train_begin(None, TrainerState(), control)
    now[0] += 7
    kept = first.state()
    resumed = Stopwatch.from_state(kept)
    now[0] += 50  # between the two lives
    resumed.on_train_begin(None, TrainerState(), control)
    now[0] += 5
    resumed.on_train_end(None, TrainerState(), control)
    now[0] += 50
    assert resumed.seconds == 12


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("arms", [["base"], ["base", "sam"], ["base", "base_2x", "sam"]])
def test_a_card_says_no_more_than_is_true(
    arms: list[str], seeds: int, data: Path, tmp_path: Path
) -> None:
    finetune_on(data, tmp_path)
    record = RunRecord.read(tmp_path / "run.json")
    metrics = {"eval_top1_error": 50.0}
    results = [
        Result(arm, seed, {}, metrics | {"eval_top1_error": 50.0 + seed}, 4, 1.0)
        for arm in arms
        for seed in range(seeds)
    ]
    comparison = Comparison("command", record, arms[-1], [], results)
    write_comparison_card(tmp_path / "card.md", comparison)
    card = (tmp_path / "card.md").read_text()
    assert ("confidence interval" in card) == (seeds > 1)
    assert ("minus `base_2x`" in card) == ("base_2x" in arms)
    assert "held out" not in card
    add_sharpness_to_card(tmp_path / "card.md", "## How sharp\n\nflat")
    with_section = (tmp_path / "card.md").read_text()
    write_comparison_card(tmp_path / "card.md", comparison)  # of the same weights
    assert (tmp_path / "card.md").read_text() == with_section != card


def test_json_holds_what_json_can(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [float("nan"), 1.5, {"b": float("inf")}]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5, {"b": None}]}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
