"""What several ranks can be told, under DDP and FSDP2: cases of `matrix.py`."""

from collections.abc import Iterator
from typing import Any

from matrix_case import Case

from hf_sam.config import ASCENT_SCOPES

DDP: dict[str, dict[str, Any]] = {
    "ddp_find_unused_parameters=False": {"settings": {"ddp_find_unused_parameters": False}},
    "ddp_find_unused_parameters=True": {
        "model": "sometimes_used",
        "settings": {"ddp_find_unused_parameters": True},
    },
    "gradient_as_bucket_view": {"ddp": {"gradient_as_bucket_view": True}},
    "gradient_as_bucket_view, leftovers": {
        "data": "leftovers",
        "ddp": {"gradient_as_bucket_view": True},
    },
    "ddp_broadcast_buffers=True": {
        "model": "batch_norm",
        "settings": {"ddp_broadcast_buffers": True},
    },
    "ddp_broadcast_buffers=False": {
        "model": "batch_norm",
        "settings": {"ddp_broadcast_buffers": False},
    },
    "sync_each_batch": {
        "settings": {
            "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        }
    },
    "small buckets": {"settings": {"ddp_bucket_cap_mb": 1}, "model": "vit"},
}


def ddp() -> Iterator[Case]:
    """What DistributedDataParallel can be told, on two ranks; and three ranks."""
    table = "DistributedDataParallel"
    for scope in ASCENT_SCOPES:
        for accumulation in (1, 2):
            for line, case in DDP.items():
                yield Case(table, line, scope, 2, accumulation, **case)
            right = scope == "global" and accumulation == 1
            yield Case(
                table,
                "ddp_static_graph=True",
                scope,
                2,
                accumulation,
                settings={"ddp_find_unused_parameters": False},
                sam={"ddp_static_graph": True},
                refused="" if right else "set `ddp_static_graph=False`",
            )
            yield Case(table, "three ranks", scope, 3, accumulation, model="dropout_and_batch_norm")


# What is told to engines that shard the weights.
SHARDED: dict[str, dict[str, Any]] = {
    "SGD with momentum": {"settings": {"optim_args": "momentum=0.9"}},
    "AdamW, clipping": {
        "settings": {"optim": "adamw_torch", "learning_rate": 0.01, "max_grad_norm": 0.1}
    },
    "ASAM": {"sam": {"adaptive": True, "rho": 0.5}},
    "perturb one module at every second step": {
        "sam": {"perturb": "body.0", "ascent_interval": 2},
        "meaning": {
            "perturb": lambda name: name.startswith("body.0."),
            "share": lambda step: float(step % 2 == 0),
        },
    },
    "ascent_fraction": {"sam": {"ascent_fraction": 0.5}, "meaning": {"kept": 2}},
    "dropout and BatchNorm": {
        "model": "dropout_and_batch_norm",
        "settings": {"ddp_broadcast_buffers": False},  # which they do not broadcast
    },
}


def sharded() -> Iterator[Case]:
    """FSDP2 on two ranks; the reference runs under DDP."""
    for line, mode in SHARDED.items():
        for accumulation in (1, 2):
            for scope in ASCENT_SCOPES:
                refused = "" if scope == "global" else "must be global for sharded parameters"
                yield Case(
                    "FSDP2", line, scope, 2, accumulation, fsdp=True, refused=refused, **mode
                )
