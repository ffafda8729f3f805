"""What a SAM step costs beside two forward-backward passes, and beside the plain Trainer's step.

The three are timed in turn in one process, on one model and one batch, because these machines are
noisy: a ratio is taken within each round, and its median and quartiles over the rounds are printed.

python benchmarks/step_cost.py --rounds 30 --output benchmarks/step_cost.json
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from transformers import Trainer

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.vision import ModelSource, load_classifier

# model, image size in pixels, batch size: a step takes about half a second on two cores
MODELS = [("mobilenetv2_035", 144, 64), ("vit_tiny_patch16_224", 224, 8)]
CLASSES = 50
BARS = {"over two passes": 1.03, "over plain step": 2.05}


def make_steps(name: str, size: int, batch_size: int) -> dict[str, Callable[[], None]]:
    """Return the three steps on one model: SAMTrainer's, the plain Trainer's, and two bare passes.

    Each has an SGD optimizer of its own with momentum, clipping off.
    """
    source = ModelSource(name, init_scratch=True, image_size=size)
    model = load_classifier(source, [str(i) for i in range(CLASSES)]).model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device=device, memory_format=torch.channels_last)
    pixels = torch.randn(batch_size, 3, size, size).to(memory_format=torch.channels_last)
    batch = {"pixel_values": pixels, "labels": torch.randint(CLASSES, (batch_size,))}
    batch = {key: value.to(device) for key, value in batch.items()}

    def trainer_step(kind: type[Trainer], rho: float) -> Callable[[], None]:
        args = SAMConfig(output_dir=tempfile.mkdtemp(), rho=rho, dataloader_pin_memory=False)
        trainer = kind(model=model, args=args)
        trainer.current_gradient_accumulation_steps = 1
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        prepared, optimizer = trainer.accelerator.prepare(model, optimizer)

        def step() -> None:
            trainer.training_step(prepared, batch)
            optimizer.step()
            prepared.zero_grad()

        return step

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def two_passes() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {
        "SAM step": trainer_step(SAMTrainer, rho=0.05),
        "plain step": trainer_step(Trainer, rho=0.0),
        "two passes": two_passes,
    }


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(name: str, size: int, batch_size: int, rounds: int) -> dict[str, object]:
    """Time the three steps in turn, in another order each round, after two rounds unmeasured."""
    steps = make_steps(name, size, batch_size)
    times: dict[str, list[float]] = {key: [] for key in steps}
    order = list(steps)
    for round_ in range(rounds + 2):
        for key in order:
            taken = seconds(steps[key])
            if round_ >= 2:
                times[key].append(taken)
        order = [*order[1:], order[0]]
    ratios = {
        "over two passes": np.divide(times["SAM step"], times["two passes"]),
        "over plain step": np.divide(times["SAM step"], times["plain step"]),
    }
    return {
        "model": name,
        "image_size": size,
        "batch_size": batch_size,
        "rounds": rounds,
        "median_ms": {key: 1e3 * float(np.median(value)) for key, value in times.items()},
        "ratios": {
            key: [float(q) for q in np.quantile(value, [0.25, 0.5, 0.75])]
            for key, value in ratios.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="measured rounds for each model")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| model | SAM step, ms | over two passes (quartiles) | over plain step (quartiles) |")
    print("|---|---|---|---|")
    results = []
    for model in MODELS:
        result = measure(*model, rounds=options.rounds)
        results.append(result)
        cells = [f"{q[1]:.3f} ({q[0]:.3f}-{q[2]:.3f})" for q in result["ratios"].values()]
        print(f"| {model[0]} | {result['median_ms']['SAM step']:.0f} | {' | '.join(cells)} |")
    if options.output:
        versions = {"torch": torch.__version__, "timm": timm.__version__}
        facts = {"device": device, "threads": torch.get_num_threads(), **versions}
        facts |= {"date": time.strftime("%Y-%m-%d"), "bars": BARS, "results": results}
        options.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
