"""Whole trainings under ZeRO on two ranks, and what each must leave."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import build, examples, make_trainer
from deepspeed_cpu import config, deepspeed_on_cpu, master_weights, whole_state
from observers import Communication, files, without_times
from torch import Tensor, nn
from transformers import Trainer

STAGES = (1, 2, 3)
AUTOCAST = {
    "enabled": True,
    "dtype": "bfloat16",
    "lower_precision_safe_modules": ["torch.nn.Linear"],
}
ROWS = examples(torch.float32)
EVALUATED = {"trainer_kwargs": {"eval_dataset": examples(torch.float32, count=8)}}
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}


def trainer_of(folder: Path, model: nn.Module, engine: dict[str, Any], **settings: Any) -> Trainer:
    defaults = {
        "max_steps": 8,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "optim": "adamw_torch",
        "learning_rate": 0.01,
        "max_grad_norm": 0.3,
        "rho": 0.5,
        "use_cpu": False,
        "data": ROWS,
        "deepspeed": copy.deepcopy(engine),
    }
    trainer = make_trainer(model, folder, **{**defaults, **settings})
    assert trainer.accelerator.num_processes == dist.get_world_size(), "each rank trains alone"
    return trainer


def hashes(state: dict[str, Tensor]) -> dict[str, float]:
    """A number that two tensors of other bits hardly share, by name."""
    return {name: float(x.double().sin().sum()) for name, x in state.items()}


def left(trainer: Trainer) -> dict[str, Any]:
    """What a training under ZeRO has made of both copies of the weights."""
    assert trainer.deepspeed.zero_optimization(), "it is another engine's"
    return {"weights": hashes(whole_state(trainer)), "masters": hashes(master_weights(trainer))}


def resumed_differs(folder: Path, engine: dict[str, Any]) -> list[str]:
    """Eight steps, and the last four again from the checkpoint in between."""
    found = []
    for start in (None, str(folder / "checkpoint-4")):
        model = build("dropout", torch.float32, seed=9 if start else 0)
        trainer = trainer_of(folder, model, engine, logging_steps=1, **SAVING)
        trainer.train(resume_from_checkpoint=start)
        dist.barrier()
        log = without_times(trainer.state.log_history[-2])
        found.append({**left(trainer), "log": log})
    return [name for name, value in found[0].items() if value != found[1][name]]


def checkpoint_differs(folder: Path, engine: dict[str, Any]) -> list[str]:
    """Name the files that only one of SAM's and the plain Trainer's checkpoints has."""
    found = []
    for rho in (0.5, 0.0):
        out = folder / f"rho{rho}"
        trainer_of(out, build("mlp", torch.float32), engine, rho=rho, **SAVING).train()
        dist.barrier()
        found.append(set(files(out / "checkpoint-8")))
    return sorted(found[0] ^ found[1])


def rho_zero_differs(folder: Path, engine: dict[str, Any]) -> list[str]:
    """Name what SAMTrainer with rho 0 has otherwise than the plain Trainer."""
    found = []
    for kind in ({"rho": 0.0}, {"trainer": Trainer}):
        trainer = trainer_of(folder, build("dropout", torch.float32), engine, **kind)
        trainer.train()
        found.append({**left(trainer), "log": without_times(trainer.state.log_history)})
    return [name for name, value in found[0].items() if value != found[1][name]]


def fp32_of_checkpoint_differs(folder: Path, engine: dict[str, Any]) -> float:
    """The largest difference between `zero_to_fp32` of a checkpoint and the trained weights."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    trainer = trainer_of(folder, build("mlp", torch.float32), engine, **SAVING)
    trainer.train()
    dist.barrier()
    read = get_fp32_state_dict_from_zero_checkpoint(str(folder / "checkpoint-8"))
    masters = master_weights(trainer)
    return max(float((read[name].flatten() - x).abs().max()) for name, x in masters.items())


def evaluated_differs(folder: Path, engine: dict[str, Any]) -> list[str]:
    """Name what evaluations, predictions and the best model's return change of a training."""
    found = []
    for asked in ({}, {"eval_strategy": "steps", "eval_steps": 1, **EVALUATED}):
        trainer = trainer_of(folder, build("mlp", torch.float32), engine, **asked)
        trainer.train()
        found.append(left(trainer))
    return [name for name, value in found[0].items() if value != found[1][name]]


def best_model_differs(folder: Path, engine: dict[str, Any]) -> float:
    """The evaluation loss of the model loaded at the end, less the smallest that was logged."""
    settings = {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True}
    model = build("mlp", torch.float32)
    trainer = trainer_of(folder, model, engine, **settings, **SAVING, **EVALUATED)
    trainer.train()
    logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    return abs(trainer.evaluate()["eval_loss"] - min(logged))


def rounding(folder: Path, engine: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """What is logged of a perturbation that passes round, or how training is stopped."""
    trainer = trainer_of(folder, build("mlp", torch.float32), engine, logging_steps=1, **settings)
    try:
        trainer.train()
    except ValueError as error:
        return {"message": str(error)}
    names = ("perturbation_fidelity", "perturbation_cosine", "loss", "sharpness")
    return {name: trainer.state.log_history[0].get(name) for name in names}


def own_optimizer_differs(folder: Path, stage: int) -> list[str]:
    """Name what DeepSpeed's configuration of optimizer or schedule makes otherwise.

    Its AdamW is to train as the Trainer's does, and its schedule under SAM as without.
    """
    params = {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
    adamw = {"type": "AdamW", "params": {**params, "torch_adam": True}}
    warmup = {"warmup_min_lr": 0.0, "warmup_max_lr": 0.01, "warmup_num_steps": 4}
    schedule = {"type": "WarmupLR", "params": {**warmup, "warmup_type": "linear"}}
    found, rates = [], []
    for engine, rho in (
        (config(stage, optimizer=adamw), 0.5),
        (config(stage), 0.5),
        (config(stage, optimizer=adamw, scheduler=schedule), 0.5),
        (config(stage, optimizer=adamw, scheduler=schedule), 0.0),
    ):
        model = build("mlp", torch.float32)
        trainer = trainer_of(folder, model, engine, rho=rho, logging_steps=1, warmup_steps=4)
        trainer.train()
        rates.append([entry["learning_rate"] for entry in trainer.state.log_history[:-1]])
        found.append(whole_state(trainer))
    largest = max(float(x.abs().max()) for x in found[1].values())
    error = max(float((found[0][name] - x).abs().max()) for name, x in found[1].items())
    wrong = [f"optimizer, by {error / largest}"] * (error > 1e-6 * largest)  # groups differ
    wrong += ["schedule"] * (rates[2] != rates[3])
    return wrong + ["no schedule"] * (len(set(rates[2])) == 1)


def refusal(folder: Path, engine: dict[str, Any], **settings: Any) -> str:
    """The message with which training is refused."""
    try:
        trainer_of(folder, build("mlp", torch.float32), engine, max_steps=1, **settings).train()
    except ValueError as error:
        return str(error)
    return "trained"


def moved_bytes(folder: Path, engine: dict[str, Any], rho: float) -> dict[str, int]:
    """What collectives move in six optimizer steps, by operation, without logging."""
    settings = {"max_steps": 6, "logging_strategy": "no", "rho": rho}
    trainer = trainer_of(folder, build("mlp", torch.float32), engine, **settings)
    with Communication() as communication:
        trainer.train()
    return dict(communication.bytes)


def under_deepspeed(check: Callable[[], Any]) -> Any:
    with deepspeed_on_cpu():
        return json.loads(json.dumps(check()))
