"""Settings chosen on an official validation split, and arms that are compared image by image."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import patience
import pytest
from folders import write
from images import TINY, finetune_on, write_parquet
from scipy.stats import binomtest

from hf_sam.comparing import compare
from hf_sam.comparing.cards import write_comparison_card
from hf_sam.comparing.choosing import require_split_for_choosing
from hf_sam.comparing.comparison import Comparison, Result
from hf_sam.comparing.paired import McNemar, mcnemar, paired_table
from hf_sam.comparing.plan import parse_plan
from hf_sam.finetuning import finetune
from hf_sam.finetuning.fields import DataOptions
from hf_sam.finetuning.folder import FolderInUseError, run_options, write_options
from hf_sam.finetuning.image_errors import ErrorsOfRun
from hf_sam.reporting.model_card import RunRecord
from hf_sam.vision import Splits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images to train on, eight to choose on, six to measure on."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 12), ("validation", 8), ("test", 6)):
        write_parquet(folder, (split,), count=count)
    return folder


def plan(data: Path, output_dir: Path, *more: str) -> list[str]:
    words = [*TINY, "--data_dir", str(data), "--output_dir", str(output_dir), "--seeds", "2"]
    return [*words, "--arms", "base", "sam", "--sweep", "rho=0.1,0.5", *more]


@pytest.fixture(scope="module")
def chosen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chosen")
    compare.main(plan(data, folder, "--sweep_split", "validation"))
    return folder


def test_chosen_on_the_split_and_then_trained_on_it_too(chosen: Path) -> None:
    seen = {
        str(path.parent.relative_to(chosen)): RunRecord.read(path)
        for path in chosen.rglob("run.json")
    }
    sizes = {
        name: (record.train_examples, record.eval_split, record.eval_examples)
        for name, record in seen.items()
    }
    trial, final = (12, "validation", 8), (20, "test", 6)
    assert sizes == {
        "sweep/sam-rho=0.1-seed0": trial,
        "sweep/sam-rho=0.5-seed0": trial,
        **{f"{arm}-seed{seed}": final for arm in ("base", "sam") for seed in (0, 1)},
    }
    comparison = Comparison.read(chosen / "comparison.json")
    assert comparison.sweep_split == "validation"
    card = (chosen / "sam-seed0" / "README.md").read_text()
    assert "had the least error on the `validation` split, which these runs did not train" in card
    assert "tenth of the training images" not in card


def test_data_without_an_evaluation_split(tmp_path: Path) -> None:
    """Refused before the first trial; or a share of them is neither trained nor chosen on."""
    data = write_parquet(tmp_path / "data", ("train",), count=20)
    with pytest.raises(SystemExit, match="split `test` is not in the data.*`--eval_share 0.1`"):
        compare.main(plan(data, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    compare.main(plan(data, tmp_path / "out", "--eval_share", "0.2"))
    records = {path: RunRecord.read(path) for path in (tmp_path / "out").rglob("run.json")}
    sizes = {
        "sweep" in path.parts: (record.train_examples, record.eval_split, record.eval_examples)
        for path, record in records.items()
    }
    assert sizes == {True: (14, "train (held out)", 2), False: (16, "train (split off)", 4)}
    assert len(records) == 6


SPLITS = [
    ("", {"train_split": "train", "eval_split": "validation"}, "train+validation"),
    ("--train_split validation+train", {"train_split": "train", "eval_split": "validation"},
     "validation+train"),
    ("--train_split train+more", {"train_split": "train+more", "eval_split": "validation"},
     "train+more+validation"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "trial", "final"), SPLITS, ids=[s[2] for s in SPLITS])
def test_splits_of_trials_and_of_what_is_measured(
    options: str, trial: dict[str, str], final: str
) -> None:
    words = "--data_dir x --sweep rho=1,2 --sweep_split validation " + options
    made = parse_plan(words.split())
    assert (made.choosing.trial, made.choosing.final) == (trial, {"train_split": final})


def test_the_hubs_flowers_are_trained_on_both_halves_as_in_the_table() -> None:
    words = "--dataset oxford_flowers --sweep rho=1,2 --sweep_split validation"
    made = parse_plan(words.split())
    assert made.choosing.trial == {"train_split": "train", "eval_split": "validation"}
    assert made.choosing.final == {"train_split": "train+validation"}
    assert parse_plan(words.split()[:-2]).choosing.trial == {"holdout": "0.1"}


REFUSED = [
    ("--sweep_split valid", "`sweep_split` must be a split of the data, got valid: there are "),
    ("--sweep_split test", "`sweep_split` must not be the split that results are measured on, got "
     "test: pass validation, or pass another"),
    ("--sweep_split validation+test", "must not be the split that results are measured on"),
    ("--sweep_split validation --eval_split validation", "must not be the split that results"),
    ("--sweep_split train", "`sweep_split` must leave something to train on, got train"),
    ("--sweep_split validation --eval_share 0.1", "`sweep_split` and `eval_share` exclude each"),
    ("--sweep_split validation --arm sam train_split=test", "`train_split` must be the same for"),
    ("--sweep_split validation --sweep train_split=a,b", "`train_split` must be the same for"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[o for o, _ in REFUSED])
def test_refused_before_anything_is_trained(
    options: str, message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stop:
        compare.main(plan(data, tmp_path / "out", *options.split()))
    assert message in str(stop.value.code)
    assert not (tmp_path / "out").exists()


def test_a_split_of_any_name_is_found(tmp_path: Path) -> None:
    """As by `--eval_split`; and what it leaves to measure on is looked for before the trials."""
    data = write(tmp_path / "data", ["{train,test,tune}/cat/1.png"])
    require_split_for_choosing("tune", DataOptions(data_dir=str(data)))
    data = write_parquet(tmp_path / "other", ("train", "evaluation"))
    with pytest.raises(SystemExit, match="split `test` is not in the data"):
        compare.main(plan(data, tmp_path / "out", "--sweep_split", "evaluation"))
    assert not (tmp_path / "out").exists()


def test_nothing_to_choose_on_the_split() -> None:
    with pytest.raises(SystemExit, match="`sweep_split` has no effect without `--sweep`"):
        compare.main(["--sweep_split", "validation"])


def test_the_rows_that_a_model_errs_on_are_named_as_in_the_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sample, where a row is not at its place; against predictions made one by one."""
    runs = []
    save = finetune.save

    def noted(*args: Any) -> Any:
        runs.append(args)
        return save(*args)

    monkeypatch.setattr(finetune, "save", noted)
    finetune_on(data, tmp_path / "out", "--max_eval_samples", "5")
    ((_, _, run, trainer, metrics),) = runs
    errors = ErrorsOfRun.read(tmp_path / "out")
    assert errors is not None
    rows, wrong, right = run.splits.eval, [], {name: [] for name in run.splits.label_names}
    for position, row in enumerate(rows):
        image = trainer.eval_dataset[position]["pixel_values"][None]
        hit = int(run.classifier.model.eval()(image).logits.argmax()) == row["label"]
        right[run.splits.label_names[row["label"]]].append(hit)
        wrong += [] if hit else [row["index"]]
    assert list(rows["index"]) != sorted(rows["index"])
    assert (errors.split, errors.examples, list(errors.wrong)) == ("test", 5, sorted(wrong))
    assert errors.class_accuracy == {n: 100 * sum(h) / len(h) for n, h in right.items()}
    assert metrics["eval_top1_error"] == pytest.approx(100 * len(wrong) / 5)
    assert isinstance(run.splits, Splits)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 5), (2, 11), (30, 60)])
