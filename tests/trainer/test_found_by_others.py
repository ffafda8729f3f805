"""Trainers as their users write them: globals, handlers of signals, copies of the arguments."""

import copy
import pickle
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
import torch
from cases import build, make_trainer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_sam import SAMConfig, SAMMixin, SAMTrainer
from hf_sam.step.holders import Holders


class Centre(nn.Module):
    """A loss whose centre moves with each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(4, dtype=torch.float64))

    def forward(self, logits: Tensor) -> Tensor:
        self.centre.mul_(0.9).add_(0.1 * logits.detach().mean(0))
        return (logits - self.centre).square().mean()


CENTRE = Centre()


class OfAGlobal(SAMTrainer):
    """Its loss module is a variable of the file."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        out = model(**inputs)
        return out["loss"] + CENTRE(out["logits"])


class OfAnAttribute(OfAGlobal):
    """The same as an attribute, which no name in the code leads to."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        out = model(**inputs)
        return out["loss"] + self.centre(out["logits"])


def test_a_module_that_is_a_variable_of_the_file_moves_once(tmp_path: Path) -> None:
    CENTRE.centre.zero_()
    weights = []
    for kind in (OfAGlobal, OfAnAttribute):
        model = build("mlp")
        trainer = make_trainer(model, tmp_path, trainer=kind, max_steps=4, rho=0.5)
        trainer.centre = Centre()
        trainer.train()
        weights.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    assert torch.equal(*weights) and torch.equal(CENTRE.centre, trainer.centre.centre)


def test_a_variable_with_the_name_of_an_attribute_is_none_of_the_trainers(tmp_path: Path) -> None:
    """`self.CENTRE` reads no variable of the file."""

    class Named(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            return self.CENTRE(model(**inputs)["logits"])

    trainer = make_trainer(build("mlp"), tmp_path, trainer=Named)
    trainer.CENTRE = Centre()
    modules = Holders.of(trainer.model, trainer).modules.values()
    assert trainer.CENTRE in modules and CENTRE not in modules


class Handled(SAMTrainer):
    """Gets a signal in a pass at w + epsilon: the first where an average, if any, has begun."""

    passes = 0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.passes += 1
        loss = super().compute_loss(*args, **kwargs)
        if self.passes == (4 if self.args.weight_average else 2):
            signal.raise_signal(signal.SIGUSR1)
        return loss


@pytest.fixture
def restored_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("restored_handler")
@pytest.mark.parametrize("average", [None, "swa:0.0"])
def test_a_handler_that_saves_in_mid_pass_saves_w(average: str | None, tmp_path: Path) -> None:
    """And training goes on as without it."""

    def ended(*, saves: bool) -> Tensor:
        settings = {"max_steps": 3, "rho": 0.5, "weight_average": average}
        trainer = make_trainer(build("mlp"), tmp_path, trainer=Handled, **settings)
        target = str(tmp_path / "saved")
        handler = (lambda *args: trainer.save_model(target)) if saves else lambda *args: None
        signal.signal(signal.SIGUSR1, handler)
        trainer.train()
        return torch.cat([param.detach().flatten() for param in trainer.model.parameters()])

    assert torch.equal(ended(saves=False), ended(saves=True))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    if average is None:
        after = build("mlp").state_dict()
    else:  # the mean over one step
        one = make_trainer(build("mlp"), tmp_path, max_steps=1, rho=0.5)
        one.train()
        after = one.model.state_dict()
    assert all(torch.equal(saved[name], x) for name, x in after.items())


class LaterRho(TrainerCallback):
    """SAM begins with the second step, by a rho that is 0 before."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.rho = 0.2 if state.global_step else 0.0


@pytest.mark.parametrize("method", ["vasso", "friendly_sam"])
def test_a_memory_is_read_where_rho_is_set_by_a_callback(method: str, tmp_path: Path) -> None:
    ends = []
    for resumed in (None, str(tmp_path / "checkpoint-3")):
        model = build("mlp")
        settings = {"rho": 0.0, "method": method, "save_strategy": "steps", "save_steps": 3}
        trainer = make_trainer(model, tmp_path, max_steps=6, **settings)
        trainer.add_callback(LaterRho())
        trainer.train(resume_from_checkpoint=resumed)
        ends.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    assert torch.equal(*ends)


def test_copies_of_the_arguments_keep_the_token_and_checkpoints_do_not(tmp_path: Path) -> None:
    args = SAMConfig(output_dir=str(tmp_path), hub_token="hf_x", use_cpu=True)
    for copied in (copy.copy(args), copy.deepcopy(args)):
        assert type(copied) is SAMConfig and copied == args and copied.hub_token == "hf_x"
    assert getattr(pickle.loads(pickle.dumps(args)), "hub_token", None) is None


def test_something_else_called_as_a_counter_of_trls(tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path, max_steps=1)
    trainer._metrics = {"lock": Lock()}
    trainer.train()


class CountsALock(SAMTrainer):
    """Names what cannot be copied."""

    counted_once = ("lock",)


def test_a_counter_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path, trainer=CountsALock, max_steps=1)
    trainer.lock = Lock()
    with pytest.raises(ValueError, match="`counted_once` must .* got `lock` of CountsALock"):
        trainer.train()


class Silent(Trainer):
    """Returns nothing from `train`."""

    def train(self, *args: Any, **kwargs: Any) -> None:
        super().train(*args, **kwargs)


class SilentSAM(SAMMixin, Silent):
    """With SAM."""


def test_a_class_that_returns_nothing_is_trained(tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path, trainer=SilentSAM, max_steps=1)
    assert trainer.train() is None and trainer.state.global_step == 1


class Stored(Mapping[int, Tensor]):
    """Features on a disk, read when they are asked for."""

    def __init__(self, *, is_closed: bool = False) -> None:
        self.read, self.is_closed = 0, is_closed

    def __getitem__(self, key: int) -> Tensor:
        self.read += 1
        return torch.zeros(1)

    def __iter__(self) -> Iterator[int]:
        return iter(range(5000))

    def __len__(self) -> int:
        if self.is_closed:
            raise OSError("closed")
        return 5000


def test_a_store_of_features_is_not_read_whole(tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path, max_steps=1)
    trainer.store, trainer.closed = Stored(), Stored(is_closed=True)
    trainer.train()
    assert trainer.store.read < 500


def test_an_optimizer_of_a_part_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("mlp")
    held = torch.optim.SGD(list(model.parameters())[2:], lr=0.1)
    given = {"optimizers": (held, None)}
    make_trainer(model, tmp_path, max_steps=1, trainer_kwargs=given).train()
    assert (
        "holds 2 of the 4 parameters with `requires_grad`, and not `body.0.weight`" in caplog.text
    )
