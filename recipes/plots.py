"""The picture of a comparison: error against gradient evaluations, and against wall time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from comparison import Comparison

from hf_sam.interval import Interval

COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000")  # Okabe-Ito
MARKERS = "osD^v"  # another for each round of the colours


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Plot each arm's mean error with its 95 % interval, and every run as a dot."""
    from matplotlib.figure import Figure  # an extra of the package

    figure = Figure(figsize=(8, 3.6), dpi=150, layout="constrained")
    by_cost, by_time = figure.subplots(1, 2, sharey=True)
    _plot(by_cost, comparison, comparison.gradient_evaluations)
    _plot(by_time, comparison, comparison.minutes)
    by_cost.set_xlabel("gradient evaluations of one run")
    by_cost.set_ylabel("top-1 error, %")
    by_time.set_xlabel("minutes of the fastest run")
    record = comparison.record
    figure.suptitle(f"{record.base} on {record.dataset}, mean and 95 % interval", fontsize=10)
    figure.legend(*by_cost.get_legend_handles_labels(), loc="outside right", frameon=False,
                  fontsize=8)  # fmt: skip
    figure.savefig(path, metadata={"Software": None})


def _plot(axes: Any, comparison: Comparison, cost: Callable[[str], float]) -> None:
    arms = comparison.arms
    costs = {arm: cost(arm) for arm in arms}
    width = 0.015 * max(costs.values())
    for i, arm in enumerate(arms):
        errors = [result.error for result in comparison.of(arm)]
        interval = Interval.of(errors)
        beside = [other for other in arms if abs(costs[other] - costs[arm]) <= width]
        at = costs[arm] + width * (beside.index(arm) - (len(beside) - 1) / 2)
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i // len(COLOURS)]}
        axes.scatter([at] * len(errors), errors, s=9, alpha=0.5, linewidths=0, **style)
        half_width = interval.half_width if interval.n > 1 else 0.0
        axes.errorbar(at, interval.mean, half_width, capsize=4, label=arm, linestyle="", **style)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
