"""What a clean pass costs that computes only the gradients of what is perturbed.

For `perturb` all, norm and last:0.33 the clean passes of SAMTrainer, over the whole batch and over
its first quarter, are timed in turn in one process, and so is a forward pass. The ratio to the
whole clean pass is taken within each round, as these machines are noisy.

python benchmarks/clean_pass.py --rounds 20 --output benchmarks/clean_pass.json   (five minutes)
"""

from typing import Any

import numpy as np
import torch
from contenders import RHO, Step, Workload, trainer_of, workload
from step_cost import main, times_of

from hf_sam import SAMTrainer
from hf_sam.step.window import MicroBatch

# model, image size in pixels, batch size
MODELS = [
    ("mobilenetv2_035", 112, 64),
    ("tf_efficientnet_lite0", 112, 32),
    ("vit_tiny_patch16_224", 224, 8),
]
GPU_MODELS = [("vit_base_patch16_224", 224, 64), ("efficientnet_b0", 224, 128)]
TINY_MODELS = [("test_vit", 160, 2), ("test_efficientnet", 64, 2)]  # that all runs
KINDS = ("all", "norm", "last:0.33")  # of `perturb`
QUARTER = 0.25  # of the batch


def clean_pass(work: Workload, perturb: str, fraction: float) -> Step:
    """Return SAMTrainer's clean pass for `perturb` over a fraction of the batch, as a step."""
    trainer, model = trainer_of(work, SAMTrainer, RHO, perturb=perturb, ascent_fraction=fraction)
    trainer._check_model(model)  # as when training starts

    def step() -> None:
        parts = trainer._parts_cache.parts_of(model, trainer)
        with parts.engine.step():
            window = trainer._window_of(parts)
            trainer._clean_pass(model, parts, window, MicroBatch(work.batch, None))
        trainer._window = None

    return step


def forward_pass(work: Workload) -> Step:
    def step() -> None:
        with work.autocast():
            work.model(**work.batch)

    return step


def measure(name: str, size: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Time all clean passes of one network."""
    work = workload(name, size, batch_size, bf16=torch.cuda.is_available())
    steps = {kind: clean_pass(work, kind, 1.0) for kind in KINDS}
    steps |= {f"{kind}, a quarter": clean_pass(work, kind, QUARTER) for kind in KINDS}
    steps["forward pass alone"] = forward_pass(work)
    times = times_of(steps, rounds)
    over = {n: np.quantile(t / times["all"], [0.25, 0.5, 0.75]) for n, t in times.items()}
    return {
        "model": work.name,
        "batch_size": batch_size,
        "rounds": rounds,
        "median_ms": {n: 1e3 * float(np.median(t)) for n, t in times.items()},
        "over_whole": {n: [float(x) for x in quartiles] for n, quartiles in over.items()},
    }


def row(result: dict[str, Any]) -> str:
    """One line of the table, in Markdown."""
    quartiles = [result["over_whole"][name] for name in columns()]
    cells = [f"{q[1]:.2f} ({q[0]:.2f} to {q[2]:.2f})" for q in quartiles]
    return f"| {result['model']} | {' | '.join(cells)} |"


def columns() -> list[str]:
    whole, quarter = KINDS[1:], [f"{kind}, a quarter" for kind in KINDS]
    return [*whole, *quarter, "forward pass alone"]


def head() -> str:
    return f"| model | {' | '.join(columns())} |\n" + "|---" * (1 + len(columns())) + "|"


if __name__ == "__main__":
    main(__doc__, head(), (TINY_MODELS, GPU_MODELS, MODELS), measure, row)
