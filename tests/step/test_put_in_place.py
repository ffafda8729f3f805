"""What callbacks and passes put in place after a training has begun is found, as what was there."""

import functools
import gc
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import build, examples, make_trainer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.step.holders import MOST


class Bank(nn.Module):
    """Counts its passes in a buffer, and draws from a generator of its own."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.generator, self.drawn = torch.Generator().manual_seed(seed), []

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.drawn.append(torch.rand((), generator=self.generator).item())
        return x * self.drawn[-1]

    def require_twice_alike(self, steps: int) -> None:
        """Check that each step has made two passes with one draw, and counted once."""
        assert self.passes == steps and len(self.drawn) == 2 * steps
        assert self.drawn[::2] == self.drawn[1::2] and len(set(self.drawn)) == steps


class WithBank(SAMTrainer):
    """Its loss calls a bank that callbacks put in place."""

    bank: Any = None

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        return self.bank(model(**inputs)["loss"])


class Puts(TrainerCallback):
    """Puts a new bank in place at one kind of moment."""

    def __init__(self, moment: str, put: Callable[[Bank], None]) -> None:
        self.banks: list[Bank] = []
        self.put = put
        setattr(self, moment, self.at_the_moment)

    def at_the_moment(self, *args: Any, **kwargs: Any) -> None:
        self.banks.append(Bank(seed=len(self.banks)))
        self.put(self.banks[-1])


@pytest.mark.parametrize("moment", ["on_train_begin", "on_epoch_begin", "on_step_begin"])
def test_a_module_that_a_callback_replaces(moment: str, tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path, trainer=WithBank, max_steps=12, rho=0.5)
    puts = Puts(moment, lambda bank: setattr(trainer, "bank", bank))
    trainer.add_callback(puts)
    trainer.train()
    wanted = {"on_train_begin": 1, "on_epoch_begin": 2, "on_step_begin": 12}[moment]
    assert len(puts.banks) == wanted
    for bank in puts.banks:
        bank.require_twice_alike(12 // wanted)


@pytest.mark.parametrize("place", ["hook", "list", "of an object"])
def test_what_an_epoch_puts_elsewhere(place: str, tmp_path: Path) -> None:
    """Of the first epoch too, whose first step begins after its callbacks."""
    model, held = build("mlp"), types.SimpleNamespace(banks=[])

    def put(bank: Bank) -> None:
        if place == "hook":
            model._forward_hooks.clear()
            model.register_forward_hook(lambda m, i, out: {**out, "loss": bank(out["loss"])})
        else:
            held.banks[:] = [bank]

    def call(loss: Tensor) -> Tensor:
        return loss if place == "hook" else held.banks[0](loss)

    trainer = make_trainer(model, tmp_path, trainer=WithBank, max_steps=12, rho=0.5)
    trainer.bank = call
    trainer.held = held.banks if place == "list" else held
    trainer.add_callback(puts := Puts("on_epoch_begin", put))
    trainer.train()
    assert len(puts.banks) == 2
    for bank in puts.banks:
        bank.require_twice_alike(6)


class MadeLater(nn.Module):
    """Makes its bank in the second of the steps' passes, as a cached property of the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.calls = build("mlp"), 0

    @functools.cached_property
    def bank(self) -> Any:
        return types.SimpleNamespace(module=Bank())  # which is no child of the model

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        out = self.body(x, labels)
        return out if self.calls < 3 else {**out, "loss": self.bank.module(out["loss"])}


def test_what_a_pass_makes_counts_once_from_the_next_step_on(tmp_path: Path) -> None:
    model = MadeLater()
    data = examples(count=64)
    make_trainer(model, tmp_path, max_steps=6, rho=0.5, data=data).train()
    bank = model.bank.module  # both passes of the second step count: the second made it
    assert bank.passes == 2 + 4 and bank.drawn[2::2] == bank.drawn[3::2]


