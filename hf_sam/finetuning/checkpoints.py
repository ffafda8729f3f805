"""Choosing the checkpoint to resume from, and checking that nothing is overwritten."""

import math
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, TrainerState
from transformers.utils import logging

from .. import SAMConfig
from .folder import OPTIONS, RECORD

logger = logging.get_logger("finetune")
OUTPUTS = (RECORD, "all_results.json", "config.json", "model.safetensors", "README.md")


def find_checkpoint(args: SAMConfig) -> str | None:
    """Return the checkpoint that `--resume_from_checkpoint` means.

    Raises:
        ValueError: If there is none, or if a new run would overwrite something in the output
            folder.
    """
    output_dir = Path(args.output_dir)
    wanted = args.resume_from_checkpoint
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"`output_dir` must be a folder, got the file {str(output_dir)!r}.")
    if wanted in (None, "False", "false"):
        _require_free(output_dir, longer=_longer(args))
        return None
    is_own = wanted in ("last", "True", "true")
    checkpoint = last_complete(output_dir) if is_own else Path(wanted).expanduser()
    if checkpoint is None:
        raise ValueError(
            f"`--resume_from_checkpoint {wanted}` needs a checkpoint in {str(output_dir)!r}, and "
            f"there is none{_half_written(output_dir)}: "
            + (
                "pass the checkpoint's folder, or another `--output_dir` for a new run."
                if _is_taken(output_dir)
                else "leave the option out, and the run begins anew."
            )
        )
    state = _state_of(checkpoint)
    if isinstance(state, str):
        raise ValueError(
            "`--resume_from_checkpoint` must be a checkpoint folder of the Trainer, or last, got "
            f"{wanted!r}: it has no trainer_state.json that can be read ({state}). Pass another."
        )
    _require_whole_state(checkpoint)
    if checkpoint.resolve().parent != output_dir.resolve():
        _require_free(output_dir, longer=_longer(args))
    logger.warning(
        f"resuming from {checkpoint}, step {state.global_step}{_half_written(output_dir)}"
    )
    return str(checkpoint)


def require_steps_left(checkpoint: Path, args: SAMConfig, *, examples: int) -> None:
    """Check that a run goes on from its checkpoint, or has only its evaluation left.

    Args:
        checkpoint: As `find_checkpoint` returns it.
        args: Of the run.
        examples: Number of training examples.

    Raises:
        ValueError: If the run has ended, or is shorter than it was.
    """
    state = _state_of(checkpoint)
    assert isinstance(state, TrainerState), "find_checkpoint has read it"
    length = _length(args, state, examples)
    is_own = checkpoint.resolve().parent == Path(args.output_dir).resolve()
    if length < state.max_steps and is_own:  # another run may have larger batches
        raise ValueError(
            f"a resumed run must not be shorter than it was, {state.max_steps} steps, got {length}:"
            " pass the `--num_train_epochs` or `--max_steps` that it was started with, or more."
        )
    if state.global_step < length:
        return
    if not is_own:
        raise ValueError(
            f"the run must go on from {str(checkpoint)!r}, which is of step {state.global_step}, "
            f"got a run of {length} steps: train for longer ({_longer(args)})."
        )
    if (Path(args.output_dir) / RECORD).exists():  # else it was interrupted before its evaluation
        raise ValueError(
            f"the run in {args.output_dir!r} has ended, at step {state.global_step}: train it "
            f"for longer ({_longer(args)}), or pass another `--output_dir` for a new run."
        )


def has_trained(checkpoint: Path) -> bool:
    """Whether nothing but the evaluation of the run that wrote a checkpoint is left."""
    state = _state_of(checkpoint)
    return isinstance(state, TrainerState) and state.global_step >= state.max_steps


def _longer(args: SAMConfig) -> str:
    return "`--max_steps`" if args.max_steps > 0 else "`--num_train_epochs`"


def _length(args: SAMConfig, state: TrainerState, examples: int) -> int:
    """Return the optimizer steps of a run, as the Trainer counts them."""
    if args.max_steps > 0:
        return args.max_steps
    size = (args.auto_find_batch_size and state.train_batch_size) or args.train_batch_size
    shared = args.accelerator_config.split_batches  # one batch is dealt out to all processes
    batches = math.ceil(examples / (size if shared else size * args.world_size))
    steps = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return math.ceil(args.num_train_epochs * steps)


def last_complete(output_dir: Path) -> Path | None:
    """Return the newest checkpoint that a run can go on from, if there is one."""
    return max(filter(_has_optimizer, whole_checkpoints(output_dir)), key=_step, default=None)


