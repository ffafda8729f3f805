"""Reads `weight_average`: which steps are averaged, and how much each counts."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

WRITTEN = re.compile(r"(ema|swa):(\d*\.?\d+)")


@dataclass(frozen=True)
class Rule:
    """Which steps an average is of: `weight_average` as it is written."""

    written: str = field(compare=False)
    start: float  # share of the run's optimizer steps before the first that counts
    decay: float | None  # weight of what was averaged before; None where all count alike

    @property
    def update(self) -> Callable[[list[Tensor], list[Tensor], Any], None]:
        """Torch's function that changes an average: of the average, the weights and the count."""
        return get_swa_multi_avg_fn() if self.decay is None else get_ema_multi_avg_fn(self.decay)


def rule_of(written: Any) -> Rule:
    """Read `ema:decay` or `swa:start`.

    Raises:
        ValueError: If it is written otherwise, or the number is out of its range.
    """
    found = WRITTEN.fullmatch(written) if isinstance(written, str) else None
    number = float(found[2]) if found else 1.0
    if found is None or number >= 1 or (found[1] == "ema" and number == 0):
        raise ValueError(
            "`weight_average` must be ema:decay with a decay above 0 and below 1, or swa:start "
            f"with a share of the run from 0 to below 1, got {written!r}: ema:0.99 or swa:0.75, "
            "for instance."
        )
    return Rule(written, number, None) if found[1] == "swa" else Rule(written, 0.0, number)
