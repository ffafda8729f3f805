"""Whole trainings that one process and two ranks must get equally right."""

import copy
import os
import shutil
import signal
from itertools import count
from pathlib import Path
from typing import Any

import oracles
import torch
import torch.distributed as dist
from cases import Draws, Recorder, build, examples, make_trainer
from observers import Communication, Observer, files, fingerprint, without_times
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

PLAIN = {"trainer": Trainer, "config": TrainingArguments}
DROPOUT = "dropout_and_batch_norm"


def all_ranks_here() -> None:
    """Wait for the rank that writes, or for those that read."""
    if dist.is_initialized():
        dist.barrier()


def emptied(folder: Path) -> Path:
    """One folder for all ranks, emptied by the first."""
    all_ranks_here()
    if not dist.is_initialized() or dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    all_ranks_here()
    return folder


def saving(scope: str, **settings: Any) -> dict[str, Any]:
    """AdamW and accumulation, with a checkpoint after each optimizer step."""
    return {
        "ascent_scope": scope,
        "optim": "adamw_torch",
        "learning_rate": 0.01,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "logging_steps": 1,  # a longer interval that was interrupted starts anew
        "save_strategy": "steps",
        "save_steps": 1,
        **settings,
    }


def observed(name: str, folder: Path, **settings: Any) -> tuple[Trainer, list[dict[str, Any]]]:
    """Train with evaluations at every second step; give the trainer, and the events it caused."""
    trainer = make_trainer(
        build(name),
        emptied(folder),
        eval_strategy="steps",
        eval_steps=2,
        trainer_kwargs={"eval_dataset": examples(count=8)},
        **settings,
    )
    observer = Observer()
    trainer.add_callback(observer)
    trainer.train()
    all_ranks_here()
    return trainer, observer.events


def differences_at_rho_zero(folder: Path) -> list[str]:
    """Train by the plain Trainer and by SAMTrainer with rho = 0; name what is not identical."""
    seen = []
    for kind in (PLAIN, {"rho": 0.0}):
        trainer, events = observed(
            DROPOUT,
            folder,
            optim="adamw_torch",
            gradient_accumulation_steps=2,
            max_steps=6,
            save_strategy="steps",
            save_steps=2,
            **kind,
        )
        seen.append(
            {
                "weights": fingerprint(trainer.model),
                "log": without_times(trainer.state.log_history),
                "events": events,
                "checkpoints": files(folder),
            }
        )
    assert len(seen[0]["events"]) > 40
    assert len(seen[0]["checkpoints"]) > 10
    return [name for name, value in seen[0].items() if value != seen[1][name]]


def events_that_saw_other_weights(
    scope: str, folder: Path, trainer_class: dict[str, Any] | None = None
) -> list[str]:
    """Train with rho > 0; name the events that saw other weights than a finished step left."""
    settings = saving(scope, rho=0.5, **(trainer_class or {}))
    trainer, events = observed("batch_norm", folder, **settings)
    kinds = {event["event"] for event in events}
    assert {"on_substep_end", "on_prediction_step", "on_save", "on_pre_optimizer_step"} <= kinds
    wrong, current = [], ""
    for event in events:
        if event["event"] in ("on_init_end", "on_train_begin", "on_step_end"):
            current = event["trainable"]
        elif event["event"] == "on_optimizer_step":
            continue
        if event["trainable"] != current:
            wrong.append(f"{event['event']} of step {event['step']}")
    for step in range(1, 9):
        saved = build("batch_norm", seed=9)
        trainer._load_from_checkpoint(str(folder / f"checkpoint-{step}"), saved)
        ends = [e for e in events if e["event"] == "on_step_end" and e["step"] == step]
        if fingerprint(saved, "parameters") != ends[0]["trainable"]:  # buffers are each rank's own
            wrong.append(f"checkpoint {step}")
    return wrong


def resumed_differs(scope: str, folder: Path, *, at: int = 4, **settings: Any) -> list[str]:
    """Train 8 steps, and again from the checkpoint after `at`; name what is not identical."""
    found = []
    for start in (None, at):
        if start is None:
            emptied(folder)
        model = build(DROPOUT, seed=9 if start else 0)
        trainer = make_trainer(model, folder, **saving(scope, **settings))
        trainer.train(resume_from_checkpoint=start and str(folder / f"checkpoint-{start}"))
        all_ranks_here()
        found.append(
            {
                "weights": fingerprint(trainer.model),
                "log": without_times(trainer.state.log_history[-2]),
                "checkpoint": files(folder / "checkpoint-8"),
            }
        )
    return [name for name, value in found[0].items() if value != found[1][name]]


