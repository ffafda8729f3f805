"""Plans a run's ascent schedule from the settings and the data loader of a Trainer."""

from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler
from transformers import Trainer, TrainingArguments
from transformers.utils import logging

from ..ascent.schedule import SMALLEST_CUT, AscentSchedule, steps_of, within
from ..config import SAMArguments
from .checks import why_uncut
from .parts import Parts

logger = logging.get_logger(__name__)


def rows_of(trainer: Trainer) -> int:
    """Return the number of rows into which a device's micro-batch can be split."""
    if why_uncut(trainer):
        return 1
    loader = trainer.callback_handler.train_dataloader  # which the user may have replaced
    total = getattr(loader, "total_batch_size", None)  # set by accelerate, with a sampler
    if total is not None:  # of all ranks, if the sampler is one of several
        own = loader.sampler if isinstance(loader.sampler, BatchSampler) else loader.batch_sampler
        return max(1, total // getattr(own, "num_processes", 1))
    shared = trainer.accelerator.split_batches  # one batch is dealt out to all ranks
    ranks = trainer.accelerator.num_processes if shared else 1
    return max(1, trainer._train_batch_size // ranks)


def _least_rows(parts: Parts, sam: SAMArguments) -> int:
    """Return the fewest rows of a fraction: two for BatchNorm, or if `max_overhead` chose it."""
    modules = parts.holders.modules.values()
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in modules)
    return SMALLEST_CUT if sam.max_overhead is not None or has_batch_norm else 1


def schedule_of(
    args: TrainingArguments, sam: SAMArguments, max_steps: int, *, rows: int, least: int
) -> AscentSchedule:
    """Return the ascent schedule of a run of `max_steps` optimizer steps.

    Its micro-batches have `rows` rows, of which the clean pass sees at least `least`.
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
    """Return the mean number of forward-backward passes per optimizer step of a run.

    Args:
        args: Of the run; without SAM's fields the result is 1.
        steps: Optimizer steps of the run, to which fractions of it are rounded. (The two rows
            that BatchNorm needs are not taken into account.)
    """
    rows = args.train_batch_size
    if not isinstance(args, SAMArguments) or args.rho == 0:
        return 1.0
    return schedule_of(args, args, steps, rows=rows, least=1).passes(steps) / steps


def planned_schedule(trainer: Trainer, sam: SAMArguments, parts: Parts) -> AscentSchedule:
    """Return the ascent schedule of a run; log what `max_overhead` chose, warn if it never ascends.

    Args:
        trainer: The Trainer, about to train.
        sam: SAM's settings.
        parts: The parts of the model, and of what the trainer holds.

    Raises:
        ValueError: If the length of the run is needed, but not known outside of `train()`.
    """
    max_steps = trainer.state.max_steps
    is_share = 0 < sam.ascent_start < 1
    if not max_steps and (sam.max_overhead or is_share or sam.rho_schedule != "constant"):
        raise ValueError(
            "`max_overhead`, `rho_schedule` and an `ascent_start` below 1 need the length of a "
            "run, got a training step outside of `train()`: call that, or leave them out."
        )
    rows, least = rows_of(trainer), _least_rows(parts, sam)
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
