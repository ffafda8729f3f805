"""Checks at the start of training, which reject what SAM cannot train correctly."""

import inspect
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import DataCollatorWithFlattening, Trainer
from transformers.trainer_utils import has_length
from transformers.training_args import OptimizerNames
from transformers.utils import is_sagemaker_mp_enabled, logging

from ..backends.rules import (
    require_one_perturbation,
    require_supported_backend,
    require_supported_model,
)
from ..config import SAMArguments
from .generating import generates
from .parts import UNNAMED, Parts

logger = logging.get_logger(__name__)

# trl's trainers whose batches hold the two examples of a pair in different halves
PAIRING = frozenset(
    {"DPOTrainer", "RewardTrainer", "CPOTrainer", "ORPOTrainer", "KTOTrainer", "TPOTrainer"}
)


def check_backend(trainer: Trainer, sam: SAMArguments) -> None:
    """Reject what is known to be unsupported before the model is prepared.

    Args:
        trainer: The Trainer, about to train.
        sam: SAM's settings.

    Raises:
        ValueError: With what is unsupported and what to use instead.
    """
    sam.require_valid_fields()
    uncut = why_uncut(trainer)
    if sam.ascent_fraction < 1 and uncut:
        raise ValueError(
            f"`ascent_fraction` must cut a batch between examples, got {uncut}: set "
            "`ascent_interval` instead."
        )
    if getattr(trainer.args, "enable_jit_checkpoint", False) and sam.chosen_method.has_memory:
        raise ValueError(
            f"`enable_jit_checkpoint` saves before the optimizer's step, got {sam.method}, whose "
            "memory is then that of after it: leave it out, or use a method without a memory."
        )
    if generates(type(trainer)):
        raise ValueError(
            f"SAM must pass twice over one batch, got a {type(trainer).__name__}, which generates "
            "texts while it trains, new ones in each pass: use it without SAM, or set `rho=0`."
        )
    optimizer = None if trainer.optimizer is None else base_optimizer(trainer)
    require_supported_backend(
        _backend(trainer),
        devices=trainer.args.n_gpu,
        optimizer=OptimizerNames(trainer.args.optim).value
        if optimizer is None
        else type(optimizer).__name__.lower(),
        ranks_per_batch={
            "context": trainer.get_cp_size(),
            "sequence": trainer.get_sp_size(),
            "tensor": trainer.get_tp_size(),
        },
    )


def check_model(trainer: Trainer, sam: SAMArguments, model: nn.Module, parts: Parts) -> None:
    """Reject what only the prepared model shows to be unsupported.

    Args:
        trainer: The Trainer, about to train.
        sam: SAM's settings.
        model: The model as the backend has wrapped it.
        parts: The parts of the model.

    Raises:
        ValueError: With what is unsupported and what to use instead.
    """
    ranks = trainer.accelerator.num_processes
    accumulation = trainer.args.gradient_accumulation_steps
    method, optimizer = sam.chosen_method, base_optimizer(trainer)
    scope, is_global = sam.ascent_scope, method.scope == "global"
    effective = "global" if scope is None and is_global else scope
    require_supported_model(model, parts.params)
    parts.engine.require_supported(
        parts.params, scope=effective, accumulation=accumulation, ranks=ranks
    )
    loader = trainer.callback_handler.train_dataloader
    if not parts.engine.keeps_leftovers and accumulation > 1 and not has_length(loader):
        raise ValueError(
            "DeepSpeed must know where an epoch ends, got data of unknown length and "
            f"`gradient_accumulation_steps={accumulation}`, of which a last part is never stepped: "
            "give the data set a length, or accumulate nothing."
        )
    if not parts.engine.keeps_memory and (method.has_memory or not method.has_clean_pass):
        raise ValueError(
            f"{sam.method} must keep a direction from step to step, got DeepSpeed, whose shards "
            "have no place for it: use another method, as sam or gsam, or FSDP2."
        )
    if not parts.trainable:
        raise ValueError(
            "SAM must find a parameter that is trained, got a model whose parameters are all "
            "frozen: set `requires_grad` of some, as for the plain Trainer."
        )
    if optimizer is not None:  # there is none in a training step outside of `train()`
        require_descent_only(optimizer)
        method.require_optimizer(optimizer)
    _warn_of_untrained(parts, optimizer)
    _check_outside(sam, parts, ranks)
    if is_global:
        require_one_perturbation(
            sam.method, scope=sam.ascent_scope, accumulation=accumulation, ranks=ranks
        )
    if method.changes_gradient and isinstance(optimizer, torch.optim.SparseAdam):
        raise ValueError(
            f"SparseAdam must find sparse gradients, got {sam.method}, which makes them dense: use "
            "another optimizer, or the method sam."
        )