def test_mcnemar_is_the_exact_test(better: int, worse: int) -> None:
    """By the definition: the weight of all splits of the images no likelier than this one."""
    n = better + worse
    weights = [binomtest(0, 1).pvalue] if n == 0 else _binomial(n)
    seen = weights[better] if n else 1.0
    p = sum(weight for weight in weights if weight <= seen * (1 + 1e-9))
    assert McNemar.of(better, worse).p == pytest.approx(p, rel=1e-9)


def _binomial(n: int) -> list[float]:
    weights = [0.5**n]
    for k in range(n):
        weights.append(weights[-1] * (n - k) / (k + 1))
    return weights


def result(arm: str, seed: int, wrong: list[int] | None) -> Result:
    errors = None if wrong is None else ErrorsOfRun("test", 10, wrong, {"cat": 50.0})
    return Result(arm, seed, {}, {"eval_top1_error": 50.0}, 1, 1.0, errors)


def test_an_image_counts_once_however_many_seeds_there_are(chosen: Path) -> None:
    """Image 1 is better in both seeds, 2 in one, 3 better and worse in turn, 4 worse in one."""
    results = [
        result("base", 0, [1, 2, 3, 9]), result("sam", 0, [9]),
        result("base", 1, [1]), result("sam", 1, [3, 4]),
        result("base", 2, [5]), result("other", 2, None),
    ]  # fmt: skip
    comparison = replace(Comparison.read(chosen / "comparison.json"), results=results)
    test = mcnemar(comparison, "sam", "base")
    assert test == McNemar.of(2, 1)
    assert mcnemar(comparison, "other", "base") is None
    assert "| `sam` | 2 : 1, p = 1.000 |" in paired_table(comparison)
    assert "`other`" not in paired_table(comparison)


