"""DeepSpeed on CPU: accelerate names no backend there, and both ranks would train alone.

Run as a script it runs another so: `deepspeed_cpu.py SCRIPT [argument ...]`.
"""

import importlib
import os
import runpy
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn
from transformers import Trainer, training_args


def config(stage: int, **changes: Any) -> dict[str, Any]:
    """A configuration for the Trainer's `deepspeed`; `zero` holds more of ZeRO's own."""
    zero = {"stage": stage, "stage3_param_persistence_threshold": 20, **changes.pop("zero", {})}
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # which would be compiled
        "steps_per_print": 10**9,
        "zero_optimization": zero,
        **changes,
    }


@contextmanager
def deepspeed_on_cpu() -> Iterator[None]:
    """Have accelerate join gloo in the block, and forget on leaving that DeepSpeed was there.

    Half precision is allowed too, which the libraries allow on GPUs and few CPUs only.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.accelerator import get_accelerator

    # Shared memory beside gloo would be compiled first, for a minute.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    original, before = PartialState._prepare_backend, dict(os.environ)
    bf16_gpu = training_args.is_torch_bf16_gpu_available
    get_accelerator().is_fp16_supported = lambda: True

    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        backend, distributed_type = original(self, *args, **kwargs)
        return backend or "gloo", distributed_type

    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._prepare_backend = prepare
    training_args.is_torch_bf16_gpu_available = lambda: True
    os.environ["ACCELERATE_USE_CPU"] = "false"
    try:
        yield
    finally:
        PartialState._prepare_backend = original
        training_args.is_torch_bf16_gpu_available = bf16_gpu
        os.environ.clear()
        os.environ |= before
        AcceleratorState._reset_state(reset_partial_state=True)


def whole_state(trainer: Trainer) -> dict[str, Tensor]:
    """Weights of the model and buffers, gathered where ZeRO has them in parts."""
    import deepspeed

    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    kept = model.state_dict().keys()  # some buffers are not
    state = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    with deepspeed.zero.GatheredParameters([p for p in model.parameters() if is_partitioned(p)]):
        named = model.named_parameters(remove_duplicate=False)  # as a state_dict has them
        state |= {name: p.detach().clone() for name, p in named}
    return state


def master_weights(trainer: Trainer) -> dict[str, Tensor]:
    """The weights that the optimizer steps, whole, by name."""
    from deepspeed.utils import safe_get_full_fp32_param

    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    return {
        name: safe_get_full_fp32_param(param).detach().clone().flatten()
        for name, param in model.named_parameters()
        if param.requires_grad
    }


def is_partitioned(param: Tensor) -> bool:
    return hasattr(param, "ds_id")


def in_float32(rows: list[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [
        {name: x.float() if torch.is_floating_point(x) else x for name, x in row.items()}
        for row in rows
    ]


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    with deepspeed_on_cpu():
        runpy.run_path(sys.argv[0], run_name="__main__")
