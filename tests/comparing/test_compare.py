"""A comparison: its runs, what is written of it, and what an interruption does to it."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import patience
import pytest
from images import TINY, write_parquet
from interrupted_compare import EPOCHS, SEEDS, STEPS, plan
from places import SUPPORT

from hf_sam.comparing import compare
from hf_sam.comparing.comparison import Comparison, comparison_table
from hf_sam.comparing.paired import paired_table
from hf_sam.comparing.plots import plot_comparison
from hf_sam.finetuning.hub import HubError, upload_command
from hf_sam.reporting.interval import Interval
from hf_sam.vision import ImageDataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    compare.main(plan(data, folder))
    return folder


def without_seconds(record: Path) -> dict[str, Any]:
    times = ("seconds", "train_overhead")
    return {n: v for n, v in json.loads(record.read_text()).items() if n not in times}


def timeless(folder: Path) -> dict[str, Any]:
    """All that was written of a comparison but how long it took and where."""
    values = json.loads((folder / "comparison.json").read_text())
    for entry in (values, values["record"]):
        entry["command"] = entry["command"].replace(str(folder), "OUTPUT_DIR")
    for entry in (values["record"], *values["results"]):
        del entry["seconds"]
    del values["record"]["train_overhead"]
    return values


def test_killed_again_and_again_ends_with_the_same_table(
    data: Path, straight: Path, tmp_path: Path
) -> None:
    half = tmp_path / "out" / "sweep" / "sam-rho=0.1-seed0" / "options.1.tmp"
    half.parent.mkdir(parents=True)
    half.touch()  # of a life that ended while it wrote
    script = str(SUPPORT / "interrupted_compare.py")
    counted = tmp_path / "steps"
    done = patience.run([sys.executable, script, data, tmp_path / "out", counted, "0"])
    lives = int(re.search(r"lives: (\d+)", done.stdout)[1])
    assert lives >= 3, "it was not killed"
    assert "resuming from" in done.stderr, "no run was killed after its first epoch"
    assert timeless(tmp_path / "out") == timeless(straight)
    for record in straight.rglob("run.json"):
        other = tmp_path / "out" / record.relative_to(straight)
        assert without_seconds(other) == without_seconds(record), "to the last digit of the loss"
        weights = [path.with_name("model.safetensors").read_bytes() for path in (record, other)]
        assert weights[0] == weights[1]
    runs = 2 + 2 * SEEDS
    most = runs * EPOCHS * STEPS + lives * STEPS
    assert runs * EPOCHS * STEPS <= len(counted.read_text()) <= most


def test_finished_runs_are_skipped_and_others_options_are_refused(
    data: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in straight.rglob("run.json")}
    compare.main(plan(data, straight))
    assert before == {p: p.stat().st_mtime_ns for p in straight.rglob("run.json")}
    assert capsys.readouterr().out.count("finished before") == len(before) == 6
    with pytest.raises(SystemExit, match="holds a run with other options"):
        compare.main([*plan(data, straight), "--learning_rate", "0.3"])


def test_an_edited_file_is_noticed_before_anything_is_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comparison that has begun keeps what the file had."""
    train = compare.train

    def train_edited(*args: Any, **told: Any) -> Any:
        config.write_text("weight_decay: 0.2")
        return train(*args, **told)

    monkeypatch.setattr(compare, "train", train_edited)
    config = tmp_path / "c.yaml"
    config.write_text("weight_decay: 0.1")
    words = [*plan(data, tmp_path / "out"), "--config", str(config), "--seeds", "1"]
    words += ["--arms", "base", "--num_train_epochs", "1"]
    words.remove("--sweep")
    words.remove("rho=0.1,0.5")
    compare.main(words)
    options = json.loads((tmp_path / "out" / "base-seed0" / "options.json").read_text())
    assert options["weight_decay"] == 0.1
    with pytest.raises(SystemExit, match="other options, `weight_decay` 0.1 and not 0.2"):
        compare.main([*words, "--seeds", "2"])
    assert not (tmp_path / "out" / "base-seed1").exists()


