"""Which checkpoint to go on from, and whether it fits: nothing already written is lost."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from hf_sam import SAMConfig


def find_checkpoint(args: SAMConfig) -> str | None:
    """Return the checkpoint that `--resume_from_checkpoint` means.

    Raises:
        ValueError: If there is none, or if without resuming an earlier run would be overwritten.
    """
    output_dir = Path(args.output_dir)
    last = get_last_checkpoint(str(output_dir)) if output_dir.is_dir() else None
    wanted = args.resume_from_checkpoint
    if wanted in (None, "False", "false"):
        if last is not None or (output_dir / "all_results.json").exists():
            raise ValueError(
                f"`output_dir` must not hold an earlier run, got {str(output_dir)!r}: pass "
                "`--resume_from_checkpoint last` to go on with it, or another `--output_dir`."
            )
        return None
    if wanted in ("last", "True", "true"):
        if last is None:
            raise ValueError(
                f"`--resume_from_checkpoint {wanted}` needs a checkpoint in {str(output_dir)!r}, "
                "and there is none: leave the option out, or pass the checkpoint's folder."
            )
        return last
    if not (Path(wanted) / "trainer_state.json").is_file():
        raise ValueError(
            f"`--resume_from_checkpoint` must be a checkpoint folder of the Trainer, or last, got "
            f"{wanted!r}: it has no trainer_state.json."
        )
    return wanted


def require_fitting(checkpoint: Path, model: PreTrainedModel) -> None:
    """Raise a ValueError if the checkpoint's tensors are not the model's."""
    weights = checkpoint / "model.safetensors"
    if not weights.is_file():  # a sharded checkpoint is left to the Trainer
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
