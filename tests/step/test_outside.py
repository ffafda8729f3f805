"""Parameters that the optimizer holds beside the model's are trained as if they were the model's.

Whatever outside code trains, a head or a temperature: one model that has it all within is the
measure, itself compared with the equations in `test_oracle.py`.
"""

from functools import partial
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
from cases import Recorder, build, examples, make_trainer
from torch import Tensor, nn
from trainers import KINDS, Body, Head, SAMLossModule
from transformers import Trainer

from hf_sam import SAMTrainer
from hf_sam.config import ASCENT_SCOPES
from hf_sam.step.memory_file import MEMORY_FILE


class Whole(nn.Module):
    """Body and head as one model."""

    def __init__(self) -> None:
        super().__init__()
        self.body = seeded(Body, 0)
        self.head = seeded(Head, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": self.head(self.body(x)["features"], labels)}


def seeded(kind: type[nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return kind().double()


class SAMWhole(SAMTrainer):
    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        rate = self.args.learning_rate
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=0.9)
        return self.optimizer


def flat(*modules: nn.Module) -> Tensor:
    tensors = [x for module in modules for x in module.state_dict().values()]
    return torch.cat([x.detach().flatten() for x in tensors])


SETTINGS: dict[str, dict[str, Any]] = {
    "sam": {},
    "asam": {"adaptive": True, "rho": 0.5},
    "p-norm": {"perturbation_norm": 4.0},
    "an interval": {"ascent_interval": 2},
    "a share": {"ascent_fraction": 0.5},
    **{
        method: {"method": method}
        for method in ("gsam", "wsam", "friendly_sam", "vasso", "msam", "s2sam")
    },
    "looksam": {"method": "looksam", "ascent_interval": 2},
}


@pytest.mark.parametrize("scope", ASCENT_SCOPES)
@pytest.mark.parametrize("name", SETTINGS)
def test_outside_is_as_inside(name: str, scope: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rho": 0.3, "gradient_accumulation_steps": 2, "max_steps": 6}
    settings |= {"per_device_train_batch_size": 4, **SETTINGS[name]}
    settings |= {"ascent_scope": scope} if "method" not in settings else {}
    body, whole = seeded(Body, 0), Whole()
    trainer = make_trainer(body, tmp_path, trainer=SAMLossModule, **settings)
    trainer.train()
    make_trainer(whole, tmp_path, trainer=SAMWhole, **settings).train()
    start = Whole()
    assert (flat(whole.body, whole.head) - flat(start.body, start.head)).norm() > 0.1
    # one norm over all tensors, in another order
    difference = flat(body, trainer.head) - flat(whole.body, whole.head)
    assert difference.abs().max() < 1e-12


@pytest.mark.parametrize("scope", ASCENT_SCOPES)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_it_follows_the_equations(accumulation: int, scope: str, tmp_path: Path) -> None:
    body, reference, recorder = seeded(Body, 0), Whole(), Recorder()
    trainer = make_trainer(
        body, tmp_path, trainer=SAMLossModule, recorder=recorder, rho=0.3, ascent_scope=scope,
        max_steps=6, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    trainer.train()
    w, state = oracles.flat_weights(reference), {}
    for step in range(6):  # 6 micro-batches an epoch
        window = recorder.batches[step * accumulation : (step + 1) * accumulation]
        g = oracles.sam_gradient(
            oracles.flat_gradient(reference), w, window, rho=0.3,
            shared=scope != "micro_batch", model=reference,
        )  # fmt: skip
        w = oracles.sgd(w, g, state, lr=0.1, momentum=0.9)
    trained = torch.cat([oracles.flat_weights(body), oracles.flat_weights(trainer.head)])
    assert (trained - w).abs().max() < 1e-12


class Weighed(SAMTrainer):
    """A trained temperature, bare on the trainer; the loss is a function that closes over it."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        self.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
        trained = [*self.model.parameters(), self.temperature]
        self.optimizer = torch.optim.SGD(trained, lr=self.args.learning_rate)
        return self.optimizer

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        return F.cross_entropy(model(inputs["x"])["logits"] * self.temperature, inputs["labels"])


@pytest.mark.parametrize("fails", [False, True])
def test_a_parameter_on_the_trainer_is_perturbed_and_put_back(fails: bool, tmp_path: Path) -> None:
    seen: list[float] = []

    class Seen(Weighed):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            seen.append(self.temperature.item())
            if fails and len(seen) == 2:
                raise RuntimeError("in the perturbed pass")
            return super().compute_loss(model, inputs)

    trainer = make_trainer(build("mlp"), tmp_path, trainer=Seen, max_steps=1, rho=0.3)
    if fails:
        with pytest.raises(RuntimeError, match="in the perturbed pass"):
            trainer.train()
        assert float(trainer.temperature) == 1.0
    else:
        trainer.train()
        assert float(trainer.temperature) != 1.0
    assert seen[0] == 1.0
    assert seen[1] != 1.0


def test_what_is_kept_of_it_is_resumed(tmp_path: Path) -> None:
    """FriendlySAM's average of the head's gradients too, by the head's name."""
    settings = {"method": "friendly_sam", "rho": 0.3, "save_strategy": "steps", "save_steps": 3}
    kind = KINDS["loss module"]()

    def trained(steps: int, folder: Path, head: nn.Module | None = None, **kwargs: Any) -> Trainer:
        body = seeded(Body, 0)
        trainer = make_trainer(body, folder, trainer=kind.sam, max_steps=steps, **settings)
        if head is not None:  # the Trainer saves nothing of a module outside
            trainer.head.load_state_dict(head.state_dict())
        trainer.train(**kwargs)
        return trainer

    whole = trained(6, tmp_path / "whole")
    half = trained(3, tmp_path / "half")
    checkpoint = tmp_path / "half" / "checkpoint-3"
    assert (checkpoint / MEMORY_FILE).exists()
    resumed = trained(6, tmp_path / "half", half.head, resume_from_checkpoint=str(checkpoint))
    assert torch.equal(flat(resumed.model, resumed.head), flat(whole.model, whole.head))


def test_asam_must_know_the_names(tmp_path: Path) -> None:
    class Hidden(Weighed):
        def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
            optimizer = super().create_optimizer()
            del self.temperature
            return optimizer

    with pytest.raises(ValueError, match="must know the names of parameters.* got 1 in the optim"):
        make_trainer(build("mlp"), tmp_path, trainer=Hidden, adaptive=True).train()


@pytest.mark.parametrize("where", ["list", "dict", "closure", "object", "partial"])
def test_a_module_is_found_wherever_the_trainer_has_it(where: str, tmp_path: Path) -> None:
    """By its buffers: both passes begin from those of before."""
    head = seeded(Head, 1)

    class Holder:
        def __init__(self) -> None:
            self.inner = head

    def loss_of(features: Tensor, labels: Tensor) -> Tensor:
        return head(features, labels)

    class Held(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
            centres.append(head.centre.clone())
            return loss_of(model(inputs["x"])["features"], inputs["labels"])

    centres: list[Tensor] = []
    trainer = make_trainer(seeded(Body, 0), tmp_path, trainer=Held, max_steps=3)
    trainer.held = {
        "list": [head], "dict": {"a": [head]}, "closure": loss_of, "object": Holder(),
        "partial": partial(loss_of, labels=None),
    }[where]  # fmt: skip
    trainer.train()
    clean, perturbed = centres[::2], centres[1::2]
    assert all(map(torch.equal, clean, perturbed))
    assert not torch.equal(clean[0], clean[1])


def test_data_beside_the_model_is_not_searched(tmp_path: Path) -> None:
    """A data set of many rows is no place of a pass."""
    trainer = make_trainer(build("mlp"), tmp_path, data=examples() * 1000, max_steps=1)
    trainer.train()
    names = [
        name
        for name, *_ in trainer._parts_cache.parts_of(trainer.model, trainer).holders.attributes()
    ]
    assert not any("dataset" in name for name in names)
