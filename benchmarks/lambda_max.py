"""Time and memory of lambda_max: MobileNetV2 0.35, 256 images at 96 px, trained in batches of 64.

python benchmarks/lambda_max.py    each measurement in a process of its own, for its peak memory
"""

import resource
import subprocess
import sys
import time

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_sam.diagnostics import hessian

EXAMPLES, PIXELS = 256, 96
TRAINED, MEASURED = 64, 32  # images of a batch: half of it keeps within twice a step's memory


def problem(batch: int) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Return the network, in channels-last as recipes train it, and random images."""
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_035", num_classes=50)
    pixels = torch.randn(EXAMPLES, 3, PIXELS, PIXELS)
    labels = torch.randint(50, (EXAMPLES,))
    batches = list(zip(pixels.split(batch), labels.split(batch), strict=True))
    return model.to(memory_format=torch.channels_last), batches


def training_step() -> str:
    """Make two training steps of the base optimizer."""
    model, batches = problem(TRAINED)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    before = _peak()
    for pixels, labels in batches[:2]:
        F.cross_entropy(model(pixels.to(memory_format=torch.channels_last)), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return f"training step: {_peak() - before:.0f} MB"


def largest_eigenvalue() -> str:
    """Measure it."""
    model, batches = problem(MEASURED)
    before, start = _peak(), time.perf_counter()
    found = hessian(model, batches, top_k=1, trace_probes=0, progress=False)
    seconds = time.perf_counter() - start
    return f"lambda_max {found.lambda_max:.4g}: {seconds:.0f} s, {found.products} products, " + (
        f"{_peak() - before:.0f} MB, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(globals()[sys.argv[1]]())
    else:
        for measure in (training_step, largest_eigenvalue):
            subprocess.run([sys.executable, __file__, measure.__name__], check=True)
