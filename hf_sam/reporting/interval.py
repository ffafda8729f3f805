"""Confidence intervals: a mean with its 95 % interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Self

from scipy.stats import t


@dataclass(frozen=True)
class Interval:
    """A mean of n independent values with its 95 % confidence interval, by Student's t."""

    mean: float
    half_width: float  # nan for a single value, or one that is not finite
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Estimate the interval from one or more independent values."""
        n = len(values)
        if n == 1:
            return cls(values[0], math.nan, 1)
        if not all(map(math.isfinite, values)):
            return cls(mean(values), math.nan, n)
        quantile = float(t.ppf(0.975, n - 1))
        return cls(mean(values), quantile * stdev(values) / math.sqrt(n), n)

    def __format__(self, spec: str) -> str:
        """Format as 35.71 ± 0.42, each number by the specification; the mean alone if n is 1."""
        spec = spec or ".2f"
        spread = "" if math.isnan(self.half_width) else f" ± {self.half_width:{spec}}"
        return f"{self.mean:{spec}}{spread}"

    def __str__(self) -> str:
        """Format with two decimals."""
        return format(self)
