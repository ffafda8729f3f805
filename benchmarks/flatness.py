"""Are SAM's minima flatter? Tables over seeds and pictures of one, from the diagnostics' reports.

python benchmarks/flatness.py    writes the pictures; `make cards` puts the tables into the docs
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from hf_sam.diagnostics import plots
from hf_sam.diagnostics.report import RATIO, Report, table
from hf_sam.reporting.interval import Interval

FOLDER = Path(__file__).parent.parent / "model_cards" / "sharpness"


def reports_of(name: str) -> list[Report]:
    """Return one report for each seed, each of SAM beside the base optimizer."""
    return [Report.read(path) for path in sorted(FOLDER.glob(f"{name}-seed*.json"))]


def table_of(reports: Sequence[Report]) -> str:
    """Render every measure as mean and 95 % interval over seeds, and the difference by seed."""
    columns = [portrait.name for portrait in reports[0].portraits]
    rows = [["measure", *columns, "difference", "flatter"], ["---"] * (len(columns) + 3)]
    errors = [[portrait.error for portrait in report.portraits] for report in reports]
    losses = [[p.sharpness.setup.loss for p in report.portraits] for report in reports]
    plain = reports[0]
    rows.append(_row(f"top-1 error, %, {plain.eval_split} split", errors, is_sharpness=False))
    rows.append(_row(f"mean loss, {plain.split} split", losses, is_sharpness=False))
    measured = [table(report.portraits) for report in reports]
    for of_seeds in zip(*measured, strict=True):
        label, values = of_seeds[0].label, [row.values for row in of_seeds]
        rows.append(_row(label, values, is_sharpness=label != RATIO))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(label: str, values: Sequence[Sequence[float]], *, is_sharpness: bool) -> list[str]:
    """The last column names SAM or base only where the interval of the difference excludes 0."""
    differences = Interval.of([first - second for first, second in values])
    cells = [f"{Interval.of(of_model):.3g}" for of_model in zip(*values, strict=True)]
    is_clear = abs(differences.mean) > differences.half_width
    verdict = ("SAM" if differences.mean < 0 else "base") if is_clear else "unclear"
    return [label, *cells, f"{differences:.3g}", verdict if is_sharpness else "-"]


def draw(name: str, report: Report) -> None:
    """Save spectrum and landscape of one seed, side by side."""
    spectra = {p.name: p.hessian for p in report.portraits}
    surfaces = {p.name: p.surface for p in report.portraits if p.surface}
    for kind, figure in (
        ("spectrum", plots.plot_spectrum(spectra)),
        ("contours", plots.plot_contours(surfaces)),
        ("surfaces", plots.plot_surfaces(surfaces)),
    ):
        figure.savefig(FOLDER / f"{name}-{kind}.png", dpi=150, metadata={"Software": None})


def names() -> list[str]:
    """Return what has reports."""
    return sorted({path.stem.rsplit("-seed", 1)[0] for path in FOLDER.glob("*-seed*.json")})


def main() -> None:
    """Draw all; a file that cannot be read ends in one message."""
    try:
        for found in names():
            draw(found, reports_of(found)[0])
            print(found)
    except ValueError as error:
        sys.exit(f"flatness.py: {error}")


if __name__ == "__main__":
    main()
