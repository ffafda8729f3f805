"""The same inputs for both passes, also of a model or a loss that changes them in place."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import recursively_apply


def copied(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a copy for the first of two passes; the tensors within containers are copied too.

    Always, as a mixup or a mask may be drawn for some batches only: once a batch has been changed
    it is too late. Costs a copy of the inputs in memory, for the length of the pass.
    """
    return recursively_apply(torch.clone, inputs)
