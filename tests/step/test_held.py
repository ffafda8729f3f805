"""What a pass may change is found wherever it is held, and what it cannot read is left alone."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from cases import CLASSES, build, make_trainer
from hidden_draws import GENERATORS
from scenarios import PLAIN
from stateful import SMALL, Stateful, plain_step
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from trainers import Body, Head
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

from hf_sam import SAMMixin, SAMTrainer

Make = Callable[[type[Trainer]], tuple[type[Trainer], nn.Module, dict[str, Any]]]


def flat(*modules: nn.Module) -> Tensor:
    tensors = [x for module in modules for x in module.state_dict().values()]
    return torch.cat([x.flatten() for x in tensors if not x.is_meta])  # of an offloaded layer


def trained(kind: type[Trainer], make: Make, folder: Path) -> Tensor:
    """Return all weights and buffers after 4 steps, of the model and of a head outside."""
    torch.manual_seed(0)
    made, model, others = make(kind)
    settings = {"rho": SMALL} if kind is SAMTrainer else {"config": TrainingArguments}
    head = others.pop("head", nn.Identity())
    make_trainer(
        model.double(), folder, trainer=made, max_steps=4, gradient_accumulation_steps=2,
        per_device_train_batch_size=4, trainer_kwargs=others, **settings,
    ).train()  # fmt: skip
    return flat(model, head)


class DrawsByClass(Stateful):
    generator = torch.Generator()

    def shift(self, x: Tensor) -> Tensor:
        return torch.randn(CLASSES, generator=self.generator, dtype=x.dtype)


class DrawsFromDeque(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.draws = deque([np.random.default_rng(0)])

    def shift(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.draws[0].normal(size=CLASSES))


class CountedByInstance(Stateful):
    """Outputs with their graphs in containers of other kinds, named on the instance."""

    def __init__(self) -> None:
        super().__init__()
        self.last: deque[Tensor] = deque(maxlen=2)
        self.counted_once = ("last",)

    def shift(self, x: Tensor) -> Tensor:
        self.last.append(self.layer(x).mean(dim=0))
        return sum(output.detach() for output in self.last)


class Packed(Stateful):
    """A buffer without strides, and weights that no norm can be taken of."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("graph", torch.eye(CLASSES).double().to_sparse_csr(), persistent=False)
        eighth = torch.ones(2, dtype=torch.float32).to(torch.float8_e4m3fn)
        self.register_parameter("eighth", nn.Parameter(eighth, requires_grad=False))
        self.register_parameter("sparse", nn.Parameter(torch.eye(2).to_sparse_csr(), False))

    def shift(self, x: Tensor) -> Tensor:
        return (self.graph @ torch.ones(CLASSES, 1, dtype=x.dtype)).flatten()


@pytest.mark.parametrize("kind", [DrawsByClass, DrawsFromDeque, CountedByInstance, *GENERATORS])
def test_modules(kind: type[Stateful], tmp_path: Path) -> None:
    def make(trainer: type[Trainer]) -> tuple[type[Trainer], nn.Module, dict[str, Any]]:
        DrawsByClass.generator.manual_seed(0)
        return trainer, kind(), {}

    plain, sam = (trained(trainer, make, tmp_path) for trainer in (Trainer, SAMTrainer))
    torch.testing.assert_close(sam, plain, rtol=0, atol=1e-9)


def test_what_has_no_norm_and_no_strides_is_held(tmp_path: Path) -> None:
    model = Packed()
    model.layer.double()
    trainer = make_trainer(model, tmp_path, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("where", ["class variable", "closure of a method", "default argument"])
def test_a_head(where: str, tmp_path: Path) -> None:
    """By its moving centre, which a pass begins from."""

    def make(trainer: type[Trainer]) -> tuple[type[Trainer], nn.Module, dict[str, Any]]:
        outside = Head().double()

        def loss_of(
            outputs: Any, labels: Tensor, num_items_in_batch: Any = None, head: Any = outside
        ) -> Tensor:
            return head(outputs["features"], labels)

        class Made(trainer):  # type: ignore[misc, valid-type]
            if where == "class variable":
                own = outside

            def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
                both = [*self.model.parameters(), *loss_of.__defaults__[1].parameters()]
                self.optimizer = torch.optim.SGD(both, lr=0.1)
                return self.optimizer

        def compute_loss(self: Any, model: nn.Module, inputs: Any, *a: Any, **k: Any) -> Tensor:
            return outside(model(inputs["x"])["features"], inputs["labels"])

        given: dict[str, Any] = {"head": outside}
        if where == "default argument":
            given["compute_loss_func"] = loss_of
        elif where == "closure of a method":
            Made.compute_loss = compute_loss
        else:
            Made.compute_loss = lambda self, model, inputs, *a, **k: type(self).own(
                model(inputs["x"])["features"], inputs["labels"]
            )
        return Made, Body(), given

    plain, sam = (trained(trainer, make, tmp_path) for trainer in (Trainer, SAMTrainer))
    torch.testing.assert_close(sam, plain, rtol=0, atol=1e-9)


def test_what_a_callback_trains_has_the_gradient_of_one_pass(tmp_path: Path) -> None:
    """The remedy for an optimizer that steps within a pass, as centre loss has one."""

    def make(trainer: type[Trainer]) -> tuple[type[Trainer], nn.Module, dict[str, Any]]:
        head = Head().double()
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)

        class Made(trainer):  # type: ignore[misc, valid-type]
            def __init__(self, **kwargs: Any) -> None:
                super().__init__(**kwargs)
                self.head = head

            def compute_loss(self, model: nn.Module, inputs: Any, *a: Any, **k: Any) -> Tensor:
                return self.head(model(inputs["x"])["features"], inputs["labels"])

        class Steps(TrainerCallback):
            def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
                optimizer.step()
                optimizer.zero_grad()

        return Made, Body(), {"callbacks": [Steps()], "head": head}

    plain, sam = (trained(trainer, make, tmp_path) for trainer in (Trainer, SAMTrainer))
    torch.testing.assert_close(sam, plain, rtol=0, atol=1e-9)


