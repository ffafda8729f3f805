"""DeepSpeed: its engine accumulates, reduces, clips and steps; ZeRO gives each rank its shards."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ..ascent.perturbation import Saved, gradients_set_aside
from ..ascent.shards import local
from .engine import Engine, Weights
from .rules import REMEDY, perturbations
from .zero import Fragment, Stage, Stage3, Stages12

TRIED = "0.19.7 or 0.19.8"  # earlier ones gather stale weights now and then, on a CPU
STAGES: dict[int, type[Stage]] = {1: Stages12, 2: Stages12, 3: Stage3}


class DeepSpeed(Engine):
    """DeepSpeed without ZeRO (stage 0), in float32: every rank holds the whole model.

    accelerate steps the optimizer inside `backward` of a window's last micro-batch. Here backward
    makes no step (`one_pass`), and the engine steps when SAM has finished (`end_step`).
    """

    default_scope = "global"  # the engine reduces the gradient of every micro-batch
    keeps_memory = False  # fragments are not put together
    keeps_leftovers = False
    float32_remedy = (
        "have DeepSpeed keep float32 weights and compute in bfloat16: `torch_autocast` in its "
        "config, in place of `bf16` or `fp16`"
    )

    def __init__(self, engine: Any) -> None:
        """Remember the engine, and its optimizer as ZeRO has wrapped it."""
        self._engine, self._optimizer = engine, engine.optimizer

    @classmethod
    def of(cls, model: nn.Module) -> "DeepSpeed | None":
        """Return the engine of a model that DeepSpeed has prepared, by its stage."""
        library = sys.modules.get("deepspeed")
        if library is None or not isinstance(model, library.DeepSpeedEngine):
            return None
        stage = STAGES.get(cast(Any, model).zero_optimization_stage())
        return DeepSpeed(model) if stage is None else Zero(model, stage)

    def require_supported(
        self, params: Mapping[str, Tensor], *, scope: str | None, accumulation: int, ranks: int
    ) -> None:
        """Refuse other scopes, and what changes weights or gradients in ways SAM cannot follow."""
        if perturbations(scope, accumulation, ranks) > 1:
            raise ValueError(
                f"`ascent_scope` must be global under DeepSpeed, got {scope}: its engine reduces "
                "the gradient of every micro-batch. Leave `ascent_scope` out."
            )
        for asked, is_so in self._unsupported():
            if is_so:
                raise ValueError(
                    f"SAM must know all gradients and weights under DeepSpeed, got {asked}: leave "
                    f"it out of the DeepSpeed config, or {REMEDY}."
                )
        outside = [name for name in params if name.startswith("trainer.")]
        if outside:
            raise ValueError(
                f"DeepSpeed must find every trained parameter in the model, got `{outside[0]}` "
                f"outside it: make its module a part of the model, or {REMEDY}."
            )

    @contextmanager
    def one_pass(self, accelerator: Accelerator, *, reduced: bool) -> Iterator[None]:
        """Have accelerate's `backward` make no step; the last of a window's reduces."""
        wrapped = accelerator.deepspeed_engine_wrapped
        accelerator.deepspeed_engine_wrapped = _Backward(self._engine, may_reduce=reduced)
        try:
            yield
        finally:
            accelerator.deepspeed_engine_wrapped = wrapped

    def leaves(self, moved: list[Tensor], *, reduced: bool) -> None:
        """Leave nothing out: the engine waits for the gradient of every parameter."""

    def end_step(self) -> None:
        """Clip, step and schedule, which accelerate has at the end of `backward`."""
        self._engine.step()

    def _unsupported(self) -> Iterator[tuple[str, bool]]:
        """Yield what cannot be had, and whether it is asked for."""
        library, engine = sys.modules["deepspeed"], self._engine
        name = _class_of(getattr(self._optimizer, "optimizer", self._optimizer)).lower()
        zero = engine.config.get("zero_optimization", {})
        offloads = (zero.get("offload_optimizer"), zero.get("offload_param"))
        is_rounded = engine.fp16_enabled() or engine.bfloat16_enabled()
        scaler = engine.torch_autocast_z0_gradscaler
        yield "pipeline parallelism", isinstance(engine, library.PipelineEngine)
        yield "a mixture of experts", engine.has_moe_layers
        yield "Muon (it moves its momentum while gradients are reduced)", "muon" in name
        yield f"{name}, which compresses gradients", "bit" in name
        yield (
            "quantised weights of ZeRO++",
            bool(engine.zero_quantized_weights() or engine.zero_quantized_nontrainable_weights()),
        )
        yield "quantised gradients of ZeRO++", bool(engine.zero_quantized_gradients())
        yield "`zero_hpz_partition_size`", engine.zero_hpz_partition_size() > 1
        yield "offload to NVMe", any((o or {}).get("device") == "nvme" for o in offloads)
        yield (
            "SuperOffload (it steps in backward)",
            any((o or {}).get("super_offload") for o in offloads),
        )
        yield "an offload `ratio` below 1", any((o or {}).get("ratio", 1.0) < 1 for o in offloads)
        yield "`round_robin_gradients`", bool(zero.get("round_robin_gradients"))
        yield (
            "`grad_accum_dtype` in stage 1 (stage 2 has it)",
            _class_of(self._optimizer) == "BF16_Optimizer",
        )
        yield "ZenFlow", bool(engine.zenflow)
        yield "DeepCompile", engine.is_deepcompile_enabled()
        stage = engine.zero_optimization_stage()
        yield "bf16 or fp16 in stage 0 of ZeRO (stage 1 has it)", stage == 0 and is_rounded
        yield "`torch_autocast` to float16 in stage 0 (stage 1 has it)", scaler is not None


class _Backward:
    """In place of accelerate's wrapper of an engine: its `backward` without a step."""

    def __init__(self, engine: Any, *, may_reduce: bool) -> None:
        self.engine, self._may_reduce = engine, may_reduce

    def backward(self, loss: Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        """Accumulate the gradient; where the Trainer's window ends, reduce it."""
        self.engine.set_gradient_accumulation_boundary(sync_gradients and self._may_reduce)
        self.engine.backward(loss, **kwargs)


class Zero(DeepSpeed):
    """ZeRO: weights and gradients are this rank's fragments, as DTensors of one dimension."""

    def __init__(self, engine: Any, stage: type[Stage]) -> None:
        """Look at ZeRO's optimizer by its stage."""
        super().__init__(engine)
        self._stage, self._mesh = stage(self._optimizer), cast(DeviceMesh, None)
        self._params: Mapping[str, Tensor] = {}  # the trainable ones
        self._fragments: dict[str, Fragment] = {}  # of them

    @property
    def pass_dtype(self) -> torch.dtype:  # type: ignore[override]  # of ZeRO's, where it is one
        """Dtype of the weights in a pass."""
        return self._optimizer.dtype

    def require_supported(
        self, params: Mapping[str, Tensor], *, scope: str | None, accumulation: int, ranks: int
    ) -> None:
        """Refuse versions of DeepSpeed that lack what is used, and parameters ZeRO knows not."""
        super().require_supported(params, scope=scope, accumulation=accumulation, ranks=ranks)
        lacking = [name for name in self._stage.NAMES if not hasattr(self._optimizer, name)]
        if lacking:
            raise ValueError(
                f"SAM must find `{lacking[0]}` in ZeRO's optimizer, got DeepSpeed "
                f"{sys.modules['deepspeed'].__version__}, which has none: install {TRIED}, or "
                f"{REMEDY}."
            )
        known = set(map(id, self._stage.parameters()))
        for name, param in params.items():
            if param.requires_grad and id(param) not in known:
                raise ValueError(
                    f"ZeRO must optimize every trainable parameter, got `{name}`, which it does "
                    "not: freeze it, or give it to the optimizer before training starts."
                )

    def optimized(self, optimizer: Any) -> list[Tensor]:
        """Return the model's parameters, of which the optimizer itself has fragments."""
        return self._stage.parameters()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Put w back after an exception, and forget what the passes have gathered."""
        try:
            yield
        except BaseException:
            self._stage.put_back()
            self._stage.forget()
            raise

    def give_up(self) -> None:
        """Forget what the passes have gathered."""
        self._stage.forget()

    def weights(self, trainable: Mapping[str, Tensor]) -> Weights:
        """Return this rank's float32 weights."""
        self._params = trainable
        self._fragments = {name: self._stage.fragment(param) for name, param in trainable.items()}
        return {
            name: self._placed(fragment.weight, _numel(trainable[name]))
            for name, fragment in self._fragments.items()
        }

    def held(self, params: Iterable[Tensor]) -> list[Tensor]:
        """Return the parameters, or in stage 3 the parts of them that passes gather them from."""
        return [getattr(param, "ds_tensor", param) for param in params]

    @contextmanager
    def gradients_apart(
        self, weights: Weights, others: Iterable[Tensor], gathered: list[Tensor | None] | None
    ) -> Iterator[None]:
        """Begin a window without what another has left; ZeRO itself adds up the passes of one."""
        if gathered is None:
            self._stage.forget()
        with gradients_set_aside(others):
            yield

    def take_gradients(self, weights: Weights) -> list[Tensor | None]:
        """Take off this rank's gradient of the window; None before its last pass."""
        if not self._engine.is_gradient_accumulation_boundary():
            return [None] * len(weights)
        taken = list(self._gradients(weights).values())
        self._stage.forget()
        return cast(list[Tensor | None], taken)

    def loss_scale(self) -> float:
        """Return fp16's loss scale, which is in every gradient."""
        scaler = self._optimizer.torch_autocast_gradscaler
        return float(self._optimizer.loss_scale if scaler is None else scaler.get_scale())

    @contextmanager
    def perturbed(
        self, weights: Weights, perturbation: Iterable[Tensor | None], *, saved: Saved
    ) -> Iterator[None]:
        """Have all ranks pass at w + epsilon, rounded once to the dtype of the passes.

        `saved` stays empty: all ranks would have to go back to w together.
        """
        pairs = zip(self._fragments.values(), perturbation, strict=True)
        moves = [(fragment, local(epsilon)) for fragment, epsilon in pairs if epsilon is not None]
        del pairs, perturbation
        torch.clear_autocast_cache()
        with self._stage.moved(moves):
            yield

    @contextmanager
    def descent_gradients(self, weights: Weights) -> Iterator[None]:
        """Lend this rank's descent gradient to the weights; write back what is there after."""
        for name, gradient in self._gradients(weights).items():
            weights[name].grad = gradient
        yield
        parts = {name: local(cast(Tensor, weight.grad)) for name, weight in weights.items()}
        self._stage.put_gradients(self._params, parts)
        for weight in weights.values():
            weight.grad = None

    def end_step(self) -> None:
        """Clip, step and schedule; after a step that was skipped for an overflow w is back too."""
        super().end_step()
        self._stage.put_back(stepped=not self._optimizer.overflow)

    def _gradients(self, weights: Weights) -> dict[str, Tensor]:
        found = self._stage.gradients(self._params)
        return {
            name: self._placed(found[name].to(local(weight)), weight.numel())
            for name, weight in weights.items()
        }

    @torch.no_grad()
    def _placed(self, part: Tensor, numel: int) -> Tensor:
        """Return a rank's part of a parameter as a DTensor in the part's own memory."""
        if self._mesh is None:
            self._mesh = _mesh(self._engine.data_parallel_group, part.device.type)
        shape = torch.Size([numel])
        return DTensor.from_local(
            part, self._mesh, [Shard(0)], run_check=False, shape=shape, stride=(1,)
        )


@cache
def _mesh(group: Any, device: str) -> DeviceMesh:
    """Return the ranks of a group, over a backend for the device on which fragments lie."""
    if device == "cpu" and dist.get_backend(group) != "gloo":  # offloaded
        group = dist.new_group(dist.get_process_group_ranks(group), backend="gloo")
    return DeviceMesh.from_group(group, device)


def _class_of(optimizer: object) -> str:
    return type(optimizer).__name__


def _numel(param: Tensor) -> int:
    return int(getattr(param, "ds_numel", param.numel()))  # stage 3 empties the parameter itself
