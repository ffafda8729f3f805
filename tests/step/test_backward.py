"""The clean pass computes only the gradients that are used, and they are the same to the bit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from cases import CLASSES, FEATURES, Classifier, build, examples, make_trainer
from tiny_transformers import images, vit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainerCallback
from whole_backward import differences

from hf_sam import SAMMixin, SAMTrainer
from hf_sam.step.backward import backward_to

CASES: list[tuple[str, dict[str, Any]]] = [
    ("batch_norm", {"perturb": "norm"}),
    ("dropout_and_batch_norm", {"perturb": "norm", "ascent_fraction": 0.5}),
    ("dropout", {"perturb": "last:0.5", "gradient_accumulation_steps": 2}),
    ("tied", {"perturb": "body.0", "ascent_scope": "global", "gradient_accumulation_steps": 3}),
    ("sometimes_used", {"perturb": "body.1", "adaptive": True}),
    ("mlp", {"perturb": "body.0", "method": "vasso"}),
    ("dropout", {"perturb": "body.4", "method": "friendly_sam", "ascent_interval": 2}),
    ("mlp", {"perturb": "body.2", "optim": "adamw_torch", "max_grad_norm": 0.1}),
]


@pytest.mark.parametrize(("model", "settings"), CASES, ids=[f"{m}, {s}" for m, s in CASES])
def test_nothing_but_the_operations_differs(
    model: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    def make() -> SAMTrainer:
        return make_trainer(build(model), tmp_path, **{"rho": 0.5, **settings})

    assert differences(make) == []


@pytest.mark.parametrize("is_reentrant", [False, True])
@pytest.mark.parametrize("perturb", ["norm", "last:0.5", "vit.embeddings"])
def test_gradient_checkpointing(perturb: str, is_reentrant: bool, tmp_path: Path) -> None:
    """A reentrant one hides parameters in functions: all gradients are computed then."""
    kind = {"gradient_checkpointing": True}
    kind["gradient_checkpointing_kwargs"] = {"use_reentrant": is_reentrant}

    def make() -> SAMTrainer:
        torch.manual_seed(0)
        model = vit().double()
        return make_trainer(model, tmp_path, perturb=perturb, rho=0.5, data=images(), **kind)

    assert differences(make) == (["as many operations"] if is_reentrant else [])


class HidesItsLayers(nn.Module):
    """Reentrant checkpoints whose inputs need no gradient until a layer in between has made one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 16)
        self.hidden = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Tanh())
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = checkpoint(self.hidden, self.first(x), use_reentrant=True)
        return {"loss": nn.functional.cross_entropy(self.last(hidden), labels)}


