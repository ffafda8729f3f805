"""Saved classifiers, untrained, and options that measure little of them."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from hf_sam.vision import ModelSource, load_classifier

SMALL = ["--examples", "16", "--batch_size", "8", "--max_eval_samples", "20", "--points", "3"]
SMALL += ["--trace_probes", "3", "--density_steps", "4", "--directions", "2", "--steps", "1"]
SMALL += ["--m", "4", "8", "--top_k", "2"]


def save(
    folder: Path,
    *,
    seed: int,
    model: str = "test_efficientnet",
    classes: int = 10,
    names: Sequence[str] | None = None,
) -> Path:
    torch.manual_seed(seed)
    source = ModelSource(model, init_scratch=True, image_size=32)
    names = names or [str(i) for i in range(classes)]
    load_classifier(source, names).model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n\nText.\n")
    (folder / "run.json").write_text(
        json.dumps({"command": f"train {seed} <b>", "hyperparameters": {"optim": "sgd"},
                    "sam": {"rho": 0.1} if seed else None})
    )  # fmt: skip
    return folder