@pytest.mark.parametrize("file", ["thesis.txt", "run.json"])
def test_a_strangers_folder_is_left_alone(file: str, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "sweep" / "sam-rho=0.5-seed0"
    folder.mkdir(parents=True)
    (folder / file).write_text("{}")
    with pytest.raises(SystemExit, match="must be empty or hold a run of this plan"):
        compare.main(plan(data, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == [file]


def test_what_is_written(straight: Path) -> None:
    comparison = Comparison.read(straight / "comparison.json")
    assert comparison.arms == ["base", "sam"]
    assert [len(comparison.of(arm)) for arm in comparison.arms] == [SEEDS, SEEDS]
    costs = {r.arm: r.gradient_evaluations for r in comparison.results}
    assert costs == {"base": EPOCHS * STEPS, "sam": 2 * EPOCHS * STEPS}
    best = min(comparison.trials, key=lambda trial: trial.held_out_error)
    assert comparison.of("sam")[0].settings == {**best.settings, "learning_rate": "0.02"}
    assert comparison.of("base")[0].settings == {"rho": "0", "learning_rate": "0.02"}
    assert not list(straight.rglob("checkpoint-*"))
    card = (straight / "sam-seed0" / "README.md").read_text()
    assert comparison_table(comparison) in card
    assert (straight / "comparison.png").stat().st_size > 5000
    held_out = json.loads((straight / "sweep" / "sam-rho=0.1-seed0" / "run.json").read_text())
    assert (held_out["train_examples"], held_out["eval_examples"]) == (7, 1)
    for result in comparison.results:
        assert result.errors is not None
        assert result.errors.split == "test"
        assert len(result.errors.wrong) == round(result.error / 100 * result.errors.examples)
    assert "Image by image" in card
    assert paired_table(comparison) in card


def test_a_run_that_is_refused_is_named(data: Path, tmp_path: Path) -> None:
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(
        SystemExit,
        match="hf-sam compare: layers-seed0: `perturb` must be all, norm or last:share alone",
    ):
        compare.main([*argv, "--seeds", "1", "--arm", "layers", "perturb=x9", "--arms", "layers"])


def test_a_push_by_hand_is_of_the_published_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, folder: Path, **told: Any) -> str:
        raise HubError(f"{name}: {upload_command('me/it', folder)}")

    monkeypatch.setattr(compare, "create_repo", refused)
    monkeypatch.setenv("HF_TOKEN", "hf_of_no_one")
    words = ["--push_to_hub", "--first_seed", "2", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        compare.main(words)
    assert f"out: hf upload me/it {tmp_path / 'out' / 'sam-seed2'} " in str(stop.value.code)


def test_runs_shorter_than_their_clock_are_plotted(straight: Path, tmp_path: Path) -> None:
    comparison = Comparison.read(straight / "comparison.json")
    instant = [replace(result, seconds=0.0) for result in comparison.results]
    plot_comparison(replace(comparison, results=instant), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0


def test_arms_share_start_and_batches(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first clean loss is the same with SAM and without, and another with another seed."""
    seen: dict[str, list[tuple[int, int]]] = {}
    fetch = ImageDataset.__getitem__

    def noted(images: ImageDataset, index: int) -> dict[str, Any]:
        if images.split == "train":
            seen[running[-1]].append((int(images.epoch), index))
        return fetch(images, index)

    running: list[str] = []
    monkeypatch.setattr(ImageDataset, "__getitem__", noted)
    train = compare.train

    def train_noted(argv: list[str], **told: Any) -> Any:
        running.append(Path(next(w for w in argv if w.startswith("--output_dir="))).name)
        seen[running[-1]] = []
        return train(argv, **told)

    monkeypatch.setattr(compare, "train", train_noted)
    one_epoch = ["--logging_steps=1", "--num_train_epochs=1", "--arms", "base_2x"]
    compare.main([*plan(data, tmp_path), *one_epoch])
    base, sam, longer = (seen[f"{arm}-seed0"] for arm in ("base", "sam", "base_2x"))
    assert base == sam == longer[: len(base)]
    assert len(longer) == 2 * len(base) == 2 * 4 * STEPS
    assert base != seen["base-seed1"]
    first = {
        run: json.loads((tmp_path / run / "trainer_state.json").read_text())["log_history"][0]
        for run in ("base-seed0", "sam-seed0", "base-seed1")
    }
    losses = {run: entry["loss"] for run, entry in first.items()}
    assert losses["base-seed0"] == losses["sam-seed0"] != losses["base-seed1"]
    assert "perturbed_loss" in first["sam-seed0"]


def test_interval_is_students() -> None:
    """By hand: of 1, 2, 3 the standard error is 1/sqrt(3), the quantile at 2 degrees 4.302653."""
    interval = Interval.of([1.0, 2.0, 3.0])
    assert (interval.mean, interval.n) == (2.0, 3)
    assert interval.half_width == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert str(Interval.of([35.714])) == "35.71"
    assert f"{interval}" == str(interval) == "2.00 ± 2.48"
    assert f"{interval:.3g}" == "2 ± 2.48"
