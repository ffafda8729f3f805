"""Clean passes that compute every gradient, as they did before they left out what is not used."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from cases import build, make_trainer
from observers import Communication
from sharded import full_weights, odd_model, trainer_of
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hf_sam import SAMTrainer
from hf_sam.backends.ddp import Replicated
from hf_sam.backends.fsdp2 import Sharded


@contextmanager
def whole_backward() -> Iterator[None]:
    with (
        mock.patch.multiple(Replicated, leaves=nothing),
        mock.patch.multiple(Sharded, leaves=nothing),
    ):
        yield


def nothing(*args: Any, **kwargs: Any) -> None:
    """No leaves at which a backward pass could end."""


def trained(make: Callable[[], SAMTrainer]) -> tuple[list[float], list[dict[str, Any]], int]:
    """The weights after a training, what it has logged, and its operations in FLOPs."""
    torch.manual_seed(3)  # of dropout
    trainer = make()
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    is_sharded = isinstance(
        trainer._parts_cache.parts_of(trainer.model_wrapped, trainer).engine, Sharded
    )
    weights = full_weights(trainer.model) if is_sharded else flat(trainer.model)
    assert math.isfinite(sum(weights))
    logs = [
        {
            name: value
            for name, value in entry.items()
            if "second" not in name and "time" not in name
        }
        for entry in trainer.state.log_history
    ]
    for entry in logs:
        entry.pop("train_overhead", None)
    return weights, logs, counter.get_total_flops()


def flat(model: torch.nn.Module) -> list[float]:
    params: list[Tensor] = [param.detach().double().flatten() for param in model.parameters()]
    return torch.cat(params).tolist()


def differences(make: Callable[[], SAMTrainer]) -> list[str]:
    """What differs between clean passes of whole and of limited backward passes."""
    weights, logs, flops = trained(make)
    with whole_backward():
        all_weights, all_logs, all_flops = trained(make)
    found = ["weights"] if weights != all_weights else []
    found += ["logs"] if logs != all_logs else []
    return found + (["as many operations"] if flops == all_flops else [])


def differences_under_ddp(folder: Path, scope: str) -> list[str]:
    def make() -> SAMTrainer:
        settings = {"perturb": "body.2", "rho": 0.5, "gradient_accumulation_steps": 2}
        return make_trainer(build("mlp"), folder, ascent_scope=scope, **settings)

    return differences(make)


def loss_with_unused_parameters(folder: Path) -> float:
    """DDP in global scope, where a parameter that is not perturbed is in the first pass only."""
    settings = {"ddp_find_unused_parameters": True, "gradient_accumulation_steps": 2}
    kind = {"perturb": "body.1", "ascent_scope": "global", "rho": 0.5}
    trainer = make_trainer(build("sometimes_used"), folder, **kind, **settings)
    return float(trainer.train().training_loss)


def differences_under_fsdp2(folder: Path) -> list[str]:
    return differences(lambda: trainer_of(folder, odd_model(), perturb="body.3", rho=0.5))


def reduced_bytes(folder: Path) -> list[int]:
    """What FSDP2 reduces in two steps: limited, whole."""
    found = []
    for limit in (nullcontext, whole_backward):
        trainer = trainer_of(folder, odd_model(), perturb="body.3", max_steps=2)
        with limit(), Communication() as communication:
            trainer.train()
        found.append(sum(n for op, n in communication.bytes.items() if "reduce_scatter" in op))
    return found
