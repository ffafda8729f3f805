"""Both passes of a micro-batch begin from one state, and what the clean pass makes of it stays.

At a rho that moves nothing in float64 SAM is the plain Trainer, whatever a forward pass keeps.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CLASSES, FEATURES, build, make_trainer, queue
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers import Trainer, TrainingArguments

from hf_sam import SAMTrainer
from hf_sam.config import ASCENT_SCOPES
from hf_sam.step.buffers import LARGE, Buffers

PLAIN: dict[str, Any] = {"trainer": Trainer, "config": TrainingArguments}
SMALL = 1e-12  # epsilon in float64: beside it the passes differ by their beginnings only


class Stateful(nn.Module):
    """Logits shifted by a draw or a memory, which `forward` asks `shift` for."""

    counted_once: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.layer(x) + self.shift(x), labels)}

    def shift(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class BoundAnew(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(FEATURES))

    def shift(self, x: Tensor) -> Tensor:
        self.centre = 0.5 * self.centre + 0.5 * x.mean(dim=0)
        return self.centre[:CLASSES]


class Growing(Stateful):
    """A buffer that another joins in the first pass, and that grows in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(0))

    def shift(self, x: Tensor) -> Tensor:
        if not hasattr(self, "total"):
            self.register_buffer("total", torch.zeros((), dtype=x.dtype))
        self.seen.resize_(len(self.seen) + 1)[-1] = x.mean()
        self.total += self.seen.mean()
        return self.total * torch.arange(CLASSES)


class BeginsLate(Stateful):
    """A bank that is left alone at first, as in a warm-up."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))
        self.register_buffer("bank", torch.zeros(CLASSES))

    def shift(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes > 3:
            self.bank.add_(x[:, :CLASSES].mean(dim=0))
        return self.bank.clone()


class BehindTorchsBack(Stateful):
    """Written to through `.data`, which torch does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(CLASSES))

    def shift(self, x: Tensor) -> Tensor:
        self.bank.data.add_(x[:, :CLASSES].mean(dim=0))
        return self.bank.clone()


class BehindTorchsBackLater(BeginsLate):
    def shift(self, x: Tensor) -> Tensor:
        self.passes.data.add_(1)
        if self.passes > 3:
            self.bank.data.add_(x[:, :CLASSES].mean(dim=0))
        return self.bank.clone()


class OwnGenerator(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def shift(self, x: Tensor) -> Tensor:
        return torch.randn(CLASSES, generator=self.generator, dtype=x.dtype)


class OtherGenerators(Stateful):
    """numpy's and Python's, in a container, made in the first pass."""

    def shift(self, x: Tensor) -> Tensor:
        if not hasattr(self, "draws"):
            self.draws = {"numpy": np.random.default_rng(0), "python": [random.Random(0)]}
        shift = self.draws["numpy"].normal() + self.draws["python"][0].random()
        return shift * torch.arange(CLASSES)


class Counts(Stateful):
    counted_once = ("passes",)

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def shift(self, x: Tensor) -> Tensor:
        self.passes += 1
        return torch.sin(self.passes * torch.arange(CLASSES))


class Remembers(Stateful):
    """A hidden state with its graph, and a list that grows."""

    counted_once = ("hidden", "seen")

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.seen = None, []

    def shift(self, x: Tensor) -> Tensor:
        before = 0.0 if self.hidden is None else self.hidden.detach()
        self.hidden = torch.tanh(self.layer(x).mean(dim=0) + before)
        self.seen.append(self.hidden.detach())
        return self.hidden + len(self.seen)


def spectral() -> nn.Module:
    model = build("mlp")
    parametrizations.spectral_norm(model.body[0])
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a queue": queue,
    "spectral norm": spectral,
    **{kind.__name__: kind for kind in Stateful.__subclasses__()},
    BehindTorchsBackLater.__name__: BehindTorchsBackLater,
}
# A generator that the first pass makes has no state before it.
MADE_LATE = {OtherGenerators.__name__}


@pytest.mark.parametrize("scope", ASCENT_SCOPES)
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in MADE_LATE])
def test_a_small_rho_is_the_plain_trainer(
    name: str, accumulation: int, scope: str, tmp_path: Path
) -> None:
    trained = []
    for kind in (PLAIN, {"rho": SMALL, "ascent_scope": scope}):
        torch.manual_seed(0)
        model = MODELS[name]().double()
        make_trainer(
            model, tmp_path, max_steps=6, gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=4, **kind,
        ).train()  # fmt: skip
        trained.append(model.state_dict())
    assert trained[0].keys() == trained[1].keys()
    for key, plain in trained[0].items():
        torch.testing.assert_close(trained[1][key], plain, rtol=0, atol=1e-9)


