"""What outsiders can see of a training: events, weights at events, checkpoints, communication."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

TIMES = ("runtime", "per_second")  # what no two runs share


def fingerprint(model: nn.Module, what: str = "state") -> str:
    """A hash of all weights and buffers, of the parameters alone, or of the gradients."""
    tensors = {
        "state": lambda: list(model.state_dict().values()),
        "parameters": lambda: list(model.parameters()),
        "gradients": lambda: [p.grad for p in model.parameters()],
    }[what]()
    parts = [b"none" if t is None else t.detach().contiguous().numpy().tobytes() for t in tensors]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: without_times(v) for k, v in value.items() if not any(t in str(k) for t in TIMES)
        }
    if isinstance(value, list | tuple):
        return [without_times(v) for v in value]
    return value if isinstance(value, int | float | str | None) else type(value).__name__


class Observer(TrainerCallback):
    """Writes down every event: its arguments, and hashes of weights and gradients."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def observe(args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.events.append(
                {
                    "event": name,
                    "step": state.global_step,
                    "weights": fingerprint(model),
                    "trainable": fingerprint(model, what="parameters"),
                    "gradients": fingerprint(model, what="gradients"),
                    "state": json.dumps(without_times(vars(state)), default=str),
                    "control": without_times(vars(control)),
                    "others": without_times(kwargs),
                }
            )

        return observe


def files(folder: Path) -> dict[str, str]:
    """Hash every file of a checkpoint; training_args.bin pickles the arguments' class."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "training_args.bin":
            content = path.read_bytes()
            if path.suffix == ".json":
                content = json.dumps(without_times(json.loads(content))).encode()
            hashes[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return hashes


class Communication(TorchDispatchMode):
    """Counts what collectives move, by operation; DDP's reducer and broadcasts in C++ as well."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            flat = torch.utils._pytree.tree_leaves(args)
            tensors = [t for t in flat if isinstance(t, torch.Tensor)]
            self.bytes[func._opname] += sum(t.numel() * t.element_size() for t in tensors)
        return func(*args, **(kwargs or {}))
