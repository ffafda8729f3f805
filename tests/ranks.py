"""Run by torchrun on each rank: training under DDP against the oracle's mean over ranks."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import oracles
import torch
import torch.distributed as dist
from cases import Recorder, build, examples, make_trainer
from transformers import TrainerCallback

STEPS = 6


class Draws(TrainerCallback):
    """Remembers torch's random state when each step begins."""

    def __init__(self) -> None:
        self.states: list[torch.Tensor] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.states.append(torch.get_rng_state())


def error(name: str, accumulation: int, folder: Path) -> float:
    """Largest error over all weights after a few steps of plain SGD."""
    model, recorder, draws = build(name), Recorder(), Draws()
    reference = copy.deepcopy(model).train()
    trainer = make_trainer(
        model,
        folder,
        recorder=recorder,
        max_steps=STEPS,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=4,
        data=examples(count=96),
        ddp_find_unused_parameters=name == "sometimes_used",
    )
    trainer.add_callback(draws)
    trainer.train()
    assert dist.get_world_size() == 2
    gradient, w = oracles.flat_gradient(reference), oracles.flat_weights(reference)
    for step in range(STEPS):
        torch.set_rng_state(draws.states[step])
        window = recorder.batches[step * accumulation : (step + 1) * accumulation]
        g = oracles.sam_gradient(gradient, w, window, rho=0.05)
        dist.all_reduce(g)
        w = w - 0.1 * g / dist.get_world_size()
    return float((oracles.flat_weights(model) - w).abs().max())


def main() -> None:
    folder = Path(sys.argv[1])
    found = {
        f"{name}, {accumulation} micro-batches": error(name, accumulation, folder / "out")
        for name in ("mlp", "dropout_and_batch_norm", "sometimes_used")
        for accumulation in (1, 2)
    }
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
