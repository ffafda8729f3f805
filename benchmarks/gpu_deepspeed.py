"""SAM under ZeRO-2, and ZeRO-3 with offload to the CPU, on one device, beside the plain Trainer.

`python benchmarks/gpu_deepspeed.py --output FILE.json`: time and peak memory of a step with
`torch_autocast` in bfloat16, and in float32 the error to SAM without DeepSpeed.
"""

import argparse
import json
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, ViTConfig, ViTForImageClassification

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import offline  # noqa: E402, F401  # no network
from deepspeed_cpu import config, deepspeed_on_cpu, whole_state  # noqa: E402

from hf_sam import SAMConfig, SAMTrainer  # noqa: E402

GPU = torch.cuda.is_available()
OFFLOAD = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
ENGINES: dict[str, dict[str, Any] | None] = {
    "no DeepSpeed": None,
    "ZeRO-2": config(2),
    "ZeRO-3, offload": config(3, zero=OFFLOAD),
}
SIZES = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


class Times(TrainerCallback):
    """When each optimizer step has ended on the device."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if GPU:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def trained(
    engine: dict[str, Any] | None, rho: float, *, is_tiny: bool, autocast: bool
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train a ViT on random images, and return its weights with time and memory of a step."""
    torch.manual_seed(0)
    sizes = {**(TINY if is_tiny else SIZES), "image_size": 32 if is_tiny else 224}
    model = ViTForImageClassification(ViTConfig(**sizes, patch_size=16, num_labels=10))
    batch, shape = (4, (3, 32, 32)) if is_tiny else (64, (3, 224, 224))
    data = [{"pixel_values": torch.randn(shape), "labels": i % 10} for i in range(2 * batch)]
    settings: dict[str, Any] = {}
    if engine is not None:
        casts = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}} if autocast else {}
        settings["deepspeed"] = {**engine, **casts}
    elif autocast:
        settings["bf16"] = True
    args = SAMConfig(
        mkdtemp(), rho=rho, ascent_scope="global", max_steps=3 if is_tiny else 12, optim="sgd",
        per_device_train_batch_size=batch, learning_rate=0.01, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=GPU, use_cpu=not GPU and engine is None, **settings,
    )  # fmt: skip
    times = Times()
    trainer = SAMTrainer(model, args, train_dataset=data, callbacks=[times])
    trainer.remove_callback(PrinterCallback)
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    steps = sorted(b - a for a, b in zip(times.ends[:-1], times.ends[1:], strict=True))
    peak = torch.cuda.max_memory_allocated() / 2**20 if GPU else float("nan")
    weights = {name: x.float().cpu() for name, x in whole_state(trainer).items()}
    return weights, {"ms": 1000 * steps[len(steps) // 2], "peak_mib": peak}


def measure(*, is_tiny: bool) -> list[dict[str, Any]]:
    """Train under each engine, plain and with SAM, and compare with SAM without DeepSpeed."""
    rows, expected = [], {}
    for name, engine in ENGINES.items():
        surroundings: AbstractContextManager[None] = nullcontext()
        if engine is not None and not GPU:
            surroundings = deepspeed_on_cpu()
        with surroundings:
            weights, _ = trained(engine, 0.05, is_tiny=is_tiny, autocast=False)
            _, sam = trained(engine, 0.05, is_tiny=is_tiny, autocast=True)
            _, plain = trained(engine, 0.0, is_tiny=is_tiny, autocast=True)
        expected = expected or weights
        largest = max(float(x.abs().max()) for x in expected.values())
        error = max(float((weights[n] - x).abs().max()) for n, x in expected.items()) / largest
        row = {"engine": name, "error_float32": error, "sam": sam, "plain": plain}
        rows.append({**row, "ratio": sam["ms"] / plain["ms"]})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure, and write what was found with date and versions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="sizes for a rehearsal on the CPU")
    options = parser.parse_args()
    os.environ |= {**ALONE, "MASTER_PORT": os.environ.get("MASTER_PORT", "29512")}
    names = ("torch", "transformers", "accelerate", "deepspeed")
    found = {
        "date": str(date.today()),
        "versions": {name: version(name) for name in names},
        "device": torch.cuda.get_device_name() if GPU else "CPU",
        "results": measure(is_tiny=options.tiny),
    }
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
