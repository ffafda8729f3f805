"""How near cheaper gradients come to the direction in which SAM ascends, a whole batch's gradient.

python benchmarks/direction.py --data_dir data/flowers102 --weights_dir data/weights

Cosines at three moments of a short fine-tuning on Flowers-102 by the base optimizer. Takes its
train.parquet, the networks' weights as safetensors, and eight minutes of one free core.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_sam import running_stats_kept, take_gradients
from hf_sam.ascent.vectors import Vector, combine, gradient_norm, inner_product
from hf_sam.vision import ImageDataset, ModelSource, build_transforms, load_classifier, load_local

RESULTS = Path(__file__).with_suffix(".json")
THETA = 0.4  # VaSSO's share of the current gradient: the authors' default, 0.9, hardly smooths


@dataclass(frozen=True)
class Training:
    source: ModelSource
    optimizer: str = "SGD"
    options: dict[str, float] = field(default_factory=lambda: {"lr": 0.02, "momentum": 0.9})
    pixels: int = 112  # a side
    batch: int = 64
    epochs: int = 5
    images: int = 1020  # the official training half
    measured: int = 8  # batches at each moment, always the same


KERAS = {"pad_type": "same", "bn_eps": 0.001}
MOBILENET = ModelSource("mobilenetv2_035", mean=(0.5,) * 3, std=(0.5,) * 3, model_kwargs=KERAS)
# Its embedding of 8x8 patches is resampled to 4x4.
VIT = ModelSource("vit_small_patch14_dinov2", model_kwargs={"dynamic_img_size": True})
ADAMW = {"lr": 5e-5, "weight_decay": 0.05}
TRAININGS = {  # by weights; the ViT's is shorter: it passes four images a second
    "mobilenetv2_035_in1k_notop": Training(MOBILENET),
    "tf_efficientnet_lite0_in1k": Training(ModelSource("tf_efficientnet_lite0")),
    "vit_small_patch14_dinov2_fp16": Training(VIT, "AdamW", ADAMW, 112, 32, 2, 640, 4),
}


def gradient(
    model: nn.Module, images: Tensor, labels: Tensor, *, bf16: bool = False
) -> tuple[float, Vector]:
    """Return loss and gradient, and put the running statistics back: SAM's clean pass."""
    with running_stats_kept(model):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(pixel_values=images).logits, labels)
        loss.backward()
    return loss.item(), take_gradients(model.parameters())


def cosine(a: Vector, b: Vector) -> float:  # over all trainable parameters
    return float(inner_product(a, b) / (gradient_norm(a) * gradient_norm(b)))


def smoothed(before: Vector, now: Vector) -> Vector:
    """Return VaSSO's direction, from the one at the step before."""
    return combine(combine([None] * len(now), 1.0, now, THETA), 1.0, before, 1 - THETA)


def measure(model: nn.Module, batches: list[list[Tensor]], before: Vector) -> dict[str, Any]:
    """Compare each batch's gradient with cheaper ones, and with the next batch's."""
    losses, whole = zip(*(gradient(model, *batch) for batch in batches), strict=True)
    cosines: dict[str, list[float]] = {}
    for batch, clean_grad, other in zip(batches, whole, whole[1:] + whole[:1], strict=True):
        half, quarter = ([x[: len(x) // share] for x in batch] for share in (2, 4))
        halved = F.interpolate(batch[0], scale_factor=0.5, mode="bilinear", antialias=True)
        found = {
            "halved images": gradient(model, halved, batch[1])[1],
            "half batch": gradient(model, *half)[1],
            "quarter batch": gradient(model, *quarter)[1],
            "other batch": other,
        }
        found["quarter batch, smoothed"] = smoothed(before, found["quarter batch"])
        for name, cheaper in found.items():
            cosines.setdefault(name, []).append(cosine(cheaper, clean_grad))
    means = {name: round(statistics.mean(of), 3) for name, of in cosines.items()}
    sds = {name: round(statistics.stdev(of), 3) for name, of in cosines.items()}
    return {"loss": round(statistics.mean(losses), 3), "mean": means, "sd": sds}


def batches_of(data: ImageDataset, size: int, epoch: int) -> list[list[Tensor]]:
    """Return images and labels; order and crops depend on the epoch only."""
    data.epoch.fill_(epoch)
    order = torch.Generator().manual_seed(epoch)
    loader = DataLoader(data, size, shuffle=True, drop_last=True, generator=order)
    return [[batch["pixel_values"], batch["labels"]] for batch in loader]


def run(
    training: Training,
    weights: Path,
    data_dir: Path,
    measure: Callable[[nn.Module, list[list[Tensor]], Vector], dict[str, Any]] = measure,
) -> Iterator[dict[str, Any]]:
    """Fine-tune with the recipes' crops, clipping and cosine, and measure on the way."""
    torch.manual_seed(0)
    rows = load_local(data_dir)["train"]
    rows = rows.select([i for i, file in enumerate(rows["file"]) if file.startswith("trn/")])
    source = replace(training.source, weights=weights, image_size=training.pixels)
    classifier = load_classifier(source, rows.features["label"].names)
    model = classifier.model.to(memory_format=torch.channels_last).train()
    transform, _ = build_transforms(classifier.data_config, crop_scale=(0.25, 1.0))
    data = ImageDataset(rows.select(range(training.images)), transform, split="train", cache=True)
    fixed = batches_of(data, training.batch, training.epochs)[: training.measured]
    steps = training.epochs * (training.images // training.batch)
    moments = {0: "start", steps // 2: "middle", steps: "end"}
    optimizer = getattr(torch.optim, training.optimizer)(model.parameters(), **training.options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = (b for e in range(training.epochs) for b in batches_of(data, training.batch, e))
    direction: Vector = [None for _ in model.parameters()]
    for step in range(steps + 1):
        if step in moments:
            yield {"moment": moments[step], "step": step, **measure(model, fixed, direction)}
        if step == steps:
            return
        batch = next(batches)
        direction = smoothed(direction, gradient(model, *(x[: len(x) // 4] for x in batch))[1])
        F.cross_entropy(model(pixel_values=batch[0]).logits, batch[1]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        print(f"{source.name}: step {step + 1} of {steps}", end="\r", flush=True)


def places(document: str) -> argparse.Namespace:
    """Read where data and weights are from the command line."""
    parser = argparse.ArgumentParser(description=document)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--weights_dir", type=Path, required=True)
    return parser.parse_args()


def heading(document: str) -> dict[str, Any]:
    """Return the command that a script's document shows, the date and the versions."""
    versions = {name: version(name) for name in ("torch", "timm")}
    command = document.splitlines()[2]
    return {"command": command, "date": str(date.today()), "versions": versions}


def main() -> None:
    given, result = places(str(__doc__)), heading(str(__doc__))
    result |= {"trainings": {name: asdict(of) for name, of in TRAININGS.items()}, "rows": []}
    for name, training in TRAININGS.items():
        for row in run(training, given.weights_dir / f"{name}.safetensors", given.data_dir):
            result["rows"].append({"network": training.source.name, **row})
            print(result["rows"][-1], flush=True)
            RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
