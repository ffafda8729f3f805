"""`max_overhead`: what is chosen for the user costs what it may, and no more."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from cases import build, examples, make_trainer
from counters import CountExamples
from tiny_transformers import llama, texts
from torch.utils.data import DataLoader, IterableDataset
from transformers import DataCollatorWithFlattening, TrainerCallback, default_data_collator

from hf_sam import SAMTrainer
from hf_sam.ascent.schedule import AscentSchedule, within
from hf_sam.reporting.model_card import settings_of
from hf_sam.step.overhead import Overhead
from hf_sam.step.planning import rows_of

STEPS, ROWS = 20, 8  # of make_trainer

# By hand: what may be spent, the rows of a micro-batch, interval and fraction.
CHOICES: list[tuple[float, int, int, float]] = [
    (3.0, 8, 1, 1.0),
    (2.0, 8, 1, 1.0),
    (1.5, 8, 1, 4 / 8),
    (1.4, 8, 1, 3 / 8),  # 3.2 rows
    (1.25, 8, 1, 2 / 8),
    (1.2, 8, 2, 3 / 8),  # 1.6 rows at every step are less than two
    (1.2, 64, 1, 12 / 64),
    (1.125, 64, 1, 8 / 64),
    (1.1, 64, 2, 12 / 64),  # a tenth is less than an eighth
    (1.1, 8, 3, 2 / 8),  # 2 passes for 7 ascents
    (1.05, 8, 5, 2 / 8),
    (1.25, 10, 1, 2 / 10),  # 2.5 rows
    (1.25, 7, 2, 3 / 7),  # 1.75 rows: less than two
    (1.25, 2, 4, 1.0),
    (1.25, 1, 4, 1.0),
    (1.4, 1, 3, 1.0),
    (1.2, 1, 5, 1.0),
]


@pytest.mark.parametrize(("limit", "rows", "interval", "fraction"), CHOICES)
def test_what_may_be_spent_decides(limit: float, rows: int, interval: int, fraction: float) -> None:
    schedule = within(AscentSchedule(total=STEPS, rows=rows), limit)
    assert (schedule.interval, schedule.fraction) == (interval, fraction)


@pytest.mark.parametrize("begin", [0, 0.3])
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 64])
def test_no_more_is_spent_than_may_be(rows: int, begin: float) -> None:
    """And no less than half of it."""
    total = 997
    due = AscentSchedule(shape="linear", warmup=int(begin * total), total=total, rows=rows)
    for hundredths in range(101, 231):
        schedule = within(due, hundredths / 100)
        spent, allowed = schedule.passes(total) - total, (hundredths / 100 - 1) * total
        assert spent <= allowed + 1e-6
        assert spent >= 0.5 * min(allowed, total - due.begin)
        assert (schedule.fraction * rows) == pytest.approx(round(schedule.fraction * rows), abs=0)


def test_less_than_one_ascent_is_none() -> None:
    schedule = within(AscentSchedule(total=STEPS, rows=ROWS), 1.01)
    assert schedule.ascents(STEPS) == 0


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("limit", "interval", "kept"), [(2.0, 1, 8), (1.4, 1, 3), (1.2, 2, 3)])
def test_the_examples_passed_over(
    limit: float,
    interval: int,
    kept: int,
    accumulation: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for clock in ("time", "perf_counter"):  # others take no part in the process's own
        monkeypatch.setattr(time, clock, time.process_time)
    settings = {"gradient_accumulation_steps": accumulation, "max_overhead": limit}
    trainer = make_trainer(build("mlp"), tmp_path, **settings)
    counter = CountExamples(trainer.model)
    assert trainer.train().metrics["train_overhead"] == trainer.train_overhead
    assert counter.examples == accumulation * (STEPS * ROWS + STEPS // interval * kept)
    assert counter.examples <= limit * accumulation * STEPS * ROWS
    assert trainer.gradient_evaluations == round(STEPS + STEPS / interval * kept / ROWS)
    assert 1.0 < trainer.train_overhead < 3.0
    assert not any("train_overhead" in entry for entry in trainer.state.log_history)


def test_micro_batches_that_cannot_be_cut_take_an_interval(tmp_path: Path) -> None:
    class DPOTrainer(SAMTrainer):
        """Called as trl's, which stacks pairs."""

    trainer = make_trainer(build("mlp"), tmp_path, trainer=DPOTrainer, max_overhead=1.25)
    counter = CountExamples(trainer.model)
    trainer.train()
    assert counter.examples == ROWS * (STEPS + STEPS // 4)

    for settings in ({"max_overhead": 1.25}, {"ascent_fraction": 0.25}):
        trainer = make_trainer(llama(), tmp_path, dtype=torch.float32, data=tokens(), **settings)
        trainer.data_collator = DataCollatorWithFlattening()
        if "ascent_fraction" in settings:
            with pytest.raises(ValueError, match="got a DataCollatorWithFlattening, which joins"):
                trainer.train()
        else:
            trainer.train()
            assert trainer.gradient_evaluations == STEPS + STEPS // 4


def tokens() -> list[dict[str, list[int]]]:
    return [{name: x.tolist() for name, x in text.items()} for text in texts()]


def test_rho_that_is_raised_later_is_spent_as_it_may_be(tmp_path: Path) -> None:
    class SwitchOn(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            args.rho = 0.05 if state.global_step >= 10 else 0.0

    trainer = make_trainer(build("mlp"), tmp_path, rho=0.0, max_overhead=1.25)
    trainer.add_callback(SwitchOn())
    counter = CountExamples(trainer.model)
    trainer.train()
    assert counter.examples == STEPS * ROWS + STEPS // 2 * 2


def test_rows_are_those_of_the_loader(tmp_path: Path) -> None:
    class OwnLoader(SAMTrainer):
        def get_train_dataloader(self) -> Any:
            loader = DataLoader(self.train_dataset, batch_size=2, collate_fn=self.data_collator)
            return self.accelerator.prepare(loader)

    trainer = make_trainer(build("mlp"), tmp_path, trainer=OwnLoader, max_overhead=1.25)
    counter = CountExamples(trainer.model)
    trainer.train()
    assert counter.examples == 2 * (STEPS + STEPS // 4)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("shape", [list, iter])
def test_rows_of_one_of_two_ranks(
    split: bool, shape: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharded by accelerate, with and without a sampler that knows of the ranks."""

    class Streamed(IterableDataset):
        def __iter__(self) -> Any:
            return iter(examples())

    data = Streamed() if shape is iter else examples()
    loader = prepare_data_loader(
        DataLoader(data, batch_size=8, collate_fn=default_data_collator), num_processes=2,
        process_index=0, split_batches=split, put_on_device=False, dispatch_batches=False,
    )  # fmt: skip
    trainer = make_trainer(build("mlp"), tmp_path)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    trainer.callback_handler.train_dataloader = loader
    assert rows_of(trainer) == len(next(iter(loader))["labels"]) == (4 if split else 8)


def test_two_examples_at_least(tmp_path: Path) -> None:
    """Of the last micro-batch too, here of 4: BatchNorm cannot be trained on one."""
    settings = {"max_steps": -1, "num_train_epochs": 1, "max_overhead": 1.25}
    trainer = make_trainer(build("batch_norm"), tmp_path, data=examples(count=20), **settings)
    counter = CountExamples(trainer.model)
    trainer.train()
    assert counter.examples == 20 + 3 * 2


def test_a_step_outside_of_train_has_no_length(tmp_path: Path) -> None:
    for settings in ({"max_overhead": 1.25}, {"ascent_start": 0.5}, {"rho_schedule": "linear"}):
        trainer = make_trainer(build("mlp"), tmp_path, **settings)
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
        with pytest.raises(ValueError, match="need the length of a run"):
            trainer.training_step(trainer.model, batch)


@pytest.mark.parametrize("method", ["sam", "msam", "s2sam", "looksam", "gsam"])
def test_every_method_makes_a_step_outside_of_train(method: str, tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path, method=method)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    assert float(trainer.training_step(trainer.model, batch)) > 0
    assert all(p.grad is not None for p in trainer.model.parameters())


def test_what_was_chosen_is_in_the_card(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": texts(), "dtype": torch.float32, "max_steps": 4}
    trainer = make_trainer(llama(), tmp_path, max_overhead=1.2, **settings)
    trainer.train()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "| `ascent_interval` | 2 |" in card and "| `ascent_fraction` | 0.375 |" in card


IDLE = [
    ({"max_overhead": 1.01}, "`max_overhead=1.01` pays for no ascent; raise it"),
    ({"ascent_start": 4}, "begin at step 4; lower `ascent_start`"),
    (
        {"max_overhead": 2.0, "rho_schedule": "linear", "warmup_steps": 9},
        "or `warmup_steps` beside a `rho_schedule`",
    ),
    ({"method": "rst", "method_args": "p=0"}, "no coin falls for it; raise the `p`"),
]


@pytest.mark.parametrize(("settings", "message"), IDLE, ids=[str(s) for s, _ in IDLE])
def test_a_run_without_an_ascent_says_so_and_has_a_card_without_sam(
    settings: dict[str, Any], message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**settings, "data": texts(), "dtype": torch.float32, "max_steps": 4}
    trainer = make_trainer(llama(), tmp_path, **settings)
    trainer.train()
    trainer.create_model_card()
    assert "SAM will never be active in 4 optimizer steps: " in caplog.text
    assert message in caplog.text
    assert "Sharpness" not in (tmp_path / "README.md").read_text()
    assert settings_of(trainer.args, trainer.ascent_schedule)["sam"] is None


def test_more_than_sam_costs_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(build("mlp"), tmp_path, max_overhead=25.0, max_steps=4).train()
    assert "4 ascents in 4 optimizer steps, as SAM at every step costs 2." in caplog.text


def test_a_step_that_fails_is_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    overhead = Overhead(torch.device("cpu"))
    with pytest.raises(RuntimeError), overhead.step():
        with overhead.plain_pass():
            pass
        raise RuntimeError
    assert overhead._seconds == 7 - 2


def test_a_share_that_takes_as_long_as_all_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    overhead = Overhead(torch.device("cpu"))
    with caplog.at_level("WARNING"):
        assert overhead.of(1.0, allowed=1.25) == 1.0
        overhead._seconds = 0.5
        assert overhead.of(1.0) == overhead.of(1.0, allowed=1.5) == 2.0
        assert not caplog.messages
        overhead.of(1.0, allowed=1.25)
    assert "took 2.00 times" in caplog.text and "`ascent_interval=4`" in caplog.text