def average_saved_by_rank_zero(folder: Path) -> float:
    """How far what one rank saves alone, while it trains, is from the average that it has."""
    emptied(folder)
    differences = [0.0]

    class Saves(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4 and state.is_world_process_zero:
                trainer.save_model(str(folder / "alone"))
                saved = load_file(folder / "alone" / "model.safetensors")
                average = trainer._average.tensors
                differences[:] = [float((saved[n] - x).abs().max()) for n, x in average.items()]
                assert len(differences) > 4

    settings = {"weight_average": "swa:0", "per_device_train_batch_size": 4, "max_steps": 6}
    trainer = make_trainer(build("batch_norm"), folder / "run", **settings)
    trainer.add_callback(Saves())
    trainer.train()
    return max(differences)


def train_until_killed(scope: str, folder: Path, forward: int) -> None:
    """End the process in the given forward pass, as a failing machine does."""
    model, passes = build(DROPOUT), count(1)

    def strike(*_: Any) -> None:
        if next(passes) == forward:
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(strike)
    make_trainer(model, folder, **saving(scope)).train()


def killed_and_resumed_differs(scope: str, folder: Path) -> list[str]:
    """Go on from the last checkpoint in `folder`; compare with a training that was not killed."""
    checkpoint = get_last_checkpoint(str(folder))
    assert checkpoint and not checkpoint.endswith("-8"), checkpoint
    resumed = make_trainer(build(DROPOUT, seed=9), folder, **saving(scope))
    resumed.train(resume_from_checkpoint=checkpoint)
    whole = folder.parent / f"{folder.name}-whole"
    straight = make_trainer(build(DROPOUT), emptied(whole), **saving(scope))
    straight.train()
    all_ranks_here()
    found = {
        "weights": (fingerprint(resumed.model), fingerprint(straight.model)),
        "checkpoint": (files(folder / "checkpoint-8"), files(whole / "checkpoint-8")),
    }
    return [name for name, (first, second) in found.items() if first != second]


def global_weights(
    name: str, optimizer: dict[str, Any], dtype: torch.dtype, count: int, split: tuple[int, int]
) -> list[float]:
    """Twelve steps in global scope; of 40 examples the windows have 16, 16 and 8."""
    accumulation, batch = split
    trainer = make_trainer(
        build(name, dtype),
        Path("unused"),
        data=examples(dtype, count),
        dtype=dtype,
        ascent_scope="global",
        num_train_epochs=4,
        max_steps=-1,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=batch,
        **optimizer,
    )
    trainer.train()
    assert trainer.state.global_step == 12
    return oracles.flat_weights(trainer.accelerator.unwrap_model(trainer.model)).tolist()


def error_to_the_equations(name: str, scope: str, accumulation: int) -> float:
    """Largest error over ten steps of SGD with momentum to the m-sharpness oracle, on any ranks."""
    steps, lr = 10, 0.1
    # torch skips a parameter without a gradient: no momentum step, unlike the oracle
    has_unused = name in ("sometimes_used", "routed")
    momentum = 0.0 if has_unused else 0.9
    model, recorder, draws = build(name), Recorder(), Draws()
    reference = copy.deepcopy(model).train()
    trainer = make_trainer(
        model,
        Path("unused"),
        recorder=recorder,
        max_steps=steps,
        ascent_scope=scope,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=4,
        data=examples(count=96),
        optim_args=f"momentum={momentum}",
        ddp_find_unused_parameters=has_unused,
    )
    trainer.add_callback(draws)
    trainer.train()
    gradient, w = oracles.flat_gradient(reference), oracles.flat_weights(reference)
    state: dict[str, Tensor] = {}
    for step in range(steps):
        torch.set_rng_state(draws.states[step])
        window = recorder.batches[step * accumulation : (step + 1) * accumulation]
        g = oracles.sam_gradient(gradient, w, window, rho=0.05, shared=scope == "rank")
        if dist.is_initialized():
            dist.all_reduce(g)
            g = g / dist.get_world_size()
        w = oracles.sgd(w, g, state, lr=lr, momentum=momentum)
    return float((oracles.flat_weights(model) - w).abs().max())


def moved_bytes(model: str, accumulation: int, kind: dict[str, Any]) -> dict[str, int]:
    """What collectives move in six optimizer steps, by operation, without logging."""
    trainer = make_trainer(
        build(model),
        Path("unused"),
        max_steps=6,
        logging_strategy="no",
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=2,
        **kind,
    )
    with Communication() as communication:
        trainer.train()
    return dict(communication.bytes)
