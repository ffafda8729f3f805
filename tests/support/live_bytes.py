"""The memory of the tensors that live, counted by their storages: views once, freed ones not."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows all storages that operations meet; each is asked for its size of the moment.

    A storage may be resized, as ZeRO frees weights. A DTensor has none of its own: what it claims
    is the size of the whole, so its parts are followed instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # comes again with the parts
        out = func(*args, **(kwargs or {}))
        self.follow((args, kwargs, out))
        return out

    def follow(self, tree: Any) -> None:
        for x in tree_leaves(tree):
            if type(x) in (Tensor, nn.Parameter) and x.device.type != "meta":
                storage = x.untyped_storage()
                self._storages.setdefault(storage._cdata, StorageWeakRef(storage))

    def live(self) -> int:
        total = 0
        for key, ref in list(self._storages.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(ref.cdata)
            if storage is None:
                del self._storages[key]
            else:
                total += storage.nbytes()
        return total
