"""FSDP2 on CPU, where accelerate would run DDP without a word."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, DistributedType, PartialState
from cases import build, examples, make_trainer, uneven
from tiny_transformers import texts
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM, Trainer, TrainerCallback
from transformers.distributed import DistributedConfig

from hf_sam import SAMTrainer

FSDP = {
    "fsdp": True,
    "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["Linear"]},
}


@contextmanager
def fsdp2_on_cpu() -> Iterator[None]:
    """Let accelerate finish, and then give it the type that a GPU would have brought."""
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init
    try:
        yield
    finally:
        AcceleratorState.__init__ = original


PERTURBATIONS: dict[str, dict[str, Any]] = {
    "SAM": {},
    "ASAM": {"adaptive": True, "rho": 0.5},
    "p = 1.5": {"perturbation_norm": 1.5},
    "p = inf": {"perturbation_norm": float("inf"), "rho": 0.005},
    "an average": {"weight_average": "ema:0.8"},
}


def full_weights(model: nn.Module) -> list[float]:
    """All parameters, gathered; every one must be sharded, or the test would prove nothing."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # an evaluation leaves weights gathered
    flat: list[Tensor] = []
    for param in model.parameters():
        assert isinstance(param, DTensor)
        flat.append(param.full_tensor().detach().double().flatten())
    return [x for piece in flat for x in piece.tolist()]


def local_shards(model: nn.Module) -> list[Tensor]:
    return [cast("DTensor", p).to_local().detach().clone() for p in model.parameters()]


def odd_model() -> nn.Module:
    torch.manual_seed(0)
    return uneven().double()


def trainer_of(folder: Path, model: nn.Module | None = None, **settings: Any) -> Trainer:
    defaults = {
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "optim": "adamw_torch",
        "learning_rate": 0.01,
        "max_steps": 8,
    }
    return make_trainer(
        build("mlp") if model is None else model, folder, **FSDP, **{**defaults, **settings}
    )


def weights_after(folder: Path, **settings: Any) -> list[float]:
    trainer = trainer_of(folder, **settings)
    trainer.train()
    return full_weights(trainer.model)


def odd_weights_after(folder: Path, **settings: Any) -> list[float]:
    """Empty shards, and evaluations that leave the root's weights gathered."""
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "max_grad_norm": 0.3}
    more = {"trainer_kwargs": {"eval_dataset": examples(count=8)}}
    return weights_after(folder, model=odd_model(), **evaluated, **more, **settings)


def resumed_differs(folder: Path) -> bool:
    """Eight steps, and the last four again from the checkpoint in between."""
    saving = {"save_strategy": "steps", "save_steps": 4, "model": build("dropout")}
    saving["weight_average"] = "ema:0.8"
    straight = weights_after(folder, **saving)
    resumed = trainer_of(folder, **{**saving, "model": build("dropout", seed=9)})
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    return full_weights(resumed.model) != straight


class Fails(nn.Module):
    """Raises in the given training forward pass, after the layers have run."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.model, self.call, self.calls = odd_model(), call, 0

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = self.model(x, labels)
        self.calls += self.training
        if self.training and self.calls == self.call:
            raise RuntimeError("as asked")
        return out


def left_by_exception(folder: Path, call: int) -> list[str]:
    """Evaluate, fail in a pass of the third step, evaluate; name what is not as before the step.

    The calls are two clean and two perturbed passes a step.
    """
    trainer = trainer_of(
        folder,
        Fails(call),
        learning_rate=0.0,
        rho=0.5,
        trainer_kwargs={"eval_dataset": examples(count=8)},
    )
    shards: list[list[Tensor]] = []

    class Remember(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            shards.append(local_shards(trainer.model))

    trainer.add_callback(Remember())
    try:
        trainer.train()
    except RuntimeError as error:
        assert str(error) == "as asked"
    now = local_shards(trainer.model)
    loss = float(trainer.evaluate()["eval_loss"])
    wrong = [] if all(map(torch.equal, now, shards[-1])) else ["shards"]
    with torch.no_grad():
        rows = trainer.data_collator(examples(count=8))
        expected = float(odd_model().eval()(**rows)["loss"])
    if abs(loss - expected) > 1e-6:  # the Trainer gathers losses in float32
        wrong.append(f"evaluation: {loss} for {expected}")
    return wrong


def events_at_which_shards_moved(folder: Path) -> int:
    """At learning rate zero, count the events at which a shard was not what it was at the start."""
    trainer = trainer_of(folder, learning_rate=0.0, rho=0.5)
    seen: list[list[Tensor]] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            seen.append(local_shards(trainer.model))

        on_substep_end = on_pre_optimizer_step = on_step_end = on_step_begin

    trainer.add_callback(Watch())
    trainer.train()
    assert len(seen) == 8 * 4
    return sum(not all(map(torch.equal, now, seen[0])) for now in seen)


class Late(SAMTrainer):
    """Writes to a shard in each pass from the third step on."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == 2:
            with torch.no_grad():
                next(model.parameters()).mul_(0.9)
        return super().compute_loss(model, inputs, *args, **kwargs)


def refusal(folder: Path, **settings: Any) -> str:
    keeps = settings.pop("keeps_gathered", False)
    trainer = trainer_of(folder, **settings)
    prepare = trainer.accelerator.prepare

    def prepare_and_keep(*args: Any) -> Any:
        prepared = prepare(*args)
        if len(args) == 2:  # model and optimizer; the data loader comes alone
            prepared[0].set_reshard_after_backward(False)
        return prepared

    if keeps:
        trainer.accelerator.prepare = prepare_and_keep
    try:
        trainer.train()
    except ValueError as error:
        return str(error)
    return "trained"


def loaded_weights(
    folder: Path, model: str, plan: dict[str, int], accumulation: int, batch: int
) -> list[float]:
    """Train a Llama that `from_pretrained` has sharded by `plan`."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    loaded = LlamaForCausalLM.from_pretrained(
        model, distributed_config=DistributedConfig(**plan), dtype=torch.float32
    )
    trainer = make_trainer(
        loaded,
        folder,
        data=texts(),
        save_only_model=True,
        max_steps=6,
        max_grad_norm=0.3,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=batch,
    )
    trainer.train()
    return full_weights(trainer.model)
