"""Every `method` under every backend: cases of `matrix.py`."""

import functools
import random
from collections.abc import Iterator
from typing import Any

import oracles
from matrix_case import FLOAT32, Case

from hf_sam.config import ASCENT_SCOPES


def coin(step: int) -> bool:
    return random.Random(f"42-{step}").random() < 0.5


METHODS: dict[str, dict[str, Any]] = {
    "looksam": {
        "sam": {"ascent_interval": 2},
        "meaning": {
            "rule": functools.partial(oracles.looksam, alpha=0.1, k=2),
            "passes": lambda step: 1 + (step % 2 == 0),
        },
    },
    "msam": {"meaning": {"rule": oracles.msam, "passes": lambda step: 1}},
    "s2sam": {"meaning": {"rule": oracles.s2sam, "passes": lambda step: 1}},
    "friendly_sam": {
        "meaning": {
            "rule": functools.partial(oracles.friendly_sam, sigma=1.0, decay=0.9),
            "passes": lambda step: 2,
        }
    },
    "vasso": {
        "sam": {"method_args": "theta=0.3"},
        "meaning": {
            "rule": functools.partial(oracles.vasso, theta=0.3),
            "passes": lambda step: 2,
        },
    },
    "gsam": {
        "meaning": {"rule": functools.partial(oracles.gsam, alpha=0.4), "passes": lambda step: 2}
    },
    "wsam": {
        "meaning": {"rule": functools.partial(oracles.wsam, gamma=0.9), "passes": lambda step: 2}
    },
    "rst": {"meaning": {"share": coin}},
    "le_sam": {"sam": {"method_args": "sigma=0.02"}, "meaning": {"sigma": 0.02}},
}
BACKENDS: dict[str, dict[str, Any]] = {
    "one rank, AdamW": {
        "model": "dropout_and_batch_norm",
        "settings": {"optim": "adamw_torch", "learning_rate": 0.01},
    },
    "one rank, gradient scaler": {"model": "float32", "scaler": True, "tolerance": FLOAT32},
    "DDP, clipping": {"ranks": 2, "model": "dropout", "settings": {"max_grad_norm": 0.1}},
    "DDP, gradient_as_bucket_view": {"ranks": 2, "ddp": {"gradient_as_bucket_view": True}},
    "FSDP2": {"ranks": 2, "fsdp": True},
    "one rank, leftovers": {"accumulation": 4, "data": "leftovers"},
    "DDP, leftovers": {"ranks": 2, "accumulation": 4, "data": "leftovers"},
}


def methods() -> Iterator[Case]:
    """Each method of `method=`, in micro-batches, under each backend."""
    for name, method in METHODS.items():
        for backend, facts in BACKENDS.items():
            if name == "looksam" and "leftovers" in backend:
                continue  # its steps without an ascent leave them as they come, the reference none
            for scope in ASCENT_SCOPES:
                ranks = facts.get("ranks", 1)
                shared = "rule" in method["meaning"]
                several = scope == "micro_batch" or (scope == "rank" and ranks > 1)
                refused = ""
                if several and facts.get("fsdp"):
                    refused = "must be global for sharded parameters"
                elif several and shared:
                    refused = f"`ascent_scope` must be global for {name}"
                settings = {"optim_args": "momentum=0.9", **facts.get("settings", {})}
                if "optim" in settings:
                    del settings["optim_args"]
                sam = {"method": name, **method.get("sam", {})}
                case = {**facts, "settings": settings, "sam": sam, "meaning": method["meaning"]}
                yield Case("Methods", f"`{name}`, {backend}", scope, refused=refused, **case)
