"""What a pass changes beside the gradients: counted once, named to the user, or refused."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import build, make_trainer
from stateful import SMALL
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_sam import SAMTrainer


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


class Endless:
    """A sampler that says no length."""

    def __iter__(self) -> Any:
        return itertools.repeat([0])

    def __len__(self) -> int:
        raise NotImplementedError


ENDLESS = [
    ("list", lambda: iter([1.0] * 99)),
    ("loader", lambda: iter(DataLoader(range(99)))),
    ("cycle", lambda: itertools.cycle(DataLoader(range(9)))),
    ("zip", lambda: zip(DataLoader(range(99)), itertools.count(), strict=False)),
    ("map", lambda: map(str, range(99))),
    ("endless", lambda: iter(DataLoader(range(9), batch_sampler=Endless()))),
    ("generator", lambda: (x for _ in range(99) for x in DataLoader(range(9)))),
]


@pytest.mark.parametrize("is_used", [True, False])
@pytest.mark.parametrize(("name", "made"), ENDLESS, ids=[name for name, _ in ENDLESS])
def test_an_iterator_that_passes_take_from_is_named(
    name: str, made: Any, is_used: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a loader of unlabelled images: the second pass would get other ones."""

    class Takes(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            if is_used:
                next(self.others)
            return model(**inputs)["loss"]

    trainer = make_trainer(build("mlp"), tmp_path, trainer=Takes, max_steps=2)
    trainer.others = made()
    trainer.train()
    told = [r.message for r in caplog.records if "Each pass" in r.message]
    assert len(told) == is_used
    assert all("takes from `others` of the trainer" in message for message in told)


@pytest.mark.parametrize("is_used", [True, False])
def test_iterators_in_a_container_and_files(
    is_used: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that a pass writes to is none."""

    class Takes(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            loss = model(**inputs)["loss"]
            print(float(loss), file=self.out)
            if is_used:
                next(self.loaders["unlabelled"])
            return loss

    trainer = make_trainer(build("mlp"), tmp_path, trainer=Takes, max_steps=2)
    trainer.loaders = {"unlabelled": iter(DataLoader(range(99)))}
    with (tmp_path / "log.txt").open("w") as trainer.out:
        trainer.train()
    told = [r.message for r in caplog.records if "Each pass" in r.message]
    assert len(told) == is_used
    assert all("takes from `loaders` of the trainer" in message for message in told)


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


@pytest.mark.parametrize("is_put_back", [True, False])
@pytest.mark.parametrize(("begins", "every", "seen_at"), [(0, 1, 0), (2, 1, 2), (4, 3, 3)])
def test_weights_may_be_moved_and_put_back_at_any_step(
    begins: int, every: int, seen_at: int, is_put_back: bool, tmp_path: Path
) -> None:
    """As adversarial training does after a warm-up."""

    class Adversarial(SAMTrainer):
        passes = itertools.count()

        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            weight, i = model.body[0].weight, next(self.passes)
            if i >= begins * 2 // every and i % every == 0:
                before = weight.detach().clone()
                with torch.no_grad():
                    weight.add_(0.1)
                    weight.copy_(before) if is_put_back else None
            return model(**inputs)["loss"]

    trainer = make_trainer(build("mlp"), tmp_path, trainer=Adversarial, max_steps=6)
    if is_put_back:
        trainer.train()
        return
    with pytest.raises(ValueError, match=r"one that changed `body.0.weight`"):
        trainer.train()
    assert trainer.state.global_step == seen_at


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


@pytest.mark.parametrize("how", ["set_", "data", "once", "written as it is", "frozen"])
def test_parameters_that_a_pass_moves_as_they_are(how: str, tmp_path: Path) -> None:
    """As an LSTM on a GPU does, which packs its weights anew in each pass: it trains equally."""

    class Moves(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            weight = model.body[0].weight
            with torch.no_grad():
                if how == "set_":
                    weight.set_(weight.detach().clone())
                elif how == "data" or (how == "once" and not hasattr(self, "is_moved")):
                    weight.data = weight.data.t().contiguous().t()
                    self.is_moved = True
                elif how == "written as it is":
                    weight.mul_(1.0)
                elif how == "frozen":
                    self.table.weight.mul_(1.0)
            return super().compute_loss(model, inputs, *args, **kwargs)

    trained = []
    for kind in (SAMTrainer, Moves):
        model = build("mlp")
        trainer = make_trainer(model, tmp_path, trainer=kind, gradient_accumulation_steps=2)
        trainer.table = nn.Embedding(4, 4).requires_grad_(False)
        trainer.train()
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*trained, rtol=0, atol=1e-12)  # sums in another order


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
