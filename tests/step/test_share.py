"""`ascent_fraction`: the clean pass on a share of the micro-batch."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from cases import CLASSES, Recorder, build, examples, make_trainer
from counters import CountExamples
from method_table import RHO, momentum
from tiny_transformers import llama, texts
from torch import nn
from torch.utils.data import DataLoader
from trajectory import LR, STEPS
from transformers import BatchEncoding

from hf_sam import SAMTrainer
from hf_sam.step.share import first_examples


@pytest.mark.parametrize(("fraction", "kept"), [(0.5, 4), (0.3, 3), (0.01, 1)])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_share_of_the_micro_batch_ascends(
    fraction: float, kept: int, accumulation: int, tmp_path: Path
) -> None:
    """Each micro-batch of 8 has its own perturbation, from its first examples."""
    model = build("tied")
    gradient, recorder = oracles.flat_gradient(copy.deepcopy(model).train()), Recorder()
    w, state = oracles.flat_weights(model), {}
    settings = {"rho": RHO, "ascent_fraction": fraction, **momentum("sgd")}
    trainer = make_trainer(
        model, tmp_path, recorder=recorder, gradient_accumulation_steps=accumulation, **settings
    )
    counter = CountExamples(model)
    trainer.train()
    batches = recorder.batches[: STEPS * accumulation]
    windows = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    for window in windows:
        g = torch.zeros_like(w)
        for batch in window:
            ascent = gradient(w, {name: rows[:kept] for name, rows in batch.items()})
            g += gradient(w + RHO * oracles.unit(ascent), batch) / len(window)
        w = oracles.sgd(w, g, state, lr=LR, momentum=0.9)
    torch.testing.assert_close(oracles.flat_weights(model), w, rtol=0, atol=1e-10)
    assert counter.examples == STEPS * accumulation * (8 + kept)
    assert trainer.gradient_evaluations == STEPS + round(STEPS * kept / 8)


def test_the_noise_of_a_share_is_smoothed(tmp_path: Path) -> None:
    """VaSSO's direction is of the shares' gradients, of the last blocks alone."""
    model = build("mlp")
    last = oracles.name_mask(model, lambda name: name.startswith("body.2."))
    gradient, recorder = oracles.flat_gradient(copy.deepcopy(model).train()), Recorder()
    w, state, d = oracles.flat_weights(model), {}, None
    method = {"method": "vasso", "method_args": "theta=0.3", "perturb": "last:0.5"}
    settings = {"rho": RHO, "ascent_fraction": 0.25, **method, **momentum("sgd")}
    make_trainer(model, tmp_path, recorder=recorder, **settings).train()
    for batch in recorder.batches[:STEPS]:
        g = last * gradient(w, {name: rows[:2] for name, rows in batch.items()})
        d = g if d is None else 0.7 * d + 0.3 * g
        g = gradient(w + RHO * oracles.unit(d), batch)
        w = oracles.sgd(w, g, state, lr=LR, momentum=0.9)
    torch.testing.assert_close(oracles.flat_weights(model), w, rtol=0, atol=1e-10)


def half(rows: int) -> int:
    return rows // 2


def test_labels_of_a_share_are_counted(tmp_path: Path) -> None:
    """Of a language model: the loss and its gradient's norm are those of the share's mean."""
    settings = {"ascent_fraction": 0.5, "rho": 0.0001, "learning_rate": 0.0, "max_steps": 4}
    recorder = Recorder()
    model = llama()
    trainer = make_trainer(
        model, tmp_path, data=texts(), dtype=torch.float32, recorder=recorder,
        logging_steps=1, **settings,
    )  # fmt: skip
    trainer.train()
    seen = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    for loss, batch in zip(seen, recorder.batches, strict=False):
        first = {name: rows[:4] for name, rows in batch.items()}
        assert loss == pytest.approx(float(model(**first).loss.detach()), rel=1e-4)
    assert not any("sharpness" in entry for entry in trainer.state.log_history)
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"x": torch.zeros(8, 2), "labels": torch.zeros(8), "names": list("abcdefgh")}, [2, 2, 2]),
        ({"weights": torch.zeros(3), "x": torch.zeros(8, 1), "labels": torch.zeros(8)}, [3, 2, 2]),
        ({"flag": True, "scale": torch.tensor(1.0), "x": torch.zeros(8, 2)}, [None, None, 2]),
        ({"labels": [{"boxes": torch.zeros(8, 4)}] * 8, "x": torch.zeros(8, 2)}, [2, 2]),
    ],
)
def test_what_belongs_to_an_example_is_cut(inputs: dict[str, Any], expected: list[Any]) -> None:
    cut = first_examples(inputs, lambda rows: rows // 4)
    lengths = [len(x) if hasattr(x, "__len__") and getattr(x, "ndim", 1) else None
               for x in cut.values()]  # fmt: skip
    assert lengths == expected


def test_rows_that_are_no_examples_are_refused() -> None:
    """Patches of images, as vision-language models take them; masks that all examples share."""
    patches = {"labels": torch.zeros(4, 9), "pixel_values": torch.zeros(32, 8)}
    with pytest.raises(ValueError, match=r"got `pixel_values` of shape \(32, 8\) beside 4 exa"):
        first_examples(patches, half)
    shared = {"labels": torch.zeros(4, 9), "position_ids": torch.zeros(1, 9)}
    assert first_examples(shared, half)["position_ids"].shape == (1, 9)


@pytest.mark.parametrize(
    "inner",
    [{"x": torch.zeros(8, 2)}, (torch.zeros(8, 2),) * 2, {"a": {"k": ((torch.zeros(8, 2),),)}}],
)
def test_examples_within_another_input_are_refused(inner: Any) -> None:
    with pytest.raises(ValueError, match="got some of a row for each example inside `inner`"):
        first_examples({"inner": inner, "labels": torch.zeros(8)}, half)


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("labels", [torch.zeros(8), torch.zeros(8, dtype=torch.long)])
def test_one_entry_for_each_example_is_cut(kind: Any, labels: torch.Tensor) -> None:
    """Whatever the entries are: boxes of images, of which one has as many as there are images."""
    boxes = kind(torch.zeros(count, 4) for count in range(1, 9))
    cut = first_examples({"boxes": boxes, "labels": labels}, half)["boxes"]
    assert isinstance(cut, kind) and [len(x) for x in cut] == [1, 2, 3, 4]


def test_one_example_is_left_whole() -> None:
    inputs = {"labels": torch.zeros(1), "options": {"temperature": torch.ones(1)}}
    assert first_examples(inputs, half) == inputs


@pytest.mark.parametrize(
    ("labels", "rows"),
    [
        (torch.tensor([-100, 1, -100, 2]), [1, 3]),
        (torch.tensor([[-100, 1], [-100, -100], [3, -100], [1, 1]]), [0, 2]),
        (torch.full((4,), -100), [0, 1]),
        (torch.zeros(4, 0, dtype=torch.long), [0, 1]),
        (torch.tensor([156, 1, 156, 2], dtype=torch.uint8), [0, 1]),
        (torch.tensor([-100.0, 1, 2, 3]), [0, 1]),
    ],
)
def test_rows_with_labels(labels: torch.Tensor, rows: list[int]) -> None:
    inputs = {"x": torch.arange(4.0), "labels": labels, "names": list("abcd")}
    cut = first_examples(inputs, half)
    assert cut["x"].tolist() == rows and cut["names"] == ["abcd"[i] for i in rows]
    assert cut["labels"].tolist() == labels[rows].tolist()


class Masked(nn.Module):
    """0 / 0 of no labels at all, as where -100 is masked by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build("mlp").body

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        mask = labels.ne(-100)
        losses = nn.functional.cross_entropy(self.body(x), labels, reduction="none")
        return {"loss": (losses * mask).sum() / mask.sum()}