def test_generators_made_by_the_first_pass_are_replayed_after_it(tmp_path: Path) -> None:
    model = OtherGenerators().double()
    shifts: list[Tensor] = []
    drawn = model.shift
    model.shift = lambda x: shifts.append(drawn(x)) or shifts[-1]
    make_trainer(model, tmp_path, max_steps=4).train()
    clean, perturbed = shifts[::2], shifts[1::2]
    assert [torch.equal(a, b) for a, b in zip(clean, perturbed, strict=True)][1:] == [True] * 3
    assert not torch.equal(clean[1], clean[2])


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_one_pass_counts(fraction: float, tmp_path: Path) -> None:
    model = Counts().double()
    make_trainer(model, tmp_path, max_steps=5, ascent_fraction=fraction).train()
    assert model.passes == 5


class Normalised(SAMTrainer):
    """The loss over its own moving average, kept on the trainer."""

    average = 1.0

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = model(**inputs)["loss"]
        self.average = 0.9 * self.average + 0.1 * float(loss.detach())
        return loss / self.average


class CountedNormalised(Normalised):
    counted_once = (*SAMTrainer.counted_once, "average")


def test_the_trainers_own_average(tmp_path: Path) -> None:
    trained = []
    for rho in (0.0, SMALL):
        model = build("mlp")
        make_trainer(model, tmp_path, trainer=CountedNormalised, rho=rho, max_steps=6).train()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(trained[1], trained[0], rtol=0, atol=1e-9)


def test_what_a_pass_changes_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(build("mlp"), tmp_path, trainer=Normalised, max_steps=4).train()
    told = [record.message for record in caplog.records if "Each pass changes" in record.message]
    assert len(told) == 1
    assert "`average` of the trainer" in told[0]
    assert 'counted_once = (*SAMTrainer.counted_once, "average")' in told[0]


class Meter:
    """An object of the user's, with a history; and one that a pass leaves alone."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.names = ["a", "b"]


def test_it_is_named_wherever_it_lies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Trained(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            self.meter.values.append(0.0)
            self.history["last"] = self.meter
            model.body[0].calls += 1
            return model(**inputs)["loss"]

    model = build("mlp")
    model.body[0].calls = 0
    trainer = make_trainer(model, tmp_path, trainer=Trained, max_steps=2)
    trainer.meter, trainer.history = Meter(), {}
    trainer.train()
    (told,) = [r.message for r in caplog.records if "Each pass changes" in r.message]
    for name in ("`calls` of `body.0`", "`history` of the trainer", "`values` of `meter`"):
        assert name in told
    assert "names" not in told


@pytest.mark.parametrize(
    "model", ["mlp", "dropout_and_batch_norm", "sometimes_used", "tied", "frozen"]
)
def test_ordinary_models_are_not_warned_of(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(build(model), tmp_path, max_steps=2).train()
    assert not [r.message for r in caplog.records if "Each pass changes" in r.message]


def test_a_counted_module_is_trained_all_the_same(tmp_path: Path) -> None:
    """Its counters count once; it is neither copied nor replaced."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor, self.passes = nn.Parameter(torch.ones(()).double()), 0

        def forward(self, loss: Tensor) -> Tensor:
            self.passes += 1
            return loss * self.factor

    class Trained(SAMTrainer):
        counted_once = (*SAMTrainer.counted_once, "scale")

        def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
            trained = [*self.model.parameters(), *self.scale.parameters()]
            self.optimizer = torch.optim.SGD(trained, lr=0.1)
            return self.optimizer

        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            return self.scale(model(**inputs)["loss"])

    trainer = make_trainer(build("mlp"), tmp_path, trainer=Trained, max_steps=3)
    trainer.scale = scale = Scale()
    trainer.train()
    assert trainer.scale is scale
    assert scale.factor != 1.0
    assert scale.passes == 3


