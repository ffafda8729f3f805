"""Where ZeRO keeps a rank's part of weights and gradients, in stages 1 and 2 and in stage 3.

Names of DeepSpeed's own that are not public are used in this file only, and listed in `NAMES`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """A rank's part of one parameter, as two tensors of one dimension, which may be empty."""

    weight: Tensor  # w in float32, from which the optimizer steps
    in_pass: Tensor  # what passes use, in their dtype: w, and in a perturbed pass w + epsilon


class Stage(ABC):
    """What SAM asks of ZeRO's optimizer."""

    NAMES: ClassVar[tuple[str, ...]]  # attributes of the optimizer that must be there

    def __init__(self, zero: Any) -> None:
        """Remember ZeRO's optimizer."""
        self._zero = zero

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """Return the model's parameters that are optimized."""

    @abstractmethod
    def fragment(self, param: Any) -> Fragment:
        """Return this rank's part of a parameter."""

    @abstractmethod
    def gradients(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of this rank's parts of the complete gradient, by name."""

    @abstractmethod
    def put_gradients(self, params: Mapping[str, Any], parts: Mapping[str, Tensor]) -> None:
        """Write this rank's parts of the gradient to where the step reads them."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what passes have accumulated, as if none had been made."""

    @abstractmethod
    def moved(self, moves: list[tuple[Fragment, Tensor]]) -> AbstractContextManager[None]:
        """Have all ranks pass at w + epsilon in the block; `put_back` ends that at the latest.

        Args:
            moves: Fragments, each with this rank's part of epsilon. Emptied.
        """

    @abstractmethod
    def put_back(self, *, stepped: bool = False) -> None:
        """Have all ranks pass at w again, if they do not yet.

        Args:
            stepped: Whether the optimizer has stepped, which has given all ranks new weights.
        """


def _move(moves: list[tuple[Fragment, Tensor]]) -> None:
    """Write w + epsilon, and keep no epsilon: in stages 1 and 2 each is a view of all of them."""
    while moves:
        fragment, epsilon = moves.pop()
        fragment.in_pass.copy_(fragment.weight + epsilon)


class Stages12(Stage):
    """Each rank steps a partition of the float32 weights, and all ranks hold the whole model.

    Only the weights of the model are moved, so the step finds w and gathers the model anew.
    """

    _is_moved = False  # whether the model has w + epsilon

    NAMES = (
        *("bit16_groups", "bit16_groups_flat", "parallel_partitioned_bit16_groups"),
        *("single_partition_of_fp32_groups", "real_dp_process_group", "allgather_bucket_size"),
        *("nccl_start_alignment_factor", "averaged_gradients", "all_grad_tensors", "cpu_offload"),
        *("micro_step_id", "overflow", "update_lp_params", "_release_ipg_buffers", "ipg_buckets"),
        *("params_already_reduced", "get_param_id", "torch_autocast_gradscaler"),
    )

    def parameters(self) -> list[Tensor]:
        """Return the model's parameters that are optimized."""
        return [param for group in self._zero.bit16_groups for param in group]

    def fragment(self, param: Any) -> Fragment:
        """Return this rank's part of a parameter; nothing where it lies in other partitions."""
        mapping = param._hp_mapping
        if mapping is None:
            nothing = self._zero.single_partition_of_fp32_groups[0].detach()[:0]
            return Fragment(nothing, nothing)
        return Fragment(mapping.hp_fragment.detach(), mapping.lp_fragment.detach())

    def gradients(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of this rank's parts of the complete gradient, by name."""
        flat = [torch.cat([x.flatten() for x in group]) for group in self._stored_gradients()]
        return {name: _of_partition(flat, param) for name, param in params.items()}

    def put_gradients(self, params: Mapping[str, Any], parts: Mapping[str, Tensor]) -> None:
        """Write this rank's parts of the gradient to where the step reads them."""
        stored = self._stored_gradients()
        flat = [torch.cat([x.flatten() for x in group]) for group in stored]
        for name, param in params.items():
            part = _of_partition(flat, param)
            part.copy_(parts[name])
            if self._zero.cpu_offload and part.numel():  # by which the step clips
                norms = self._zero.norm_for_param_grads
                norms[self._zero.get_param_id(param)] = part.float().norm()
        for group, new in zip(stored, flat, strict=True):
            for x, values in zip(group, new.split([x.numel() for x in group]), strict=True):
                x.copy_(values.view_as(x))

    def forget(self) -> None:
        """Drop what passes have accumulated, as if none had been made."""
        from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

        zero = self._zero
        zero.zero_grad()
        zero.micro_step_id = INITIAL_MICRO_STEP_ID
        for bucket in zero.ipg_buckets.values():  # of a backward pass that has failed
            bucket.clear()
        zero._release_ipg_buffers()
        zero.params_already_reduced = [False] * len(zero.params_already_reduced)
        for group in range(len(zero.bit16_groups)):
            zero.averaged_gradients[group] = zero.all_grad_tensors[group] = None
        if zero.cpu_offload:
            zero._offload_accumulated_param_ids = set()
            zero.reset_cpu_buffers()  # waits for copies
            for partition in zero.single_partition_of_fp32_groups:
                partition.grad.zero_()

    @contextmanager
    def moved(self, moves: list[tuple[Fragment, Tensor]]) -> Iterator[None]:
        """Have all ranks pass at w + epsilon, also after the block: the step comes next."""
        self._is_moved = True
        with torch.no_grad():
            _move(moves)
            self._gather()
        yield

    def put_back(self, *, stepped: bool = False) -> None:
        """Put the weights of the model back, where a step has not."""
        if self._is_moved and not stepped:
            self._zero.update_lp_params()
        self._is_moved = False

    def _gather(self) -> None:
        from deepspeed.runtime.utils import all_gather_dp_groups

        all_gather_dp_groups(
            groups_flat=self._zero.bit16_groups_flat,
            partitioned_param_groups=self._zero.parallel_partitioned_bit16_groups,
            dp_process_group=self._zero.real_dp_process_group,
            start_alignment_factor=self._zero.nccl_start_alignment_factor,
            allgather_bucket_size=self._zero.allgather_bucket_size,
        )

    def _stored_gradients(self) -> list[list[Tensor]]:
        """Return the tensors that make up each partition's gradient."""
        zero = self._zero
        if zero.cpu_offload:
            zero._wait_for_offload_copies()
            return [[partition.grad] for partition in zero.single_partition_of_fp32_groups]
        return [zero.averaged_gradients[group] for group in range(len(zero.bit16_groups))]


def _of_partition(flat: list[Tensor], param: Any) -> Tensor:
    """Return the part of a partition, by parameter group, that belongs to a parameter."""
    mapping = param._hp_mapping
    if mapping is None:
        return flat[0][:0]
    address = mapping.hp_fragment_address
    return flat[mapping.param_group_index].narrow(0, address.start, address.numel)


class Stage3(Stage):
    """Each rank holds a part of every parameter, from which a pass gathers the whole."""

    NAMES = (
        *("fp16_groups", "fp32_partitioned_groups_flat", "grad_position", "get_param_id"),
        *("averaged_gradients", "offload_optimizer", "ipg_buckets", "checkpoint_event_prologue"),
        *("checkpoint_event_epilogue", "torch_autocast_gradscaler", "overflow"),
        "grad_partitions_flat_buffer",
    )

    def parameters(self) -> list[Tensor]:
        """Return the model's parameters that are optimized."""
        return [param for group in self._zero.fp16_groups for param in group]

    def fragment(self, param: Any) -> Fragment:
        """Return this rank's part of a parameter, without the padding of the last ranks."""
        group, start, _ = self._zero.grad_position[self._zero.get_param_id(param)]
        flat, real = self._zero.fp32_partitioned_groups_flat[group].detach(), _real(param)
        return Fragment(flat.narrow(0, start, real), param.ds_tensor.detach().view(-1)[:real])

    def gradients(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of this rank's parts of the complete gradient, by name."""
        from deepspeed.utils import safe_get_local_grad

        found = {}
        for name, param in params.items():
            weight = self.fragment(param).weight
            part = safe_get_local_grad(param).view(-1)[: weight.numel()]
            found[name] = part.to(weight.device, weight.dtype, copy=True)
        return found

    def put_gradients(self, params: Mapping[str, Any], parts: Mapping[str, Tensor]) -> None:
        """Write this rank's parts of the gradient to where the step reads them."""
        from deepspeed.utils import safe_set_local_grad

        for name, param in params.items():
            padded = torch.zeros_like(param.ds_tensor, dtype=parts[name].dtype)
            padded.view(-1)[: parts[name].numel()] = parts[name]
            safe_set_local_grad(param, padded)

    def forget(self) -> None:
        """Drop what passes have accumulated, as if none had been made."""
        zero = self._zero
        for param in self.parameters():  # of a backward pass that has failed
            param.grad = None
        zero.zero_grad()
        for bucket in zero.ipg_buckets.values():
            bucket.clear_params()
        zero.grad_partitions_flat_buffer.zero_()  # of parameters that a window leaves out too
        if zero.offload_optimizer:
            for flat in zero.fp32_partitioned_groups_flat:
                if flat.grad is not None:
                    flat.grad.zero_()
            zero.reset_cpu_buffers()

    @contextmanager
    def moved(self, moves: list[tuple[Fragment, Tensor]]) -> Iterator[None]:
        """Have all ranks pass at w + epsilon, and at w again, rounded anew as the step does it."""
        fragments = [fragment for fragment, _ in moves]
        try:
            with torch.no_grad(), self._written():
                _move(moves)
            yield
        finally:
            with torch.no_grad(), self._written():
                for fragment in fragments:
                    fragment.in_pass.copy_(fragment.weight)

    def put_back(self, *, stepped: bool = False) -> None:
        """Do nothing: w comes back at the end of the block."""

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Free what was gathered of the weights; gather anew what ZeRO holds on to."""
        from deepspeed.accelerator import get_accelerator

        self._zero.checkpoint_event_prologue()
        yield
        if not get_accelerator().resolves_data_dependency():
            get_accelerator().synchronize()  # ZeRO gathers in another stream
        self._zero.checkpoint_event_epilogue()


def _real(param: Any) -> int:
    """Return how many entries of a parameter this rank has; the last ranks have padding too."""
    size, rank = param.ds_tensor.ds_numel, dist.get_rank(param.ds_process_group)
    return max(0, min(size, param.ds_numel - rank * size))
