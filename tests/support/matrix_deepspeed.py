"""ZeRO on two ranks, each stage and what goes with it: cases of `matrix.py`."""

from collections.abc import Iterator
from typing import Any

from deepspeed_cpu import config
from matrix_case import Case
from matrix_methods import METHODS
from matrix_ranks import SHARDED

from hf_sam.config import ASCENT_SCOPES

# Sums in another order, in float32: relative to the largest weight.
TOLERANCE = 1e-6
STAGES = {f"ZeRO-{stage}": config(stage) for stage in (0, 1, 2, 3)}
ADAMW: dict[str, Any] = {
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    "adam_epsilon": 1e-4,  # or rounding noise of a gradient near zero becomes a whole step
}
TRAINED: dict[str, dict[str, Any]] = {
    **{line: case for line, case in SHARDED.items() if "AdamW" not in line},
    "AdamW, clipping, warm-up": {
        "settings": {
            **ADAMW,
            "max_grad_norm": 0.1,
            "lr_scheduler_type": "linear",
            "warmup_steps": 2,
        }
    },
    "p = 1.5": {"sam": {"perturbation_norm": 1.5}},
    "p = inf": {"sam": {"perturbation_norm": float("inf"), "rho": 0.005}},
    "a queue in buffers": {"model": "queue", "settings": {"ddp_broadcast_buffers": False}},
    "tied weights": {"model": "tied"},
    "a frozen layer": {"model": "frozen"},
    "fragments of nothing": {"model": "uneven"},
    "LoRA (peft) on a frozen base": {"model": "llama with an adapter", "data": "llama"},
    "ViT, gradient checkpointing": {
        "model": "vit",
        "settings": {"gradient_checkpointing": True},
    },
}
OTHERS: dict[str, dict[str, Any]] = {
    "overlap_comm": {"zero": {"overlap_comm": True}},
    "optimizer on the CPU": {"zero": {"offload_optimizer": {"device": "cpu"}}},
    "parameters on the CPU": {
        "stages": (3,),
        "zero": {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
    },
    "contiguous_gradients: false": {"stages": (1, 2), "zero": {"contiguous_gradients": False}},
    "small buckets": {"zero": {"reduce_bucket_size": 50, "allgather_bucket_size": 50}},
}

# What the usual tests train; the matrix, and those marked slow, train all.
EACH = ("SGD with momentum", "AdamW, clipping, warm-up", "dropout and BatchNorm")
QUICK = {f"{stage}, {line}" for stage in STAGES for line in (*EACH, "optimizer on the CPU, gsam")}
QUICK |= {"another scope", "ZeRO-2, `looksam`"}


def deepspeed() -> Iterator[Case]:
    """Every stage of ZeRO; the reference runs under DDP."""
    for stage, engine in STAGES.items():
        accumulations = (1,) if stage == "ZeRO-0" else (1, 2)  # its own sum is another
        for line, case in TRAINED.items():
            for accumulation in accumulations:
                yield _case(f"{stage}, {line}", accumulation, engine, **case)
    for line, facts in OTHERS.items():
        for stage in facts.get("stages", (1, 2, 3)):
            engine = config(stage, zero=facts["zero"])
            settings = {**ADAMW, "max_grad_norm": 0.1}
            yield _case(f"ZeRO-{stage}, {line}", 2, engine, settings=settings)
            sam, meaning = {"method": "gsam"}, METHODS["gsam"]["meaning"]
            gsam = {"settings": settings, "sam": sam, "meaning": meaning}
            yield _case(f"ZeRO-{stage}, {line}, gsam", 2, engine, **gsam)
    for name, method in METHODS.items():
        for stage in (1, 2, 3):
            refused = name in ("looksam", "msam", "s2sam", "friendly_sam", "vasso")
            sam = {"method": name, **method.get("sam", {})}
            yield _case(
                f"ZeRO-{stage}, `{name}`", 2, STAGES[f"ZeRO-{stage}"],
                settings={"optim_args": "momentum=0.9"}, sam=sam, meaning=method["meaning"],
                refused="must keep a direction from step to step" if refused else "",
            )  # fmt: skip
    for scope in ASCENT_SCOPES[:2]:
        message = "`ascent_scope` must be global under DeepSpeed"
        yield _case("another scope", 2, STAGES["ZeRO-2"], scope=scope, refused=message)


def _case(
    line: str, accumulation: int, engine: dict[str, Any], *, scope: str = "global", **case: Any
) -> Case:
    is_quick = line in QUICK and (accumulation == 2 or line.startswith("ZeRO-0"))
    return Case(
        *("DeepSpeed", line, scope, 2, accumulation),
        deepspeed=engine,
        tolerance=TOLERANCE,
        slow=not is_quick,
        **case,
    )