def test_examples_without_labels_come_last(tmp_path: Path) -> None:
    data = examples()
    for i, row in enumerate(data):
        row["labels"] = torch.tensor(-100) if i % 8 < 5 else row["labels"]
    model, recorder = Masked(), Recorder()
    gradient = oracles.flat_gradient(copy.deepcopy(model))
    w, state = oracles.flat_weights(model), {}
    settings = {"rho": RHO, "ascent_fraction": 0.25, **momentum("sgd")}
    trainer = make_trainer(model, tmp_path, data=data, recorder=recorder, **settings)
    trainer.get_train_dataloader = lambda: trainer.accelerator.prepare(
        DataLoader(data, batch_size=8, collate_fn=recorder)
    )
    trainer.train()
    for batch in recorder.batches[:STEPS]:
        g = gradient(w, {name: rows[5:7] for name, rows in batch.items()})
        w = oracles.sgd(w, gradient(w + RHO * oracles.unit(g), batch), state, lr=LR, momentum=0.9)
    torch.testing.assert_close(oracles.flat_weights(model), w, rtol=0, atol=1e-10)


def test_masks_of_a_step_are_not_those_of_the_next(tmp_path: Path) -> None:
    """The last layer's: a clean pass on two rows draws 2 x 6 and 2 x 12 numbers."""
    masks: list[torch.Tensor] = []
    model = build("dropout")
    model.body[3].p = 0.5
    model.body[3].register_forward_hook(lambda _, args, out: masks.append(out.eq(0).flatten()))
    make_trainer(model, tmp_path, ascent_fraction=0.25, rho=RHO).train()
    descents = [mask for mask in masks if len(mask) == 8 * 12]
    assert len(descents) == STEPS
    for mask, following in itertools.pairwise(descents):
        shared = (mask[36:] == following[:-36]).double().mean()
        assert shared < 0.8, "60 independent draws agree on half of them, with 6 % of deviation"


