"""What SAM would train wrongly is refused when training starts: the facts of a Trainer."""

from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames
from transformers.utils import is_sagemaker_mp_enabled, logging

from .config import SAMArguments
from .distributed import require_supported_backend, require_supported_model
from .schedule import AscentSchedule, steps_of

logger = logging.get_logger(__name__)

# trl's, which generate text inside each training step
GENERATING = frozenset(
    {"GRPOTrainer", "RLOOTrainer", "DistillationTrainer", "GKDTrainer", "GOLDTrainer"}
    | {"OnlineDPOTrainer", "NashMDTrainer", "XPOTrainer", "PPOTrainer"}
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
    generating = GENERATING & {kind.__name__ for kind in type(trainer).__mro__}
    if generating:
        raise ValueError(
            f"SAM must pass twice over one batch, got a {min(generating)}, which generates a new "
            "one in each pass: use the trainer without SAM, or set `rho=0`."
        )
    optimizer = trainer.optimizer
    if isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
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


def check_model(trainer: Trainer, sam: SAMArguments, model: nn.Module) -> None:
    """Refuse what only the prepared model shows.

    Args:
        trainer: About to train.
        sam: Its settings.
        model: As the backend has wrapped it.

    Raises:
        ValueError: Saying what cannot be had and what to use instead.
    """
    require_supported_model(
        model,
        scope=sam.ascent_scope,
        accumulation=trainer.args.gradient_accumulation_steps,
        ranks=trainer.accelerator.num_processes,
    )


def _backend(trainer: Trainer) -> str:
    if is_sagemaker_mp_enabled():  # of which accelerate knows nothing
        return "SAGEMAKER_MP"
    if trainer.accelerator.is_fsdp2:
        return "FSDP2"
    return trainer.accelerator.distributed_type.value


def planned_schedule(args: TrainingArguments, sam: SAMArguments, max_steps: int) -> AscentSchedule:
    """Return when a run of `max_steps` optimizer steps ascends; warn where it never does."""
    schedule = AscentSchedule(
        interval=sam.ascent_interval,
        start=steps_of(sam.ascent_start, max_steps),
        shape=sam.rho_schedule,
        warmup=args.get_warmup_steps(max_steps),
        total=max_steps,
    )
    if sam.rho > 0 and not schedule.ascents(max_steps):
        logger.warning(
            f"SAM will never be active: it would begin at step {schedule.begin} of {max_steps}. "
            "Lower `ascent_start`, or train for longer."
        )
    return schedule