@pytest.mark.parametrize("perturb", ["norm", "last", "first", "hidden.0,last"])
def test_hidden_parameters_are_found(perturb: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = HidesItsLayers().double()

    def make() -> SAMTrainer:
        return make_trainer(copy.deepcopy(model), tmp_path, perturb=perturb, rho=0.5)

    assert differences(make) == ["as many operations"]


def test_a_frozen_beginning_hides_nothing(tmp_path: Path) -> None:
    """A checkpoint that gets no input with a gradient, as with a backbone that is not trained."""
    torch.manual_seed(0)
    model = HidesItsLayers().double()
    model.first.requires_grad_(False)
    model.first.register_forward_hook(lambda _, inputs, out: out.requires_grad_())

    def make() -> SAMTrainer:
        return make_trainer(copy.deepcopy(model), tmp_path, perturb="norm", rho=0.5)

    assert differences(make) == ["as many operations"]


@pytest.mark.parametrize("perturb", ["norm", "last:0.33"])
@pytest.mark.parametrize("name", ["mobilenetv2_035", "test_vit"])
def test_networks_of_timm(name: str, perturb: str, tmp_path: Path) -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = timm.create_model(name, num_classes=CLASSES)

        def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": nn.functional.cross_entropy(self.net(pixel_values), labels)}

    torch.manual_seed(0)
    model, size = Labelled(), 160 if name == "test_vit" else 64
    data = [{"pixel_values": torch.randn(3, size, size), "labels": i % CLASSES} for i in range(8)]
    kind = {"data": data, "max_steps": 2, "per_device_train_batch_size": 4}

    def make() -> SAMTrainer:
        return make_trainer(
            copy.deepcopy(model), tmp_path, perturb=perturb, learning_rate=0.01, **kind
        )

    assert differences(make) == []


class Unfreeze(TrainerCallback):
    """Trains a part that begins frozen."""

    def on_step_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        model.body[2].requires_grad_(state.global_step >= 3)


def test_what_is_trained_later_is_left_in(tmp_path: Path) -> None:
    def make() -> SAMTrainer:
        trainer = make_trainer(build("mlp"), tmp_path, perturb="body.2", rho=0.5)
        trainer.add_callback(Unfreeze())
        return trainer

    assert differences(make) == []


@pytest.mark.parametrize("method", ["gsam", "wsam", "looksam"])
def test_methods_that_combine_both_gradients_have_them_whole(method: str, tmp_path: Path) -> None:
    kind = {"ascent_interval": 2} if method == "looksam" else {}

    def make() -> SAMTrainer:
        return make_trainer(build("mlp"), tmp_path, perturb="body.2", method=method, **kind)

    assert differences(make) == ["as many operations"]


class ClipsLoss(SAMTrainer):
    """A loss that looks at what is trained, and a backward pass that the Trainer does not make."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        trained = [param for param in model.parameters() if param.requires_grad]
        return super().compute_loss(model, inputs, *args, **kwargs) + 0.1 * sum(
            param.square().sum() for param in trained
        )


def test_the_loss_sees_all_that_is_trained(tmp_path: Path) -> None:
    def make() -> SAMTrainer:
        return make_trainer(build("mlp"), tmp_path, trainer=ClipsLoss, perturb="body.0", rho=0.5)

    assert differences(make) == []


@pytest.mark.parametrize("own", [True, False])
def test_the_accelerators_method_is_put_back(own: bool, tmp_path: Path) -> None:
    calls: list[str] = []
    trainer = make_trainer(build("mlp"), tmp_path, perturb="body.2", max_steps=2)
    accelerator, plain = trainer.accelerator, trainer.accelerator.backward
    if own:
        accelerator.backward = watched = lambda loss, **kwargs: (
            calls.append(" ".join(kwargs)),
            plain(loss, **kwargs),
        )
    trainer.train()
    assert vars(accelerator).get("backward") is (watched if own else None)
    assert calls == (["inputs", "", "inputs", ""] if own else [])


def test_an_exception_in_the_pass_puts_it_back(tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path)
    with pytest.raises(RuntimeError, match="as asked"), backward_to(trainer.accelerator, list):
        raise RuntimeError("as asked")
    assert "backward" not in vars(trainer.accelerator)


def gradients(model: nn.Module, leaves: Callable[[], list[Tensor]], tmp_path: Path) -> set[str]:
    trainer, batch = make_trainer(model, tmp_path), examples(count=4)
    inputs = {name: torch.stack([row[name] for row in batch]) for name in batch[0]}
    with backward_to(trainer.accelerator, leaves):
        trainer.accelerator.backward(model(**inputs)["loss"])
    return {name for name, param in model.named_parameters() if param.grad is not None}


def test_no_other_gradients_are_held(tmp_path: Path) -> None:
    model = build("mlp")
    assert gradients(model, lambda: [model.body[2].bias], tmp_path) == {"body.2.bias"}


@pytest.mark.parametrize("leaves", [None, []])
def test_without_leaves_all_are_computed(leaves: Any, tmp_path: Path) -> None:
    model = Classifier(nn.Linear(FEATURES, CLASSES)).double()
    assert gradients(model, lambda: leaves, tmp_path) == {"body.0.weight", "body.0.bias"}


class OwnInputs(Trainer):
    def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> Tensor:
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        self.accelerator.backward(loss, inputs=list(model.parameters()))
        return loss.detach()


def test_inputs_of_the_trainers_own(tmp_path: Path) -> None:
    class Own(SAMMixin, OwnInputs):
        pass

    make_trainer(build("mlp"), tmp_path, trainer=Own, perturb="body.2", max_steps=2).train()


class Offloaded(torch.autograd.Function):
    """A reentrant checkpoint of another name, as unsloth has one."""

    @staticmethod
    def forward(ctx: Any, function: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(x)
        torch.autograd.backward(y, grad)
        return None, x.grad


class SharesAHiddenLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = Offloaded.apply(lambda y: torch.tanh(self.shared(y)), self.first(x))
        logits = self.head(torch.tanh(self.shared(x)))
        return {"loss": nn.functional.cross_entropy(logits, labels)}


def test_a_parameter_both_hidden_and_seen(tmp_path: Path) -> None:
    def make() -> SAMTrainer:
        torch.manual_seed(0)
        return make_trainer(SharesAHiddenLayer().double(), tmp_path, perturb="shared", rho=0.5)

    assert differences(make) == ["as many operations"]


def test_a_wrapper_that_takes_no_inputs_is_called_without(tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path, perturb="body.2", max_steps=2)
    plain, calls = trainer.accelerator.backward, []
    trainer.accelerator.backward = lambda loss: (calls.append(loss), plain(loss))
    trainer.train()
    assert len(calls) == 4


def test_a_wrapper_that_is_put_there_in_the_pass_stays(tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path)
    with backward_to(trainer.accelerator, list):
        trainer.accelerator.backward = own = lambda loss: None
    assert trainer.accelerator.backward is own
