"""The steps that are timed: of SAMTrainer, of the plain Trainer, bare ones, and SAM of others."""

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn
from transformers import Trainer

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.vision import ModelSource, load_classifier

CLASSES = 50
RHO = 0.05
Batch = Mapping[str, Tensor]
Step = Callable[[], None]


@dataclass(frozen=True)
class Workload:
    """A model and one batch on the device."""

    name: str
    model: nn.Module
    batch: Batch
    bf16: bool

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum, of its own for each contender."""
        return torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)

    def autocast(self) -> AbstractContextManager[Any]:
        """What the Trainer would use."""
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16) if self.bf16 else nullcontext()

    def forward_backward(self) -> None:
        """One pass, as short as it can be written."""
        with self.autocast():
            loss = self.model(**self.batch)["loss"]
        loss.backward()


class TinyTensors(nn.Module):
    """250 layers of 8 units: 500 tensors whose arithmetic takes no time beside launching it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(250))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss for x of shape (batch, 8) and labels of shape (batch,)."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return {"loss": nn.functional.cross_entropy(x, labels)}


def workload(name: str, size: int, batch_size: int, *, bf16: bool) -> Workload:
    """Build a network of timm at `size` pixels, or the tiny tensors, with a random batch."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "tiny tensors":
        x, labels = torch.randn(batch_size, 8), torch.randint(8, (batch_size,))
        batch = {"x": x.to(device), "labels": labels.to(device)}
        return Workload(name, TinyTensors().to(device), batch, bf16)
    assert timm.is_model(name)
    source = ModelSource(name, init_scratch=True, image_size=size)
    model = load_classifier(source, [str(i) for i in range(CLASSES)]).model
    model.to(device=device, memory_format=torch.channels_last)
    pixels = torch.randn(batch_size, 3, size, size).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (batch_size,))
    batch = {"pixel_values": pixels.to(device), "labels": labels.to(device)}
    return Workload(f"{name}, {size} px", model, batch, bf16)


def trainer_of(
    work: Workload, kind: type[Trainer], rho: float, **settings: Any
) -> tuple[Trainer, nn.Module]:
    """Return a Trainer as its loop would leave it before a step, and its prepared model."""
    args = SAMConfig(
        output_dir=tempfile.mkdtemp(),
        rho=rho,
        bf16=work.bf16,
        dataloader_pin_memory=False,
        report_to="none",
        **settings,
    )
    trainer = kind(model=work.model, args=args)
    trainer.current_gradient_accumulation_steps = 1
    prepared, trainer.optimizer = trainer.accelerator.prepare(work.model, work.optimizer())
    return trainer, prepared


def trainer_step(work: Workload, kind: type[Trainer], *, rho: float, passes: int = 1) -> Step:
    """Return a step of a Trainer; `passes` of its training steps to one of the optimizer."""
    trainer, prepared = trainer_of(work, kind, rho)

    def step() -> None:
        for _ in range(passes):
            trainer.training_step(prepared, work.batch)
        trainer.optimizer.step()
        prepared.zero_grad()

    return step


def bare_step(work: Workload) -> Step:
    """Return two forward-backward passes and one step of the optimizer, in a plain loop."""
    optimizer = work.optimizer()

    def step() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            work.forward_backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class TwoStepSAM:
    """SAM in the interface of davda54/sam, a loop over the parameters, written from its README."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.old = base, {}

    @torch.no_grad()
    def first_step(self, *, zero_grad: bool) -> None:
        """Move to w + epsilon."""
        params = [p for group in self.base.param_groups for p in group["params"]]
        norms = [p.grad.norm(p=2) for p in params if p.grad is not None]
        scale = RHO / (torch.norm(torch.stack(norms), p=2) + 1e-12)
        for p in params:
            if p.grad is not None:
                self.old[p] = p.data.clone()
                p.add_(p.grad * scale)
        if zero_grad:
            self.base.zero_grad()

    @torch.no_grad()
    def second_step(self, *, zero_grad: bool) -> None:
        """Move back to w, and step."""
        for p, old in self.old.items():
            p.data = old
        self.old = {}
        self.base.step()
        if zero_grad:
            self.base.zero_grad()


def two_step(forward_backward: Step, sam: Any) -> Step:
    """Return a step by an optimizer with `first_step` and `second_step`."""

    def step() -> None:
        forward_backward()
        sam.first_step(zero_grad=True)
        forward_backward()
        sam.second_step(zero_grad=True)

    return step


def two_step_in_trainer(work: Workload) -> Step:
    """Return a step by `TwoStepSAM` around the passes of a Trainer."""
    trainer, prepared = trainer_of(work, Trainer, 0.0)
    sam = TwoStepSAM(trainer.optimizer)
    return two_step(lambda: trainer.training_step(prepared, work.batch), sam)


def shortest_step(work: Workload) -> Step:
    """Return SAM's arithmetic alone in a plain loop, for all tensors at once where torch can."""
    optimizer, params = work.optimizer(), list(work.model.parameters())

    def step() -> None:
        work.forward_backward()
        with torch.no_grad():
            perturbation = [p.grad for p in params]
            norm = torch.stack(torch._foreach_norm(perturbation)).norm()
            torch._foreach_mul_(perturbation, RHO / (norm + 1e-12))
            saved = [p.clone() for p in params]
            torch._foreach_add_(params, perturbation)
        optimizer.zero_grad()
        del perturbation
        work.forward_backward()
        with torch.no_grad():
            torch._foreach_copy_(params, saved)
        optimizer.step()
        optimizer.zero_grad()

    return step


def contenders(work: Workload) -> dict[str, Step]:
    """Return what is timed, by name; a package that is not installed is left out."""
    steps = {
        "SAMTrainer": trainer_step(work, SAMTrainer, rho=RHO),
        "Trainer": trainer_step(work, Trainer, rho=0.0),
        "two passes": bare_step(work),
        "two passes of Trainer": trainer_step(work, Trainer, rho=0.0, passes=2),
        "loop as davda54/sam": two_step(work.forward_backward, TwoStepSAM(work.optimizer())),
        "the same in a Trainer": two_step_in_trainer(work),
        "arithmetic alone": shortest_step(work),
    }
    if importlib.util.find_spec("pytorch_optimizer"):
        from pytorch_optimizer import SAM

        sgd = {"lr": 1e-4, "momentum": 0.9}
        sam = SAM(work.model.parameters(), torch.optim.SGD, rho=RHO, **sgd)
        steps["pytorch_optimizer"] = two_step(work.forward_backward, sam)
    return steps