def _has_optimizer(checkpoint: Path) -> bool:
    """Whether a checkpoint has the state of optimizer and schedule, of the Trainer or DeepSpeed."""
    is_trainers = (checkpoint / "scheduler.pt").exists() and any(checkpoint.glob("optimizer*"))
    return is_trainers or (checkpoint / "latest").exists()


def _require_whole_state(checkpoint: Path) -> None:
    """Raise a ValueError for weights alone, from which momentum and schedule would begin anew."""
    if not _has_optimizer(checkpoint):
        inside = last_complete(checkpoint)
        raise ValueError(
            "`--resume_from_checkpoint` must be a checkpoint with the state of the optimizer, got "
            f"{str(checkpoint)!r}, which has weights only: "
            + (f"pass {str(inside)!r}." if inside else "pass another, or begin anew.")
        )


def whole_checkpoints(output_dir: Path) -> list[Path]:
    """Return the complete checkpoints: those with a Trainer state, which is written last."""
    return [path for path in _checkpoints(output_dir) if not isinstance(_state_of(path), str)]


def how_to_go_on(output_dir: Path) -> str:
    """Return the advice how to continue an interrupted run."""
    if (last := last_complete(output_dir)) is None:
        if whole_checkpoints(output_dir):
            return "the checkpoints have weights only: begin anew with another `--output_dir`."
        return "no checkpoint is whole yet, so the same command begins anew."
    return f"the same command with `--resume_from_checkpoint last` goes on from {last.name}."


def _checkpoints(output_dir: Path) -> list[Path]:
    found = output_dir.glob("checkpoint-*")
    return [p for p in found if re.fullmatch("checkpoint-[0-9]+", p.name) and p.is_dir()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _half_written(output_dir: Path) -> str:
    """Return a remark on the checkpoints that are not used."""
    checkpoints, whole = _checkpoints(output_dir), whole_checkpoints(output_dir)
    left = {
        "not written to the end": set(checkpoints) - set(whole),
        "without the optimizer's state": {path for path in whole if not _has_optimizer(path)},
    }
    parts = [
        f"{why}, and passed over: {', '.join(path.name for path in sorted(paths, key=_step))}"
        for why, paths in left.items()
        if paths
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def _state_of(checkpoint: Path) -> TrainerState | str:
    """Return the Trainer's state, or why it cannot be read (truncated by a kill, edited)."""
    try:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        for value in (state.global_step, state.max_steps, state.num_train_epochs):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{value!r} for a number")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    return state


def _require_free(output_dir: Path, *, longer: str) -> None:
    """Raise a ValueError if a new run would overwrite an earlier one."""
    rule = f"`output_dir` must not hold an earlier run or a model, got {str(output_dir)!r}"
    if (last := last_complete(output_dir)) is not None:
        more = f" and more {longer}" if (output_dir / RECORD).exists() else ""
        raise ValueError(
            f"{rule}: pass `--resume_from_checkpoint last`{more} to go on with it from "
            f"{last.name}, or another `--output_dir`."
        )
    if _is_taken(output_dir):
        raise ValueError(
            f"{rule}: pass another `--output_dir`, or remove that folder (it has no whole "
            "checkpoint that `--resume_from_checkpoint last` could go on from)."
        )


def _is_taken(output_dir: Path) -> bool:
    """Whether a folder holds more than a run that stopped before its first checkpoint."""
    if whole_checkpoints(output_dir):
        return True
    if (output_dir / OPTIONS).exists() and not (output_dir / RECORD).exists():
        return False
    return bool(_checkpoints(output_dir)) or any((output_dir / n).exists() for n in OUTPUTS)


def require_fitting(checkpoint: Path, model: PreTrainedModel) -> None:
    """Raise a ValueError if the checkpoint's tensors are not those of the timm model.

    Other models of transformers may be saved with other tensor names, so they are left to the
    Trainer, as are sharded checkpoints.
    """
    weights = checkpoint / "model.safetensors"
    if model.config.model_type != "timm_wrapper" or not weights.is_file():
        return
    try:
        with safe_open(weights, framework="pt") as file:
            given = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"checkpoint {str(weights)!r} is damaged: {error}. Remove the folder it is in, to go "
            "on from an earlier one."
        ) from error
    prefix = "timm_model."
    own = {n.removeprefix(prefix): tuple(t.shape) for n, t in model.state_dict().items()}
    given = {name.removeprefix(prefix): shape for name, shape in given.items()}
    differing = sorted(n for n in own.keys() | given.keys() if own.get(n) != given.get(n))
    if differing:
        name = differing[0]
        raise ValueError(
            f"checkpoint {str(checkpoint)!r} must fit the model, got {name} of shape "
            f"{given.get(name, 'none')} for {own.get(name, 'none')}: pass the `--model`, data and "
            "`--model_kwargs` that it was written with."
        )
