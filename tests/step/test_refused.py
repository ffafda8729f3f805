"""What SAM would get wrong is refused when training starts, with the rule and the remedy."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import build, make_trainer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from transformers import TrainerCallback, TrainingArguments

from hf_sam import SAMTrainer
from hf_sam.backends import engine_of
from hf_sam.backends.rules import require_supported_backend

ALONE = {"context": 1, "sequence": 1, "tensor": 1}


@pytest.mark.parametrize("backend", ["MEGATRON_LM", "SAGEMAKER_MP", "XLA"])
def test_backends_that_split_the_model(backend: str) -> None:
    with pytest.raises(ValueError, match=f"got the backend {backend}: use one device, DDP"):
        require_supported_backend(backend, devices=1, optimizer="sgd", ranks_per_batch=ALONE)


def test_data_parallel() -> None:
    with pytest.raises(ValueError, match="got 4 under DataParallel: start with `accelerate launch"):
        require_supported_backend("NO", devices=4, optimizer="sgd", ranks_per_batch=ALONE)


@pytest.mark.parametrize("parallelism", ["context", "sequence", "tensor"])
def test_split_inputs(parallelism: str) -> None:
    with pytest.raises(ValueError, match=f"got {parallelism} parallelism over 2 ranks: set its"):
        require_supported_backend(
            "MULTI_GPU", devices=1, optimizer="sgd", ranks_per_batch={**ALONE, parallelism: 2}
        )


@pytest.mark.parametrize("name", ["lomo", "adalomo", "galore_adamw_layerwise"])
def test_optimizers_that_step_in_backward(name: str) -> None:
    with pytest.raises(ValueError, match=f"got the optimizer {name}, which steps inside"):
        require_supported_backend("NO", devices=1, optimizer=name, ranks_per_batch=ALONE)


def test_sharded_parameters() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.Linear(4, 4)
        mesh = init_device_mesh("cpu", (1,))
        model.weight = torch.nn.Parameter(distribute_tensor(model.weight.detach(), mesh))
        given = {"scope": "micro_batch", "accumulation": 1, "ranks": 1}
        with pytest.raises(ValueError, match="sharded by FSDP2 alone, got `weight` beside it"):
            engine_of(model).require_supported(dict(model.named_parameters()), **given)
    finally:
        dist.destroy_process_group()


def test_fields_are_checked_again_when_training_starts(tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path)
    trainer.args.rho = -1.0  # as a hyperparameter search sets it
    with pytest.raises(ValueError, match="`rho` must be >= 0, got -1.0"):
        trainer.train()


def refuses(trainer: SAMTrainer, message: str) -> None:
    """Before anything is wrapped or created; the plain Trainer is not refused."""
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.model_wrapped is trainer.model
    trainer.args.rho = 0.0
    trainer.train()


def test_sagemaker_model_parallel_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_sam.step.checks.is_sagemaker_mp_enabled", lambda: True)
    refuses(make_trainer(build("mlp"), tmp_path), "got the backend SAGEMAKER_MP")


@pytest.mark.parametrize(
    ("method", "name"),
    [("get_cp_size", "context"), ("get_sp_size", "seq"), ("get_tp_size", "tensor")],
)
def test_split_inputs_are_seen(
    method: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(build("mlp"), tmp_path)
    monkeypatch.setattr(trainer, method, lambda: 2)
    with pytest.raises(ValueError, match=f"got {name}"):
        trainer.train()


def test_data_parallel_is_seen(tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path)
    trainer.args._n_gpu = 4
    with pytest.raises(ValueError, match="got 4 under DataParallel"):
        trainer.train()


def test_lomo_is_seen_by_name_and_as_an_object(tmp_path: Path) -> None:
    class AdaLomo(torch.optim.SGD):
        """Called as the package calls it."""

    model = build("mlp")
    given: dict[str, Any] = {"optimizers": (AdaLomo(model.parameters(), lr=0.1), None)}
    refuses(make_trainer(model, tmp_path, trainer_kwargs=given), "got the optimizer adalomo")
    named = make_trainer(build("mlp"), tmp_path)
    named.args.optim = "lomo"
    with pytest.raises(ValueError, match="got the optimizer lomo"):
        named.train()


def test_rho_that_is_raised_later_is_checked_then(tmp_path: Path) -> None:
    class SwitchOn(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            args.rho, args.ascent_scope = 0.05, "ranks"

    trainer = make_trainer(build("mlp"), tmp_path, rho=0.0)
    trainer.add_callback(SwitchOn())
    with pytest.raises(ValueError, match="`ascent_scope` must be one of"):
        trainer.train()


def test_complex_parameters(tmp_path: Path) -> None:
    model = build("mlp")
    model.phase = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="must find real parameters, got `phase`"):
        make_trainer(model, tmp_path).train()


def test_optimizers_that_climb(tmp_path: Path) -> None:
    model = build("mlp")
    climbing = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    given: dict[str, Any] = {"optimizers": (climbing, None)}
    with pytest.raises(ValueError, match="must step down, got SGD with maximize=True"):
        make_trainer(model, tmp_path, trainer_kwargs=given).train()


@pytest.mark.parametrize("kind", [torch.nn.Embedding, torch.nn.EmbeddingBag])
def test_weights_that_a_pass_rescales(kind: type[torch.nn.Module], tmp_path: Path) -> None:
    model = build("mlp")
    model.table = kind(4, 2, max_norm=1.0)
    with pytest.raises(ValueError, match="got `table` with `max_norm`, which rescales its own"):
        make_trainer(model, tmp_path).train()


@pytest.mark.skipif(
    not hasattr(TrainingArguments, "enable_jit_checkpoint"), reason="unknown to this transformers"
)
def test_checkpoints_between_gradient_and_step(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"enable_jit_checkpoint": True}
    with pytest.raises(ValueError, match="saves before the optimizer's step, got vasso"):
        make_trainer(build("mlp"), tmp_path, method="vasso", **settings).train()
    make_trainer(build("mlp"), tmp_path, method="gsam", **settings).train()


def test_batches_that_cannot_be_copied(tmp_path: Path) -> None:
    class Locks(SAMTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any) -> torch.Tensor:
            return super().training_step(model, {**inputs, "lock": threading.Lock()}, *args)

    with pytest.raises(ValueError, match=r"cannot pickle '_thread.lock' object\): have the data"):
        make_trainer(build("mlp"), tmp_path, trainer=Locks).train()


def test_first_version_of_fsdp() -> None:
    with pytest.raises(ValueError, match="got FSDP in its first version: set `fsdp_version` to 2"):
        require_supported_backend("FSDP", devices=1, optimizer="sgd", ranks_per_batch=ALONE)


def test_data_parallel_by_hand(tmp_path: Path) -> None:
    model = torch.nn.DataParallel(build("mlp"))
    with pytest.raises(ValueError, match="got a model in DataParallel: pass the model itself"):
        make_trainer(model, tmp_path).train()


def test_nothing_to_train(tmp_path: Path) -> None:
    model = build("mlp").requires_grad_(False)
    with pytest.raises(ValueError, match="must find a parameter that is trained, got a model"):
        make_trainer(model, tmp_path).train()


class NeedsClosure(torch.optim.SGD):
    def step(self, closure: Any) -> Any:
        return super().step(closure)


class TwoSteps(torch.optim.SGD):
    """As implementations of SAM for hand-written loops have it."""

    def first_step(self) -> None: ...


class MySAM(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        assert closure is not None, "SAM requires closure"


@pytest.mark.parametrize("kind", [NeedsClosure, TwoSteps, MySAM, torch.optim.LBFGS])
def test_optimizers_that_make_passes_of_their_own(
    kind: type[torch.optim.Optimizer], tmp_path: Path
) -> None:
    model = build("mlp")
    given = {"optimizers": (kind(model.parameters(), lr=0.1), None)}
    with pytest.raises(ValueError, match=f"got {kind.__name__}, which makes passes of its own"):
        make_trainer(model, tmp_path, trainer_kwargs=given).train()
