"""What bfloat16 autocast leaves of SAM: its gradient and its sharpness, beside those of float32.

python benchmarks/autocast.py --data_dir data/flowers102 --weights_dir data/weights

At three moments of a short fine-tuning on Flowers-102 in float32, by the base optimizer. Takes its
train.parquet, the networks' weights as safetensors, and half an hour of one free core.
"""

import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from direction import TRAININGS, cosine, gradient, heading, places, run
from torch import Tensor, nn

from hf_sam import compute_perturbation, perturbed
from hf_sam.ascent.vectors import Vector, combine

RESULTS = Path(__file__).with_suffix(".json")
RHOS = (0.05, 0.2)
LENGTHS = {  # shorter than for the cosines of cheaper gradients, as bfloat16 takes longer on a CPU
    "mobilenetv2_035_in1k_notop": {"measured": 4},
    "tf_efficientnet_lite0_in1k": {"epochs": 3, "measured": 4},
}


def both_passes(
    model: nn.Module, batch: list[Tensor], *, bf16: bool
) -> tuple[Vector, dict[float, tuple[float, Vector]]]:
    """Return the gradient at w and, for each rho, the rise of the loss and SAM's gradient."""
    params = dict(model.named_parameters())
    loss, clean_grad = gradient(model, *batch, bf16=bf16)
    found = {}
    for rho in RHOS:
        copies = [None if g is None else g.clone() for g in clean_grad]
        with perturbed(params.values(), compute_perturbation(params, copies, rho=rho)):
            moved, sam_grad = gradient(model, *batch, bf16=bf16)
        found[rho] = moved - loss, sam_grad
    return clean_grad, found


def change(sam_grad: Vector, clean_grad: Vector) -> Vector:
    """Return what SAM changes of the gradient."""
    copies = [None if g is None else g.clone() for g in sam_grad]
    return combine(copies, 1.0, clean_grad, -1.0)


def measure(model: nn.Module, batches: list[list[Tensor]], before: Vector) -> dict[str, Any]:
    """Compare both passes in bfloat16 with those in float32, on each batch."""
    found: dict[str, list[float]] = {}
    rises: dict[str, list[float]] = {}
    for batch in batches:
        (clean, sam), (low_clean, low_sam) = (
            both_passes(model, batch, bf16=bf16) for bf16 in (False, True)
        )
        found.setdefault("gradient", []).append(cosine(low_clean, clean))
        for rho in RHOS:
            (rise, grad), (low_rise, low_grad) = sam[rho], low_sam[rho]
            cosines = {
                f"SAM's gradient, rho {rho}": cosine(low_grad, grad),
                f"SAM's change of it, rho {rho}": cosine(
                    change(low_grad, low_clean), change(grad, clean)
                ),
            }
            for name, value in cosines.items():
                found.setdefault(name, []).append(value)
            rises.setdefault(f"float32, rho {rho}", []).append(rise)
            rises.setdefault(f"bfloat16, rho {rho}", []).append(low_rise)
    return {
        "cosine": {name: round(statistics.mean(of), 3) for name, of in found.items()},
        "sharpness": {name: round(statistics.mean(of), 4) for name, of in rises.items()},
    }


def main() -> None:
    given, result = places(str(__doc__)), heading(str(__doc__))
    trainings = {name: replace(TRAININGS[name], **of) for name, of in LENGTHS.items()}
    result |= {"trainings": {name: asdict(of) for name, of in trainings.items()}, "rows": []}
    for name, training in trainings.items():
        weights = given.weights_dir / f"{name}.safetensors"
        for row in run(training, weights, given.data_dir, measure):
            result["rows"].append({"network": training.source.name, **row})
            print(result["rows"][-1], flush=True)
            RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
