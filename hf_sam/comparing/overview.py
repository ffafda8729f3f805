"""Overview plot of all comparisons: SAM and the base optimizer at equal gradient evaluations.

python -m hf_sam.comparing.overview model_cards/*.json --out docs/pictures/comparisons.png
"""

import math
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..reporting.interval import Interval
from .comparison import Comparison

BASELINE = "base_2x"  # the base optimizer at twice the epochs: as many evaluations as SAM
ALIKE = 0.95  # fraction of the baseline's evaluations from which they count as equal
LESS, MORE, UNCLEAR = "#0072b2", "#d55e00", "#7f7f7f"
HEIGHT = 0.19  # inches, of a row


@dataclass(frozen=True)
class Row:
    """One arm with SAM, compared with the base optimizer."""

    arm: str
    difference: Interval  # of the top-1 error in points, paired by seed; negative: SAM is better
    share: float  # of the baseline's gradient evaluations

    @property
    def colour(self) -> str:
        """Colour by the sign of the difference; grey if zero is within its interval."""
        if not abs(self.difference.mean) > self.difference.half_width:
            return UNCLEAR
        return LESS if self.difference.mean < 0 else MORE

    @property
    def is_equal_cost(self) -> bool:
        """Whether the arm makes about as many gradient evaluations as the baseline."""
        return ALIKE <= self.share <= 1 / ALIKE


def rows_of(comparison: Comparison) -> list[Row]:
    """Return a row for each arm with SAM; none without the baseline at twice the epochs."""
    if BASELINE not in comparison.arms:
        return []
    cost = comparison.gradient_evaluations(BASELINE)
    arms = [arm for arm in comparison.arms if _has_sam(comparison, arm)]
    paired = {arm: comparison.differences(arm, BASELINE) for arm in arms}
    return [
        Row(arm, Interval.of(found), comparison.gradient_evaluations(arm) / cost)
        for arm, found in paired.items()
        if found
    ]


def _has_sam(comparison: Comparison, arm: str) -> bool:
    return float(comparison.of(arm)[0].settings.get("rho", 0)) > 0


def all_rows(paths: Sequence[Path]) -> dict[str, list[Row]]:
    """Return the rows of every comparison, by its title.

    Raises:
        ValueError: If a file is damaged, or there is nothing to show.
    """
    found = {path.stem: Comparison.read(path) for path in sorted(paths)}
    rows = {name: rows_of(comparison) for name, comparison in found.items()}
    titles = {name: f"{name}: {_about(comparison)}" for name, comparison in found.items()}
    shown = {titles[name]: of_one for name, of_one in rows.items() if of_one}
    if not shown:
        raise ValueError(f"none of {len(paths)} files has an arm with SAM beside {BASELINE}.")
    return shown


def _about(comparison: Comparison) -> str:
    record = comparison.record
    words = [record.base, str(record.hyperparameters.get("optim"))]
    if noise := record.data_options.get("label_noise"):
        words.append(f"{100 * float(noise):.0f} % of the labels wrong")
    return ", ".join(words)


def summary(rows: Mapping[str, Sequence[Row]]) -> str:
    """Return a sentence with the counts of the plot's rows."""
    every = [row for of_one in rows.values() for row in of_one]
    equal = [row for row in every if row.is_equal_cost]
    cheaper = [row for row in every if not row.is_equal_cost]
    text = f"{len(equal)} rows of {len(rows)} comparisons are at equal gradient evaluations: "
    text += f"{_counted(equal)}."
    if cheaper:
        text += f" {len(cheaper)} rows, the hollow ones, make fewer: {_counted(cheaper)}."
    return text


def _counted(rows: Sequence[Row]) -> str:
    less, more, unclear = (sum(r.colour == c for r in rows) for c in (LESS, MORE, UNCLEAR))
    return (
        f"{less} err less than the base optimizer beyond the interval, {more} err more, and "
        f"{unclear} are not settled"
    )


def plot_overview(rows: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Plot one line per row: the difference, its interval and the cost."""
    from matplotlib.figure import Figure  # an optional dependency

    lines = sum(1 + len(of_one) for of_one in rows.values())
    figure = Figure(figsize=(8, HEIGHT * lines + 1.1), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.axvline(0.0, color="black", linewidth=0.8)
    at, named = 0, {}
    for title, of_one in rows.items():
        axes.text(
            0.0, at, title, transform=axes.get_yaxis_transform(), va="center", fontsize=8,
            fontweight="bold", parse_math=False,
            bbox={"facecolor": "white", "linewidth": 0, "pad": 1},
        )  # fmt: skip
        for row in of_one:
            at += 1
            named[at] = row.arm
            _draw(axes, at, row)
        at += 1
    axes.set_ylim(at - 0.3, -0.7)
    axes.set_yticks(list(named), list(named.values()), fontsize=7.5, parse_math=False)
    axes.tick_params(left=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(
        "top-1 error minus that of the base optimizer at twice the epochs, points, with 95 % "
        "interval over seeds\nleft of the line: SAM errs less; right of it: more. Grey: not "
        "settled. Hollow: fewer gradient evaluations",
        fontsize=8,
    )
    figure.savefig(path, metadata={"Software": None})


def _draw(axes: Any, at: int, row: Row) -> None:
    half_width = row.difference.half_width
    axes.errorbar(
        row.difference.mean, at, xerr=0.0 if math.isnan(half_width) else half_width, fmt="o",
        color=row.colour, markersize=5, capsize=2.5, linewidth=1.4,
        markerfacecolor=row.colour if row.is_equal_cost else "white",
    )  # fmt: skip
    said = f"{row.difference}, {row.difference.n} seeds"
    said += "" if row.is_equal_cost else f", {100 * row.share:.0f} % of the evaluations"
    across = axes.get_yaxis_transform()
    axes.text(1.01, at, said, transform=across, va="center", fontsize=7)


def main(argv: Sequence[str] | None = None) -> None:
    """Plot the given comparisons; a damaged file ends in one message."""
    parser = ArgumentParser("overview.py", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="JSON that hf-sam compare has written")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    options = parser.parse_args(argv)
    try:
        plot_overview(all_rows(options.files), options.out)
    except (OSError, ValueError) as error:
        sys.exit(f"overview.py: {error}")
    print(options.out)


if __name__ == "__main__":
    main()
