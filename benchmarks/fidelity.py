"""How much of a perturbation survives in weights held, or used in passes, in 16 bits.

The perturbation has the direction of a gradient: that of a randomly initialised network on random
images, which like a pretrained one has weights of a standard deviation of about 0.02.
"""

import json
from datetime import date
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from hf_sam import compute_perturbation, take_gradients
from hf_sam.ascent.fidelity import perturbation_fidelity

RESULTS = Path(__file__).parent / "fidelity.json"
MODELS = {"vit_tiny_patch16_224": 5.7, "vit_base_patch16_224": 86.6}  # millions of parameters
# Of the weights, and of what passes use of them: DeepSpeed's bf16 keeps float32 beside its copies.
DTYPES = (
    ("bfloat16", torch.bfloat16, None),
    ("float16", torch.float16, None),
    ("DeepSpeed's bf16", torch.float32, torch.bfloat16),
)
RHOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def gradient(model: nn.Module) -> list[Tensor | None]:
    """Of the cross-entropy on four random images, in float32."""
    images = torch.randn(4, 3, 224, 224)
    nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
    return take_gradients(model.parameters())


def measure() -> list[dict[str, str | float]]:
    rows: list[dict[str, str | float]] = []
    for name in MODELS:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=50)
        params = dict(model.named_parameters())
        clean_grad = gradient(model)
        for label, dtype, pass_dtype in DTYPES:
            rounded = [param.detach().to(dtype) for param in params.values()]
            for rho in RHOS:
                copies = [None if g is None else g.clone() for g in clean_grad]
                epsilon = compute_perturbation(params, copies, rho=rho)
                low = [None if e is None else e.to(dtype) for e in epsilon]
                ratio, cosine = perturbation_fidelity(rounded, low, pass_dtype).tolist()
                rows.append(
                    {
                        "model": name,
                        "dtype": label,
                        "rho": rho,
                        "norm": round(ratio, 3),
                        "cosine": round(cosine, 3),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    versions = {name: version(name) for name in ("torch", "timm")}
    result = {"date": str(date.today()), "versions": versions, "rows": measure()}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
