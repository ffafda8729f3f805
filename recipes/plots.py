"""The picture of a comparison: error against gradient evaluations."""

from pathlib import Path

from comparison import Comparison, Interval

COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000")  # Okabe-Ito


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Plot each arm's mean error with its 95 % interval, and every run as a dot."""
    from matplotlib.figure import Figure  # an extra of the package

    figure = Figure(figsize=(5, 3.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    widest = max(result.gradient_evaluations for result in comparison.results)
    for i, arm in enumerate(comparison.arms):
        results = comparison.of(arm)
        errors = [result.error for result in results]
        interval = Interval.of(errors)
        # arms of the same cost stand side by side
        at = results[0].gradient_evaluations + widest * 0.012 * (i - len(comparison.arms) / 2)
        colour = COLOURS[i % len(COLOURS)]
        axes.scatter([at] * len(errors), errors, s=9, color=colour, alpha=0.5, linewidths=0)
        half_width = interval.half_width if interval.n > 1 else 0.0
        axes.errorbar(at, interval.mean, half_width, color=colour, marker="o", capsize=4, label=arm)
    axes.set_xlim(left=0)
    axes.set_xlabel("gradient evaluations of one run")
    axes.set_ylabel("top-1 error, %")
    record = comparison.record
    axes.set_title(f"{record.base} on {record.dataset}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Software": None})
