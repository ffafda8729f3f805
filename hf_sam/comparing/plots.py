"""The plot of a comparison: error against gradient evaluations, and against wall time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..reporting.interval import Interval
from .comparison import Comparison

# Okabe-Ito, but brown in place of its yellow, which is hard to see on white.
COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000", "#8b4513")
MARKERS = "osD^vPX*"
GREY = "#7f7f7f"  # of further arms, which are named at their points
SMALL = 6  # points, of those names


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Plot each arm's mean error with its 95 % interval, and every run as a dot."""
    from matplotlib.figure import Figure  # an optional dependency

    figure = Figure(figsize=(8, 3.6), dpi=150, layout="constrained")
    by_cost, by_time = figure.subplots(1, 2, sharey=True)
    panels = [
        (by_cost, _plot(by_cost, comparison, comparison.gradient_evaluations)),
        (by_time, _plot(by_time, comparison, comparison.minutes)),
    ]
    bottom, top = by_cost.get_ylim()
    by_cost.set_ylim(max(bottom, 0.0), min(top, 100.0))  # errors lie within, intervals may not
    by_cost.set_xlabel("gradient evaluations of one run")
    by_cost.set_ylabel("top-1 error, %")
    by_time.set_xlabel("minutes of the fastest run")
    record = comparison.record
    title = f"{record.base} on {record.dataset}, mean and 95 % interval"
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.legend(*by_cost.get_legend_handles_labels(), loc="outside right", frameon=False,
                  fontsize=8)  # fmt: skip
    for axes, points in panels:
        _name_greys(axes, points)
    figure.savefig(path, metadata={"Software": None})


def _plot(axes: Any, comparison: Comparison, cost: Callable[[str], float]) -> dict[str, Any]:
    """Plot every arm, and return the positions of the means."""
    arms = comparison.arms
    costs = {arm: cost(arm) for arm in arms}
    width = 0.015 * max(costs.values())
    points = {}
    for i, arm in enumerate(arms):
        errors = [result.error for result in comparison.of(arm)]
        interval = Interval.of(errors)
        beside = [other for other in arms if abs(costs[other] - costs[arm]) <= width]
        at = costs[arm] + width * (beside.index(arm) - (len(beside) - 1) / 2)
        points[arm] = (at, interval.mean)
        is_coloured = i < len(COLOURS)
        style: dict[str, Any] = {"color": GREY, "marker": "o"}
        if is_coloured:
            style = {"color": COLOURS[i], "marker": MARKERS[i]}
        axes.scatter([at] * len(errors), errors, s=9, alpha=0.5, linewidths=0, **style)
        half_width = interval.half_width if interval.n > 1 else 0.0
        label = {"label": arm} if is_coloured else {}
        axes.errorbar(at, interval.mean, half_width, capsize=4, linestyle="", **style, **label)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return points


def _name_greys(axes: Any, points: dict[str, Any]) -> None:
    """Label the grey arms at their points, without overlaps."""
    greys = list(points)[len(COLOURS) :]
    if not greys:
        return
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # computes the layout, which the labels need
    radius = axes.figure.dpi / 24  # pixels, of a marker of 6 points
    at = axes.transData.transform(list(points.values()))
    taken = [Bbox([centre - radius, centre + radius]) for centre in at]
    heights = [SMALL * step for k in range(40) for step in (k, -k)]  # the nearest first
    for arm in sorted(greys, key=lambda arm: points[arm][1]):
        name = axes.annotate(
            arm, points[arm], (5, 0), textcoords="offset points", va="center", fontsize=SMALL,
            color="#404040", parse_math=False, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.4},
        )  # fmt: skip
        name.set_in_layout(False)
        places = [(side, height) for height in heights for side in ("left", "right")]
        for side, height in places:
            name.set(ha=side, position=(5 if side == "left" else -5, height))
            name.get_window_extent()  # moves it there
            box = Text.get_window_extent(name)  # without the line to its point
            is_inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1
            if is_inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