def _warn_of_untrained(parts: Parts, optimizer: torch.optim.Optimizer | None) -> None:
    """Warn of parameters with `requires_grad` that the optimizer leaves alone."""
    held = set() if optimizer is None else set(map(id, parts.engine.optimized(optimizer)))
    left = [name for name, param in parts.trainable.items() if id(param) not in held]
    if held and left:
        logger.warning(
            f"The optimizer holds {len(parts.trainable) - len(left)} of the {len(parts.trainable)} "
            f"parameters with `requires_grad`, and not `{left[0]}`: SAM perturbs all of them. Set "
            "`requires_grad=False` for those that are not to be trained."
        )


def _check_outside(sam: SAMArguments, parts: Parts, ranks: int) -> None:
    """Reject or warn of what is unsupported for parameters that only the optimizer holds."""
    unnamed = [name for name in parts.outside if name.startswith(f"trainer.{UNNAMED}.")]
    if sam.adaptive and unnamed:
        raise ValueError(
            "`adaptive` must know the names of parameters, as it scales the weights and not the "
            f"biases, got {len(unnamed)} in the optimizer that neither the model nor an attribute "
            "of the trainer holds: keep their module as an attribute of the trainer."
        )
    if parts.outside and ranks > 1 and sam.chosen_method.scope == "global":
        raise ValueError(
            f"{sam.method} must have the gradient of all ranks, got `{next(iter(parts.outside))}` "
            "outside the model, which each rank trains for itself: make it a part of the model."
        )
    if parts.outside and ranks > 1:
        logger.warning(
            f"`{next(iter(parts.outside))}` lies outside the model: each rank trains a copy of its "
            "own, as with the plain Trainer. Make it a part of the model to have one."
        )


def require_descent_only(optimizer: torch.optim.Optimizer) -> None:
    """Raise a ValueError for an optimizer that makes its own passes, as another SAM, or climbs."""
    kind = type(optimizer)
    closure = inspect.signature(kind.step).parameters.get("closure")
    needs_closure = closure is not None and closure.default is closure.empty
    is_sam = hasattr(kind, "first_step") or any("SAM" in base.__name__ for base in kind.__mro__)
    if needs_closure or is_sam:
        raise ValueError(
            f"the base optimizer must step along the gradient that SAM leaves, got {kind.__name__}"
            ", which makes passes of its own: use the optimizer that it wraps, as SGD or AdamW."
        )
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError(
            f"the base optimizer must step down, got {kind.__name__} with maximize=True, for which "
            "SAM would perturb the wrong way: minimize the negative of what is maximized."
        )


def leave_evaluation(model: nn.Module, optimizer: Any) -> None:
    """Put what swaps weights for evaluations into training mode, which is no part of a pass.

    These are optimizers (schedule-free) and modules that merge adapters into their weights.
    """
    if not all(part.training for part in (model, *model.children())):  # a wrapper stays in it
        model.train()
    if isinstance(optimizer, AcceleratedOptimizer):
        optimizer.train()


def require_called(trainer: Any, mixin: type, *, is_called: bool | None) -> None:
    """Raise a ValueError if an optimizer step was made without SAM's `training_step`.

    Args:
        trainer: The Trainer, while it trains.
        mixin: Whose `training_step` should have been called.
        is_called: Whether it was; None before the first step.
    """
    if trainer.sam_arguments.rho == 0 or is_called is not False:
        return
    kinds = [kind for kind in type(trainer).__mro__ if "training_step" in vars(kind)]
    name = "the trainer itself" if "training_step" in vars(trainer) else kinds[0].__name__
    raise ValueError(
        f"SAM must make the training step, got a `training_step` of {name} that does not call "
        f"{mixin.__name__}'s: mix {mixin.__name__} in before the class that has it, `class "
        f"MyTrainer({mixin.__name__}, ...)`, or call `super().training_step` there, at the first "
        "optimizer step too."
    )


def base_optimizer(trainer: Trainer) -> torch.optim.Optimizer:
    """Return the user's optimizer, without accelerate's wrapper."""
    optimizer = trainer.optimizer
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def _kinds(trainer: Trainer) -> frozenset[str]:
    return frozenset(kind.__name__ for kind in type(trainer).__mro__)


def why_uncut(trainer: Trainer) -> str | None:
    """Return why the rows of a micro-batch are not its examples, or None if they are."""
    pairing, collator = PAIRING & _kinds(trainer), trainer.data_collator
    if pairing:
        return f"a {min(pairing)}, which stacks pairs of them"
    if isinstance(collator, DataCollatorWithFlattening) or getattr(collator, "padding_free", False):
        return f"a {type(collator).__name__}, which joins them into one row"
    return None


def _backend(trainer: Trainer) -> str:
    if is_sagemaker_mp_enabled():  # which accelerate does not report
        return "SAGEMAKER_MP"
    if trainer.accelerator.is_fsdp2:
        return "FSDP2"
    return trainer.accelerator.distributed_type.value