def test_records_without_errors_make_the_card_they_made(chosen: Path, tmp_path: Path) -> None:
    values = json.loads((chosen / "comparison.json").read_text())
    for entry in values["results"]:
        del entry["errors"]
    del values["sweep_split"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    comparison = Comparison.read(tmp_path / "old.json")
    write_comparison_card(tmp_path / "old.md", comparison)
    card = (tmp_path / "old.md").read_text()
    assert "Image by image" not in card
    assert "a tenth of the training images, held out" in card


TWO = """
import os, sys
from hf_sam.comparing import compare
for name in sys.argv[1:3]:
    if os.fork() == 0:
        sys.stdout = open(name, "w")
        compare.main(sys.argv[3:])
        sys.stdout.close()
        os._exit(0)
assert [os.wait()[1], os.wait()[1]] == [0, 0]
"""


def test_two_processes_share_a_plan(data: Path, tmp_path: Path) -> None:
    """Each run is trained once, by one of them, and both end with the whole table."""
    words = plan(data, tmp_path / "out", "--sweep_split", "validation", "--seeds", "1")
    said = [tmp_path / "one", tmp_path / "two"]
    command = [sys.executable, "-c", TWO, *map(str, said), *words]
    patience.run(command)
    folders = sorted(str(path.parent) for path in (tmp_path / "out").rglob("run.json"))
    texts = [path.read_text() for path in said]
    trained = [
        [line for line in text.splitlines() if line.endswith(tuple(folders)) and line[0] == "["]
        for text in texts
    ]
    assert sorted(line.split(": ")[1] for lines in trained for line in lines) == folders
    assert min(map(len, trained)) >= 1, "both have trained"
    assert len(folders) == 4
    assert all("minus `base`" in text for text in texts)
    assert len(Comparison.read(tmp_path / "out" / "comparison.json").results) == 2


def test_what_others_end_is_seen_before_the_next_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the table of the first seed does not wait for those of all others."""
    words = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out"), "--seeds", "2"]
    of_plan = compare.Runs(parse_plan(words))
    runs = [({}, tmp_path / name) for name in ("theirs", "ours", "ours too")]
    ended: list[str] = []

    def run(options: dict[str, str], folder: Path) -> None:
        if folder.name == "theirs" and not ended:
            raise FolderInUseError("theirs")
        ended.append(folder.name)

    monkeypatch.setattr(of_plan, "run", run)
    assert len(list(of_plan.finish(runs))) == 3
    assert ended == ["ours", "theirs", "ours too"]


def test_what_another_process_trains_is_not_touched(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files stay while it lives; the run that it leaves when it is killed is trained."""
    folder = tmp_path / "out" / "base-seed0"
    words = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    words += ["--seeds", "1", "--arms", "base", "sam"]
    made = parse_plan(words)
    folder.mkdir(parents=True)
    write_options(folder, run_options(*made.parsed({"rho": "0", "seed": "0"})), resumed=False)
    code = "from hf_sam.finetuning.folder import claimed; from pathlib import Path\n"
    code += f"with claimed(Path({str(folder)!r})):\n"
    code += f"    Path({str(folder / 'half')!r}).touch(); print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    waited = []

    def wait(seconds: float) -> None:
        waited.append((folder / "half").exists())
        if len(waited) == 2:
            other.kill()
            other.wait()

    monkeypatch.setattr(compare.time, "sleep", wait)
    assert compare.main(words).arms == ["base", "sam"]
    assert waited == [True, True]
    assert (folder / "run.json").exists()


def test_a_part_of_published_data_is_said(data: Path, tmp_path: Path) -> None:
    """Beside the paper's figures, which are of all of it."""
    finetune_on(data, tmp_path / "part", "--dataset", "oxford_flowers")
    remarks = RunRecord.read(tmp_path / "part" / "run.json").remarks
    assert "Foret et al. report" in remarks[0]
    part = "Measured on 3 of 102 classes and 6 of 6,149 examples: do not compare it with published"
    assert remarks[1].startswith(part)
    finetune_on(data, tmp_path / "own")
    assert RunRecord.read(tmp_path / "own" / "run.json").remarks == []