@pytest.mark.parametrize("how", ["optimizer", "data", "assigned", "frozen"])
def test_a_pass_that_trains_is_refused(how: str, tmp_path: Path) -> None:
    class Adversary(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            weight = self.adversary.weight
            if how == "optimizer":
                weight.grad = torch.ones_like(weight)
                self.own.step()
            elif how == "data":
                weight.data.add_(0.1)
            elif how == "frozen":  # as a teacher that follows the model
                with torch.no_grad():
                    weight.mul_(0.9).add_(0.1)
            else:
                weight.data = weight.data + 0.1
            return model(**inputs)["loss"]

    trainer = make_trainer(build("mlp"), tmp_path, trainer=Adversary, max_steps=3)
    trainer.adversary = nn.Linear(2, 2).requires_grad_(how != "frozen")
    trainer.own = torch.optim.SGD(trainer.adversary.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="must change no parameter, got one that changed `advers"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_pass_that_trains_later_is_refused_then(tmp_path: Path) -> None:
    class Late(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            if self.state.global_step == 2:
                with torch.no_grad():
                    model.body[0].weight.mul_(0.9)
            return model(**inputs)["loss"]

    trainer = make_trainer(build("mlp"), tmp_path, trainer=Late, max_steps=4)
    with pytest.raises(ValueError, match=r"changed `body.0.weight`: under SAM that"):
        trainer.train()
    assert trainer.state.global_step == 2


def plain_step(self: Any, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
    loss = self.compute_loss(model, self._prepare_inputs(inputs))
    self.accelerator.backward(loss)
    return loss.detach()


class OwnStep(Trainer):
    training_step = plain_step


class Below(SAMTrainer):
    training_step = plain_step


class Beside(OwnStep, SAMTrainer):
    pass


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("how", ["below", "beside", "on the trainer"])
def test_a_training_step_without_sam_is_told(how: str, steps: int, tmp_path: Path) -> None:
    kind = {"below": Below, "beside": Beside, "on the trainer": SAMTrainer}[how]
    trainer = make_trainer(build("mlp"), tmp_path, trainer=kind, max_steps=steps)
    if how == "on the trainer":
        trainer.training_step = plain_step.__get__(trainer)
    with pytest.raises(ValueError, match="got a `training_step` of .* mix SAMMixin in before"):
        trainer.train()
    assert trainer.state.global_step == 1
    trainer.args.rho = 0.0
    trainer.train()


def test_a_training_step_that_sam_is_mixed_into_is_called_twice(tmp_path: Path) -> None:
    class Wraps(SAMTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().training_step(*args, **kwargs)

    trainer = make_trainer(build("mlp"), tmp_path, trainer=Wraps, max_steps=2, logging_steps=1)
    trainer.train()
    assert "sharpness" in trainer.state.log_history[0]


@pytest.mark.parametrize("scope", ASCENT_SCOPES)
@pytest.mark.parametrize("settings", [{}, {"ascent_fraction": 0.5}, {"method": "msam"}], ids=str)
def test_logs_and_parts_of_the_loss_come_once(
    settings: dict[str, Any], scope: str, tmp_path: Path
) -> None:
    """As with rho 0, by a `log` of one's own too; the parts are sentence-transformers'."""
    own: list[dict[str, float]] = []

    class Logs(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            loss = model(**inputs)["loss"]
            parts = self.accum_loss_components["train"]
            parts["whole"] = parts.get("whole", 0) + 1
            self.log({"mine": len(inputs["x"])})
            return loss

        def log(self, logs: dict[str, float], *args: Any) -> None:
            own.append(logs)
            super().log(logs, *args)

    momentum = {"optim_args": "momentum=0.9"}
    scoped = {} if "method" in settings else {"ascent_scope": scope}
    trainer = make_trainer(
        build("mlp"), tmp_path, trainer=Logs, max_steps=3, gradient_accumulation_steps=2,
        **settings, **momentum, **scoped,
    )  # fmt: skip
    trainer.accum_loss_components = {"train": {}}
    trainer.train()
    found = [entry["mine"] for entry in trainer.state.log_history if "mine" in entry]
    assert found == [8] * 6
    assert [entry["mine"] for entry in own if "mine" in entry] == found
    assert trainer.accum_loss_components == {"train": {"whole": 6}}


def test_inputs_changed_at_some_steps(tmp_path: Path) -> None:
    """A mixup in place at every other step; both passes see the batch as it came."""
    given: list[Tensor] = []

    class Mixed(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            given.append(inputs["x"].clone())
            if self.state.global_step % 2:
                inputs["x"].mul_(0.7).add_(inputs["x"].flip(0).mul(0.3))
            return model(**inputs)["loss"]

    make_trainer(build("mlp"), tmp_path, trainer=Mixed, max_steps=4).train()
    assert len(given) == 8
    assert all(map(torch.equal, given[::2], given[1::2]))


def test_still_buffers_are_copied_once() -> None:
    """A mask and a table are not copied again; what moves, or begins to move, is."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)).train()
    model.register_buffer("table", torch.zeros(LARGE))
    model.register_buffer("small", torch.zeros(4))
    buffers = Buffers(model.modules())
    first = buffers.snapshot()
    model(torch.randn(5, 3))
    buffers.look(first)

    def values(snapshot: Any) -> list[int]:
        return [copy.values.data_ptr() for copy in snapshot.copies.values()]

    second, third = buffers.snapshot(), buffers.snapshot()
    same = [a == b for a, b in zip(values(second), values(third), strict=True)]
    names = [name for name, _ in model.named_buffers()]
    told = dict(zip(names, same, strict=True))
    assert told["table"]
    assert not told["small"]  # for all that torch can tell
    assert not told["0.running_mean"]
    assert not told["0.running_var"]
    model.table.add_(1)
    fourth = buffers.snapshot()
    model.table.add_(1)
    buffers.put_back(fourth)
    assert torch.equal(model.table, torch.ones(LARGE))
    buffers.put_back(first)
    assert torch.equal(model.table, torch.zeros(LARGE))
    assert torch.equal(model[0].running_mean, torch.zeros(3))