@pytest.mark.parametrize("around", ["method", "cache", "partialmethod", "library's class"])
def test_functions_that_are_put_in_a_trainer(
    around: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = Bank()

    @functools.cache
    def cached() -> Bank:
        return bank

    def compute_loss(self: Any, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        return bank(model(**inputs)["loss"])

    def by_cache(self: Any, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        return cached()(model(**inputs)["loss"])

    def given(self: Any, by: Any, model: nn.Module, inputs: Any, *a: Any, **kwargs: Any) -> Tensor:
        return by(model(**inputs)["loss"])

    kind: type[Trainer] = SAMTrainer
    if around == "library's class":
        monkeypatch.setattr(SAMTrainer, "compute_loss", compute_loss, raising=False)
    elif around == "partialmethod":
        given_bank = functools.partialmethod(given, bank)
        kind = type("Partial", (SAMTrainer,), {"compute_loss": given_bank})
    trainer = make_trainer(build("mlp"), tmp_path, trainer=kind, max_steps=4, rho=0.5)
    if around in ("method", "cache"):
        function = by_cache if around == "cache" else compute_loss
        trainer.compute_loss = types.MethodType(function, trainer)
    trainer.train()
    bank.require_twice_alike(4)


class Named(dict):
    """A mapping of the user's, with an attribute."""


def banks_of(trainer: Any) -> list[Bank]:
    held = trainer.held
    if isinstance(held, Named):
        return [held.last]
    return list(held.values()) if isinstance(held, dict) else held


@pytest.mark.parametrize("held", ["list", "dict", "attribute of a dict"])
def test_the_last_of_many_modules(held: str, tmp_path: Path) -> None:
    banks = [Bank(seed) for seed in range(MOST + 10)]
    trainer = make_trainer(build("mlp"), tmp_path, trainer=WithBank, max_steps=4, rho=0.5)
    if held == "list":
        trainer.held = banks
    elif held == "dict":
        trainer.held = dict(enumerate(banks))
    else:
        trainer.held = Named()
        trainer.held.last = banks[-1]
    trainer.bank = lambda loss: banks_of(trainer)[-1](loss)
    trainer.train()
    banks[-1].require_twice_alike(4)


class Adds(nn.Module):
    """Makes a module with a buffer in its first pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build("mlp")

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if not hasattr(self, "table"):
            self.table = nn.Module()
            self.table.register_buffer("rows", torch.ones(x.shape[1], dtype=x.dtype))
        return self.body(x + self.table.rows, labels)


@pytest.mark.parametrize("scope", ["micro_batch", "rank", "global"])
def test_a_module_made_within_a_window_keeps_its_buffers(scope: str, tmp_path: Path) -> None:
    weights = []
    for has_made in (False, True):
        model = Adds()
        if has_made:
            model(examples()[0]["x"][None], examples()[0]["labels"][None])
        settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
        make_trainer(model, tmp_path, max_steps=3, ascent_scope=scope, **settings).train()
        weights.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    assert torch.equal(*weights)


def test_a_model_is_freed_once_it_has_been_trained(tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path, max_steps=1)
    trainer.train()
    old = weakref.ref(next(trainer.model.parameters()))
    trainer.model = trainer.model_wrapped = build("mlp")
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.callback_handler.model = trainer.callback_handler.optimizer = None
    trainer.callback_handler.lr_scheduler = None
    trainer.accelerator.free_memory()
    gc.collect()
    assert old() is None


class Followed(SAMTrainer):
    """Averages the model into a teacher within the pass."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            for kept, param in zip(self.teacher.parameters(), model.parameters(), strict=True):
                kept.lerp_(param, 0.1)
        return model(**inputs)["loss"]


@pytest.mark.parametrize("method", ["sam", "msam", "s2sam"])
def test_a_teacher_that_equals_the_model_at_first_is_refused(method: str, tmp_path: Path) -> None:
    settings = {"method": method, "optim_args": "momentum=0.9", "rho": 0.5}
    trainer = make_trainer(build("mlp"), tmp_path, trainer=Followed, **settings)
    trainer.teacher = build("mlp").requires_grad_(False)
    with pytest.raises(ValueError, match="one that changed `teacher"):
        trainer.train()


def test_a_loss_with_a_logarithm_does_not_generate(tmp_path: Path) -> None:
    class Samples(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            return F.softplus(torch.log(1.0 + model(**inputs)["loss"]))

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if logs.get("texts"):
                self.model.generate()
            super().log(logs, *args, **kwargs)

    make_trainer(build("mlp"), tmp_path, trainer=Samples, max_steps=1).train()


def test_numbers_are_floats_whatever_was_written(tmp_path: Path) -> None:
    """A hyperparameter search casts each value to the type of the one that it replaces."""
    args = SAMConfig(output_dir=str(tmp_path), rho=0, ascent_start=3, max_overhead=None)
    assert type(args.rho) is float and type(args.ascent_start) is float
    assert args.max_overhead is None


class Unbounded(IterableDataset):
    """Examples without a length."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(examples())


@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("data", [None, Unbounded()], ids=["in mid-epoch", "without a length"])
def test_a_run_that_has_ended_makes_no_more_steps(data: Any, rho: float, tmp_path: Path) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "rho": rho, "data": data}
    first = make_trainer(build("batch_norm"), tmp_path, **settings)
    first.train()
    again = make_trainer(build("batch_norm", seed=1), tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    ended = again.model.state_dict()
    assert all(torch.equal(ended[name], x) for name, x in first.model.state_dict().items())


@pytest.mark.parametrize("event", ["on_train_begin", "on_epoch_begin"])
def test_a_callback_stops_training_when_it_stops_the_plain_trainers(
    event: str, tmp_path: Path
) -> None:
    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True

    stopper = type("Stopper", (TrainerCallback,), {event: stop})
    steps = []
    for kind in (Trainer, SAMTrainer):
        made = make_trainer(build("mlp"), tmp_path, trainer=kind, max_steps=4)
        made.add_callback(stopper())
        made.train()
        steps.append(made.state.global_step)
    assert steps[0] == steps[1] < 4
