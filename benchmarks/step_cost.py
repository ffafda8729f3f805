"""What a step of SAMTrainer costs beside two passes, the plain Trainer, and SAM as others do it.

All are timed in turn in one process, on one model and one batch, because these machines are noisy:
a ratio is taken within each round, and its median and quartiles over the rounds are printed. What
is spent outside the two passes is timed by itself as well, as a percent is below that noise.

python benchmarks/step_cost.py --rounds 30 --output benchmarks/step_cost.json
"""

import argparse
import json
import platform
import time
import weakref
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import RHO, Step, Workload, contenders, trainer_of, workload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import Trainer

from hf_sam import SAMTrainer

# model, image size in pixels, batch size: a step takes about half a second on two cores
MODELS = [("mobilenetv2_035", 144, 64), ("vit_tiny_patch16_224", 224, 8), ("tiny tensors", 0, 16)]
GPU_MODELS = [("vit_base_patch16_224", 224, 64), ("efficientnet_b0", 224, 128), MODELS[2]]
TINY_MODELS = [("test_vit", 160, 2), ("test_efficientnet", 64, 2), MODELS[2]]  # that all runs
Models = list[tuple[str, int, int]]
# What is aimed at; memory in copies of the trainable parameters, synchronisations in one step.
BARS = {"over two passes": 1.01, "tiny tensors": 1.03, "memory": 1.0, "synchronisations": 0}
PEERS = ("loop as davda54/sam", "pytorch_optimizer")


def seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def times_of(steps: dict[str, Step], rounds: int) -> dict[str, np.ndarray]:
    """Time the steps in turn, in another order each round, after three rounds unmeasured."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for round_ in range(rounds + 3):
        for name in order:
            taken = seconds(steps[name])
            if round_ >= 3:
                times[name].append(taken)
        order = [*order[1:], order[0]]
    return {name: np.array(values) for name, values in times.items()}


def seconds_outside(work: Workload, rounds: int) -> tuple[float, float]:
    """Return the medians of what a SAM step takes beyond its two passes, and of all of it."""
    trainer, prepared = trainer_of(work, SAMTrainer, RHO)
    run_pass, inside = trainer._pass, []

    def timed_pass(*args: Any, **kwargs: Any) -> Any:
        losses = []
        inside.append(seconds(lambda: losses.append(run_pass(*args, **kwargs))))
        return losses[0]

    trainer._pass = timed_pass
    outside, whole = [], []
    for _ in range(rounds):
        inside.clear()
        whole.append(seconds(lambda: trainer.training_step(prepared, work.batch)))
        outside.append(whole[-1] - sum(inside))
        prepared.zero_grad()
    return float(np.median(outside)), float(np.median(whole))


class PeakBytes(TorchDispatchMode):
    """Follows the memory of the tensors that come into being, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.note, out)
        return out

    def note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in self.seen:
            self.seen.add(id(storage))
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.forget, id(storage), storage.nbytes())

    def forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def peak_bytes(work: Workload, kind: type[Trainer], rho: float) -> int:
    """Return the most memory that the tensors of one training step take at once."""
    trainer, prepared = trainer_of(work, kind, rho)
    trainer.training_step(prepared, work.batch)  # what is allocated once
    prepared.zero_grad()
    with PeakBytes() as followed:
        trainer.training_step(prepared, work.batch)
    prepared.zero_grad()
    return followed.peak


class CountSynchronisations(TorchDispatchMode):
    """Counts the numbers that the host reads from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def synchronisations(work: Workload, kind: type[Trainer], rho: float) -> int:
    trainer, prepared = trainer_of(work, kind, rho)
    trainer.training_step(prepared, work.batch)
    with CountSynchronisations() as counted:
        trainer.training_step(prepared, work.batch)
    prepared.zero_grad()
    return counted.count


def measure(name: str, size: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Measure all of one model."""
    work = workload(name, size, batch_size, bf16=torch.cuda.is_available())
    times = times_of(contenders(work), rounds * (20 if name == "tiny tensors" else 1))
    outside, whole = seconds_outside(work, rounds)
    trainable = sum(p.numel() * p.element_size() for p in work.model.parameters())
    extra = peak_bytes(work, SAMTrainer, RHO) - peak_bytes(work, Trainer, 0.0)
    reads = synchronisations(work, SAMTrainer, RHO) - synchronisations(work, Trainer, 0.0)
    ratios = {f"{n} over two passes": times[n] / times["two passes"] for n in times}
    ratios["SAMTrainer over Trainer"] = times["SAMTrainer"] / times["Trainer"]
    ratios["SAMTrainer over two passes of Trainer"] = (
        times["SAMTrainer"] / times["two passes of Trainer"]
    )
    return {
        "model": work.name,
        "batch_size": batch_size,
        "rounds": len(times["SAMTrainer"]),
        "median_ms": {n: 1e3 * float(np.median(t)) for n, t in times.items()},
        "images_per_second": {n: batch_size / float(np.median(t)) for n, t in times.items()},
        "ratios": {
            n: [float(q) for q in np.quantile(r, [0.25, 0.5, 0.75])] for n, r in ratios.items()
        },
        "outside_ms": 1e3 * outside,
        "outside_share": outside / (whole - outside),
        "extra_peak_memory": extra / trainable,
        "extra_synchronisations": reads,
    }


def row(result: dict[str, Any]) -> str:
    """One line of the table, in Markdown."""
    ratios = result["ratios"]
    names = ["SAMTrainer", *PEERS]
    over = [ratios.get(f"{name} over two passes") for name in names]
    cells = [result["model"], f"{result['median_ms']['SAMTrainer']:.0f}"]
    cells += ["-" if q is None else f"{q[1]:.3f} ({q[0]:.3f} to {q[2]:.3f})" for q in over]
    plain = ratios["SAMTrainer over Trainer"]
    cells += [
        f"{plain[1]:.3f} ({plain[0]:.3f} to {plain[2]:.3f})",
        f"{result['outside_ms']:.1f} ms, {result['outside_share']:.1%}",
        f"{result['extra_peak_memory']:.2f}",
        str(result["extra_synchronisations"]),
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| model | SAMTrainer, ms | over two passes and one optimizer step (quartiles) "
    "| a loop as davda54/sam, the same | pytorch_optimizer's SAM, the same "
    "| over the plain Trainer's step | outside the passes | extra peak memory, copies of the "
    "parameters | extra host synchronisations |\n" + "|---" * 9 + "|"
)


def main(
    doc: str = __doc__,
    head: str = HEAD,
    models: tuple[Models, Models, Models] = (TINY_MODELS, GPU_MODELS, MODELS),
    measure: Callable[..., dict[str, Any]] = measure,
    row: Callable[[dict[str, Any]], str] = row,
) -> None:
    """Measure networks, one after the other, print a table and write the figures.

    Args:
        doc: What the command does.
        head: Of the table, in Markdown.
        models: To see that all runs, for a GPU, for a CPU.
        measure: Measures one of them.
        row: Its line of the table.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="measured rounds for each model")
    parser.add_argument("--tiny", action="store_true", help="see that all runs, on tiny models")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else platform.machine()
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(head)
    results = []
    for model in models[0 if options.tiny else 1 if on_gpu else 2]:
        results.append(measure(*model, rounds=options.rounds))
        print(row(results[-1]), flush=True)
    if options.output:
        versions = {name: version(name) for name in ("torch", "transformers", "timm")}
        facts = {"device": device, "threads": torch.get_num_threads(), "bf16": on_gpu, **versions}
        facts |= {"date": time.strftime("%Y-%m-%d"), "bars": BARS, "results": results}
        options.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
