"""What SAM would train wrongly is refused when training starts: the facts of a Trainer."""

import inspect
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames
from transformers.utils import is_sagemaker_mp_enabled, logging

from .config import SAMArguments
from .distributed import (
    is_sharded,
    require_one_perturbation,
    require_supported_backend,
    require_supported_model,
)
from .generating import generates
from .parts import UNNAMED, Parts
from .schedule import SMALLEST_CUT, AscentSchedule, steps_of, within

logger = logging.get_logger(__name__)

# trl's, whose batches hold two halves that belong together
PAIRING = frozenset(
    {"DPOTrainer", "RewardTrainer", "CPOTrainer", "ORPOTrainer", "KTOTrainer", "TPOTrainer"}
)


def check_backend(trainer: Trainer, sam: SAMArguments) -> None:
    """Refuse what can be known before the model is prepared.

    Args:
        trainer: About to train.
        sam: Its settings.

    Raises:
        ValueError: Saying what cannot be had and what to use instead.
    """
    sam.require_valid_fields()
    uncut = _why_uncut(trainer)
    if sam.ascent_fraction < 1 and uncut:
        raise ValueError(
            f"`ascent_fraction` must cut a batch between examples, got {uncut}: set "
            "`ascent_interval` instead."
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
    """Refuse what only the prepared model shows.

    Args:
        trainer: About to train.
        sam: Its settings.
        model: As the backend has wrapped it.
        parts: Its own.

    Raises:
        ValueError: Saying what cannot be had and what to use instead.
    """
    ranks = trainer.accelerator.num_processes
    accumulation = trainer.args.gradient_accumulation_steps
    method, optimizer = sam.chosen_method, base_optimizer(trainer)
    scope, is_global = sam.ascent_scope, method.scope == "global"
    effective = "global" if scope is None and is_global else scope
    require_supported_model(
        model, parts.params, scope=effective, accumulation=accumulation, ranks=ranks
    )
    if not parts.trainable:
        raise ValueError(
            "SAM must find a parameter that is trained, got a model whose parameters are all "
            "frozen: set `requires_grad` of some, as for the plain Trainer."
        )
    if optimizer is not None:  # a training step may be made outside of a training
        require_descent_only(optimizer)
    _check_outside(sam, parts, ranks)
    if is_global:
        require_one_perturbation(
            sam.method, scope=sam.ascent_scope, accumulation=accumulation, ranks=ranks
        )
    method.require_optimizer(optimizer)
    if method.changes_gradient and isinstance(optimizer, torch.optim.SparseAdam):
        raise ValueError(
            f"SparseAdam must find sparse gradients, got {sam.method}, which makes them dense: use "
            "another optimizer, or the method sam."
        )
    if is_sharded(model):
        logger.info("The parameters are sharded: `ascent_scope` is global.")


def _check_outside(sam: SAMArguments, parts: Parts, ranks: int) -> None:
    """Refuse, or say, what cannot be had for parameters that only the optimizer knows."""
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
    """Raise a ValueError for an optimizer that makes passes of its own, SAM of others included."""
    kind = type(optimizer)
    closure = inspect.signature(kind.step).parameters.get("closure")
    needs_closure = closure is not None and closure.default is closure.empty
    if needs_closure or hasattr(optimizer, "first_step"):
        raise ValueError(
            f"the base optimizer must step along the gradient that SAM leaves, got {kind.__name__}"
            ", which makes passes of its own: use the optimizer that it wraps, as SGD or AdamW."
        )


def leave_evaluation(optimizer: Any) -> None:
    """Have an optimizer that moves the weights for evaluations move them back before a pass."""
    if isinstance(optimizer, AcceleratedOptimizer):
        optimizer.train()


def not_called(trainer: Trainer, mixin: type) -> ValueError:
    """Return the error of a trainer whose own `training_step` has taken the place of SAM's.

    Args:
        trainer: After an optimizer step.
        mixin: Whose `training_step` should have been called.
    """
    kinds = [kind for kind in type(trainer).__mro__ if "training_step" in vars(kind)]
    name = "an attribute of the trainer" if "training_step" in vars(trainer) else kinds[0].__name__
    return ValueError(
        f"SAM must make the training step, got a `training_step` of {name} that does not call "
        f"{mixin.__name__}'s: mix {mixin.__name__} in before the class that has it, `class "
        f"MyTrainer({mixin.__name__}, ...)`, or call `super().training_step` there."
    )


def base_optimizer(trainer: Trainer) -> torch.optim.Optimizer:
    """Return the user's optimizer, without accelerate's wrapper."""
    optimizer = trainer.optimizer
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def _kinds(trainer: Trainer) -> frozenset[str]:
    return frozenset(kind.__name__ for kind in type(trainer).__mro__)


def _why_uncut(trainer: Trainer) -> str | None:
    """Say what keeps the first rows of a micro-batch from being its first examples, if anything."""
    pairing, collator = PAIRING & _kinds(trainer), trainer.data_collator
    if pairing:
        return f"a {min(pairing)}, which stacks pairs of them"
    if isinstance(collator, DataCollatorWithFlattening) or getattr(collator, "padding_free", False):
        return f"a {type(collator).__name__}, which joins them into one row"
    return None


def rows_of(trainer: Trainer) -> int:
    """Return into how many rows the micro-batch of a device can be cut."""
    if _why_uncut(trainer):
        return 1
    loader = trainer.callback_handler.train_dataloader  # maybe not the Trainer's own
    total = getattr(loader, "total_batch_size", None)  # by accelerate, if it has a sampler
    if total is not None:  # of all ranks, where the sampler knows of them
        own = loader.sampler if isinstance(loader.sampler, BatchSampler) else loader.batch_sampler
        return max(1, total // getattr(own, "num_processes", 1))
    shared = trainer.accelerator.split_batches  # one batch is dealt out to all ranks
    ranks = trainer.accelerator.num_processes if shared else 1
    return max(1, trainer._train_batch_size // ranks)


def _least_rows(trainer: Trainer, sam: SAMArguments) -> int:
    """Return how many rows a share must have: two for BatchNorm, or if the user chose none."""
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in trainer.model.modules())
    return SMALLEST_CUT if sam.max_overhead is not None or has_batch_norm else 1


def _backend(trainer: Trainer) -> str:
    if is_sagemaker_mp_enabled():  # of which accelerate knows nothing
        return "SAGEMAKER_MP"
    if trainer.accelerator.is_fsdp2:
        return "FSDP2"
    return trainer.accelerator.distributed_type.value


def schedule_of(
    args: TrainingArguments, sam: SAMArguments, max_steps: int, *, rows: int, least: int
) -> AscentSchedule:
    """Return when a run of `max_steps` optimizer steps ascends, with micro-batches of `rows`.

    A share of one has at least `least` rows.
    """
    method = sam.chosen_method
    schedule = AscentSchedule(
        interval=sam.ascent_interval,
        start=steps_of(sam.ascent_start, max_steps),
        shape=sam.rho_schedule,
        warmup=args.get_warmup_steps(max_steps),
        total=max_steps,
        probability=method.probability,
        seed=args.seed,
        fraction=sam.ascent_fraction if method.has_clean_pass else 0.0,
        rows=rows,
        least=least,
    )
    return schedule if sam.max_overhead is None else within(schedule, sam.max_overhead)


def passes_per_step(args: TrainingArguments, steps: int = 1000) -> float:
    """Return the forward-backward passes of a run over its optimizer steps.

    Args:
        args: The run's; without SAM's fields the passes are the base optimizer's.
        steps: Of the run. They matter where shares of a run are rounded to steps. (Of BatchNorm,
            for which shares are rounded up to two rows, nothing is known here.)
    """
    rows = args.train_batch_size
    if not isinstance(args, SAMArguments) or args.rho == 0:
        return 1.0
    return schedule_of(args, args, steps, rows=rows, least=1).passes(steps) / steps


def planned_schedule(trainer: Trainer, sam: SAMArguments) -> AscentSchedule:
    """Return the schedule of a run, and say what was chosen for the user; warn where it is idle.

    Raises:
        ValueError: If the length of the run is needed, and a training step is made outside of one.
    """
    max_steps = trainer.state.max_steps
    is_share = 0 < sam.ascent_start < 1
    if not max_steps and (sam.max_overhead or is_share or sam.rho_schedule != "constant"):
        raise ValueError(
            "`max_overhead`, `rho_schedule` and an `ascent_start` below 1 need the length of a "
            "run, got a training step outside of `train()`: call that, or leave them out."
        )
    rows, least = rows_of(trainer), _least_rows(trainer, sam)
    schedule = schedule_of(trainer.args, sam, max_steps, rows=rows, least=least)
    if schedule.is_idle:
        logger.warning(
            f"SAM will never be active in {max_steps} optimizer steps: {_why_idle(schedule, sam)}, "
            "or train for longer."
        )
    elif sam.max_overhead is not None:
        more = ", as SAM at every step costs 2" if sam.max_overhead > 2 else ""
        logger.warning(
            f"`max_overhead={sam.max_overhead}`: `ascent_interval` is {schedule.interval} and "
            f"`ascent_fraction` {schedule.fraction}, for {schedule.ascents(max_steps)} ascents in "
            f"{max_steps} optimizer steps{more}."
        )
    if sam.method == "looksam" and schedule.interval == 1:
        logger.warning(
            "looksam reuses nothing between ascents at every step: set `ascent_interval`, 5 for "
            "the paper's setting."
        )
    return schedule


def _why_idle(schedule: AscentSchedule, sam: SAMArguments) -> str:
    waits = schedule.shape != "constant" and schedule.warmup >= schedule.total
    if sam.max_overhead is not None and not waits:
        return f"`max_overhead={sam.max_overhead}` pays for no ascent; raise it"
    if schedule.begin >= schedule.total:
        return (
            f"it would begin at step {schedule.begin}; lower `ascent_start`, or `warmup_steps` "
            "beside a `rho_schedule`"
        )
    return "no coin falls for it; raise the `p` of rst"
