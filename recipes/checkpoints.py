"""Which checkpoint to go on from, and whether it fits: nothing already written is lost."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_sam import SAMConfig

logger = logging.get_logger("finetune")
OUTPUTS = ("run.json", "all_results.json", "config.json", "model.safetensors", "README.md")


def find_checkpoint(args: SAMConfig) -> str | None:
    """Return the checkpoint that `--resume_from_checkpoint` means.

    Raises:
        ValueError: If there is none, if its run has ended, or if without resuming something in the
            output folder would be overwritten.
    """
    output_dir = Path(args.output_dir)
    wanted = args.resume_from_checkpoint
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"`output_dir` must be a folder, got the file {str(output_dir)!r}.")
    if wanted in (None, "False", "false"):
        present = [name for name in OUTPUTS if (output_dir / name).exists()]
        if present or list(output_dir.glob("checkpoint-*")):
            raise ValueError(
                f"`output_dir` must not hold an earlier run or a model, got {str(output_dir)!r}: "
                "pass `--resume_from_checkpoint last` to go on with it, or another `--output_dir`."
            )
        return None
    checkpoint = last_complete(output_dir) if wanted in ("last", "True", "true") else Path(wanted)
    if checkpoint is None:
        raise ValueError(
            f"`--resume_from_checkpoint {wanted}` needs a checkpoint in {str(output_dir)!r}, "
            "and there is none: leave the option out, or pass the checkpoint's folder."
        )
    state = _trainer_state(checkpoint)
    if state is None:
        raise ValueError(
            f"`--resume_from_checkpoint` must be a checkpoint folder of the Trainer, or last, got "
            f"{wanted!r}: it has no trainer_state.json."
        )
    longer = args.num_train_epochs > state["num_train_epochs"]
    if args.max_steps > 0:
        longer = args.max_steps > state["max_steps"]
    is_whole = state["global_step"] >= state["max_steps"] and not longer
    if is_whole and (output_dir / "run.json").exists():  # else it ended before its evaluation
        raise ValueError(
            f"the run in {str(output_dir)!r} has ended, at step {state['global_step']}: train it "
            "for longer (`--num_train_epochs`), or pass another `--output_dir` for a new run."
        )
    logger.warning(f"resuming from {checkpoint}, step {state['global_step']}")
    return str(checkpoint)


def last_complete(output_dir: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end: the state is written last."""
    numbered = [p for p in output_dir.glob("checkpoint-*") if p.name.split("-")[-1].isdigit()]
    for checkpoint in sorted(numbered, key=lambda p: int(p.name.split("-")[-1]), reverse=True):
        if _trainer_state(checkpoint) is not None:
            return checkpoint
        logger.warning(f"{checkpoint} was not written to its end: passed over")
    return None


def _trainer_state(checkpoint: Path) -> dict[str, Any] | None:
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, json.JSONDecodeError):
        return None


def require_fitting(checkpoint: Path, model: PreTrainedModel) -> None:
    """Raise a ValueError if the checkpoint's tensors are not those of the timm model.

    Models of transformers itself may be saved under other names: those are left to the Trainer, and
    so are sharded checkpoints.
    """
    weights = checkpoint / "model.safetensors"
    if model.config.model_type != "timm_wrapper" or not weights.is_file():
        return
    try:
        with safe_open(weights, framework="pt") as file:
            given = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"checkpoint {str(weights)!r} is damaged: {error}.") from error
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
