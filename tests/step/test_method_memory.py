"""What methods keep: in which file, how much, and what is read back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import (
    CLASSES,
    Classifier,
    build,
    make_trainer,
)
from method_table import RHO, TABLE, momentum, settings_of
from observers import fingerprint
from safetensors.torch import load_file
from step_cost import PeakBytes
from torch import nn
from transformers import Trainer, TrainerCallback

from hf_sam.step.memory_file import MEMORY_FILE


@pytest.mark.parametrize("method", ["looksam", "s2sam", "friendly_sam", "vasso", "gsam"])
def test_memory_lies_in_a_file_of_its_own(method: str, tmp_path: Path) -> None:
    settings = {**momentum("sgd"), **settings_of(method), "save_strategy": "steps"}
    model = build("mlp")
    make_trainer(model, tmp_path, save_steps=5, max_steps=5, **settings).train()
    checkpoint = tmp_path / "checkpoint-5"
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert {name for own in optimizer["state"].values() for name in own} == {"momentum_buffer"}
    if method == "gsam":
        assert not (checkpoint / MEMORY_FILE).exists()
    else:
        kept = load_file(checkpoint / MEMORY_FILE)
        assert {name: x.shape for name, x in kept.items()} == {
            name: p.shape for name, p in model.named_parameters()
        }


def test_memory_of_another_method_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Resumed by FriendlySAM from a checkpoint of S2-SAM, m starts at 0, as it does from SAM's."""
    weights = []
    for method in ("s2sam", "friendly_sam"):
        folder = tmp_path / method
        before = {**momentum("sgd"), "rho": RHO, "save_strategy": "steps", "save_steps": 5}
        make_trainer(build("mlp"), folder, method=method, max_steps=5, **before).train()
        other = "friendly_sam" if method == "s2sam" else "s2sam"
        checkpoint = str(folder / "checkpoint-5")
        for name in (other, method):
            model = build("mlp")
            settings = {**momentum("sgd"), "rho": RHO, "method": name, "max_steps": 8}
            trainer = make_trainer(model, folder / name, **settings)
            trainer.train(resume_from_checkpoint=checkpoint)
            weights.append(fingerprint(model))
            assert (f"{name} begins anew" in caplog.text) == (name == other)
            caplog.clear()
        Path(checkpoint, MEMORY_FILE).unlink()
        model = build("mlp")
        trainer = make_trainer(model, folder / "without", **{**settings, "method": other})
        trainer.train(resume_from_checkpoint=checkpoint)
        assert fingerprint(model) == weights[-2] != weights[-1]


# Copies of the trainable parameters, as docs/methods.md has them: at the peak of a step, and kept.
COPIES = {
    "sam": (1, 0),
    "looksam": (2, 1),
    "msam": (1, 0),
    "s2sam": (1, 1),
    "rst": (1, 0),
    "friendly_sam": (2, 1),
    "vasso": (2, 1),
    "gsam": (2, 0),
    "wsam": (2, 0),
    "le_sam": (1, 0),
    "ema": (1, 0),  # the average itself is made after the step
    "swa": (1, 0),
}


@TABLE
def test_memory_is_that_which_is_documented(method: str, tmp_path: Path) -> None:
    settings = {**settings_of(method), "ascent_interval": 1}
    if method == "rst":
        settings["method_args"] = "p=1"
    wide = nn.Sequential(*(nn.Linear(64, 64) for _ in range(20)), nn.Linear(64, CLASSES))
    batch = {"x": torch.randn(2, 64), "labels": torch.tensor([0, 1])}
    size = 4 * sum(p.numel() for p in wide.parameters())
    peaks, kept = [], 0
    for kind in ({**settings, "rho": 0.0}, settings):
        trainer = make_trainer(Classifier(wide), tmp_path, dtype=torch.float32, **kind)
        trainer.optimizer = torch.optim.SGD(wide.parameters(), lr=0.01, momentum=0.9)
        for step in range(3):
            with PeakBytes() as followed:
                trainer.training_step(trainer.model, batch)
            if step < 2:
                trainer.optimizer.step()
            trainer.model.zero_grad()
        peaks.append(followed.peak)
        kept = sum(x.numel() * x.element_size() for x in trainer._ascent.memory.values())
    at_peak = (peaks[1] - peaks[0]) / size
    assert at_peak == pytest.approx(COPIES[method][0], abs=0.15)
    assert kept / size == COPIES[method][1]


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_memory_that_cannot_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    settings = {**momentum("sgd"), "method": "s2sam", "save_strategy": "steps", "save_steps": 3}
    make_trainer(build("mlp"), tmp_path, max_steps=3, **settings).train()
    (tmp_path / "checkpoint-3" / MEMORY_FILE).write_bytes(content)
    trainer = make_trainer(build("mlp"), tmp_path, max_steps=6, **settings)
    with pytest.raises(ValueError, match=f"{MEMORY_FILE} must be a file of safetensors"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


class Changes(TrainerCallback):
    """Freezes the last layer for steps 2 and 3, or gives it another shape; notes the memory."""

    def __init__(self, trainer: Trainer, *, resizes: bool) -> None:
        self.trainer, self.resizes = trainer, resizes
        self.layer = [m for m in trainer.model.modules() if isinstance(m, nn.Linear)][-1]
        self.names: list[set[str]] = []

    def on_step_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if not self.resizes:
            self.layer.requires_grad_(state.global_step not in (2, 3))
        elif state.global_step == 2:
            for name in ("weight", "bias"):
                old = getattr(self.layer, name)
                new = nn.Parameter(torch.cat([old.detach(), old.detach()]))
                setattr(self.layer, name, new)
                for group in self.trainer.optimizer.param_groups:
                    group["params"] = [new if p is old else p for p in group["params"]]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.names.append(set(self.trainer._ascent.memory))


@pytest.mark.parametrize("method", ["looksam", "s2sam", "friendly_sam", "vasso"])
def test_nothing_is_kept_of_what_is_frozen(method: str, tmp_path: Path) -> None:
    """Once it is trained again, gradients of long ago say nothing about it."""
    trainer = make_trainer(build("mlp"), tmp_path, max_steps=4, **settings_of(method))
    trainer.add_callback(changes := Changes(trainer, resizes=False))
    trainer.train()
    every = {name for name, _ in trainer.model.named_parameters()}
    last = {n for n, p in trainer.model.named_parameters() if p in set(changes.layer.parameters())}
    assert changes.names == [every, every, every - last, every - last] and last


@TABLE
def test_a_layer_that_a_callback_resizes(method: str, tmp_path: Path) -> None:
    settings = {**momentum("sgd"), **settings_of(method), "max_steps": 6}
    trainer = make_trainer(build("mlp"), tmp_path, **settings)
    trainer.add_callback(changes := Changes(trainer, resizes=True))
    trainer.train()
    assert len(changes.layer.bias) == 2 * CLASSES
    for param in trainer.model.parameters():
        assert param.isfinite().all()