def test_a_frozen_teacher_outside_that_a_pass_moves_is_refused(tmp_path: Path) -> None:
    class Averages(SAMTrainer):
        @torch.no_grad()
        def average(self) -> None:
            self.teacher.weight.mul_(0.9)

        def compute_loss(self, model: nn.Module, inputs: Any, *a: Any, **k: Any) -> Tensor:
            self.average()
            return model(**inputs)["loss"]

    trainer = make_trainer(build("mlp"), tmp_path, trainer=Averages, max_steps=2)
    trainer.teacher = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match=r"one that changed `teacher.weight`"):
        trainer.train()


def test_a_training_step_without_sam_beside_plain_arguments(tmp_path: Path) -> None:
    class Below(SAMMixin, Trainer):
        training_step = plain_step

    trainer = make_trainer(build("mlp"), tmp_path, **{**PLAIN, "trainer": Below}, max_steps=2)
    with pytest.raises(ValueError, match="got a `training_step` of Below that does not call"):
        trainer.train()


def test_torchs_older_spectral_norm_is_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("mlp")
    spectral_norm(model.body[0])
    make_trainer(model, tmp_path, max_steps=2).train()
    assert "Each pass changes" not in caplog.text


class Closed(Mapping[str, Any]):
    """Names its entries and refuses them, as a configuration with missing values does."""

    def __getitem__(self, key: str) -> Any:
        raise ValueError(f"{key} is missing")

    def __iter__(self) -> Iterator[str]:
        return iter(["path"])

    def __len__(self) -> int:
        return 1


class Scripted(Stateful):
    """TorchScript, whose parameters and buffers lie in mappings of its own."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(CLASSES, CLASSES), nn.BatchNorm1d(CLASSES)).double()
        self.inner = torch.jit.script(inner)

    def shift(self, x: Tensor) -> Tensor:
        return self.inner(self.layer(x)).mean(dim=0)


@pytest.mark.parametrize("what", ["configuration", "teacher", "module", "offloaded"])
def test_what_others_wrap_is_left_alone(what: str, tmp_path: Path) -> None:
    def make(trainer: type[Trainer]) -> tuple[type[Trainer], nn.Module, dict[str, Any]]:
        class Made(trainer):  # type: ignore[misc, valid-type]
            cfg = {"configuration": Closed(), "teacher": torch.jit.script(nn.Linear(2, 2))}.get(
                what
            )

        if what == "module":
            model = Scripted().double()  # the Trainer cannot make an optimizer for it
            return Made, model, {"optimizers": (torch.optim.SGD(model.parameters(), lr=0.1), None)}
        model = build("frozen")
        if what == "offloaded":
            places = {"body.0": "disk", "body.1": "cpu", "body.2": "cpu"}
            dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path / "weights")
        return Made, model, {}

    plain, sam = (trained(trainer, make, tmp_path) for trainer in (Trainer, SAMTrainer))
    torch.testing.assert_close(sam, plain, rtol=0, atol=1e-9)


class Box:
    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.mark.parametrize("how", ["array", "object", "set"])
def test_inputs_that_are_no_tensors(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Changed in place, both passes see them as they came; and they are no state."""
    seen: list[float] = []

    class Changes(SAMTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *a: Any, **k: Any) -> Tensor:
            given = inputs.pop("given")
            numbers = list(given) if how == "set" else getattr(given, "value", given)
            seen.append(len(numbers) * float(max(numbers) + 1))
            if how == "array":
                given *= 2
            elif how == "object":
                given.value.mul_(2)
            else:
                given.add(len(given))
            return model(**inputs)["loss"]

    def collate(rows: list[Any]) -> dict[str, Any]:
        given = {"array": np.ones(2), "object": Box(torch.ones(2)), "set": {0}}[how]
        return {**default_data_collator(rows), "given": given}

    make_trainer(
        build("mlp"), tmp_path, trainer=Changes, recorder=collate, max_steps=2,
        remove_unused_columns=False,
    ).train()  # fmt: skip
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert "Each pass changes" not in caplog.text