@pytest.mark.parametrize(("count", "fraction"), [(43, 0.25), (16, 0.125)])
def test_batch_norm_has_two_examples(count: int, fraction: float, tmp_path: Path) -> None:
    model = build("batch_norm")
    counter = CountExamples(model)
    settings = {"max_steps": -1, "num_train_epochs": 1, "ascent_fraction": fraction}
    trainer = make_trainer(model, tmp_path, data=examples(count=count), **settings)
    trainer.train()
    steps = math.ceil(count / 8)
    assert counter.examples == count + 2 * steps
    assert trainer.gradient_evaluations == round(steps * 1.25)


def test_batch_norm_of_a_head_outside_has_two_examples_too(tmp_path: Path) -> None:
    class Headed(SAMTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            logits = self.head(model.body(inputs["x"]))
            return torch.nn.functional.cross_entropy(logits, inputs["labels"])

    trainer = make_trainer(build("mlp"), tmp_path, trainer=Headed, ascent_fraction=0.125)
    trainer.head = torch.nn.BatchNorm1d(CLASSES, affine=False).double()
    trainer.train()
    assert trainer.gradient_evaluations == round(trainer.state.global_step * 1.25)


def test_the_batch_stays_of_its_kind() -> None:
    batch = BatchEncoding({"x": torch.zeros(4, 2), "labels": torch.zeros(4)})
    cut = first_examples(batch, half)
    assert isinstance(cut, BatchEncoding) and len(cut.labels) == 2 and len(batch.labels) == 4


@pytest.mark.parametrize("labels", [torch.zeros(4), torch.tensor([-100, 1, 2, 3])])
def test_rows_of_arrays_are_cut(labels: torch.Tensor) -> None:
    batch = {"labels": labels, "ages": np.arange(4), "grid": np.zeros((4, 3))}
    cut = first_examples(batch, half)
    assert cut["ages"].tolist() == ([0, 1] if labels.is_floating_point() else [1, 2])
    assert cut["grid"].shape == (2, 3)
    with pytest.raises(ValueError, match=r"got `grid` of shape \(8, 3\) beside 4 examples"):
        first_examples({**batch, "grid": np.zeros((8, 3))}, half)


def test_a_batch_without_names_is_refused(tmp_path: Path) -> None:
    class Pairs(SAMTrainer):
        def get_train_dataloader(self) -> Any:
            whole = super().get_train_dataloader()
            return [[batch["x"], batch["labels"]] for batch in whole]

        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return model(*inputs)["loss"]

    settings = {"trainer": Pairs, "max_steps": 2}
    make_trainer(build("mlp"), tmp_path, **settings).train()
    with pytest.raises(ValueError, match="must find tensors by name, got inputs that are a list"):
        make_trainer(build("mlp"), tmp_path, ascent_fraction=0.5, **settings).train()


def test_examples_must_be_found() -> None:
    with pytest.raises(ValueError, match="must find the examples in the first dimension"):
        first_examples({"flag": True, "scale": torch.tensor(1.0)}, half)
