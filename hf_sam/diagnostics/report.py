"""The report: all measurements of one classifier, or of two side by side, and its JSON file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from ..reporting.codec import decode, encode
from ..reporting.interval import Interval
from ..reporting.json_files import read_json, write_json
from .hessian import Hessian, hessian
from .landscape import Landscape, landscape
from .rho_scan import RHOS, RhoScan, rho_scan
from .sharpness import Sharpness, sharpness

RATIO = "lambda_max / lambda_5"  # as in the paper's figure; no measure of flatness by itself
M_SHARPNESS = "m-sharpness"
LINE, SURFACE, SHARPNESS = "loss along a direction", "loss landscape", "sharpness"
HESSIAN, SCAN = "Hessian", "choosing rho"
LINE_POINTS = 41
ROUNDING = 1e-3  # relative error of a number without an interval


@dataclass(frozen=True)
class Plan:
    """How much is measured; the measuring functions document the costs."""

    rho: float = 0.05
    steps: int = 10
    sigma: float = 0.01
    directions: int = 10
    m: tuple[int, ...] = (4, 16, 64)
    top_k: int = 5
    trace_probes: int = 20
    density_probes: int = 1
    density_steps: int = 40
    points: int = 15  # of the surface along each direction; 0 for no landscape
    span: float = 0.5
    seed: int = 0

    def rehearse(self) -> None:
        """Run all measurements on a tiny model, so that an invalid number fails at once.

        Raises:
            ValueError: Of the function that takes the number.
        """
        model, smaller = nn.Linear(1, 2), replace(self, m=tuple(min(m, 4) for m in self.m))
        batches = [(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64))]
        unused: dict[str, Any] = {"name": "", "error": 0.0, "run": {}, "progress": False}
        portray(model, batches, smaller, held_out=batches, begin=lambda what: None, **unused)

    def costs(self) -> dict[str, float]:
        """Return the approximate cost of each measurement, in forward-backward passes."""
        products = 4 * self.top_k + self.trace_probes + self.density_probes * self.density_steps
        by_loss = (3 + 2 * self.directions) / 3  # a forward pass counts as a third
        pictures = {LINE: LINE_POINTS / 3, SURFACE: self.points**2 / 3} if self.points else {}
        return pictures | {
            SHARPNESS: 1 + self.steps + by_loss + 4 / 3 * len(self.m),
            HESSIAN: 2.0 * products,
            SCAN: 1.0 + len(RHOS),
        }


@dataclass(frozen=True)
class Portrait:
    """All measurements of one model: its error and the sharpness of its minimum."""

    name: str
    error: float  # top-1, in percent, on the evaluation split
    sharpness: Sharpness
    hessian: Hessian
    line: Landscape | None
    surface: Landscape | None
    rho_scan: RhoScan | None
    run: Mapping[str, Any]  # the record of its training; may be empty

    def __post_init__(self) -> None:
        """Check what the report shows of the record."""
        require_shown(self.run)

    def keep(self, path: Path, of: Sequence[Any]) -> None:
        """Save the measurements, for a restart of an interrupted command.

        Args:
            path: The file.
            of: Everything that the measurements depend on.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, encode(Kept(of, self)))


def require_shown(run: Mapping[str, Any]) -> None:
    """Raise a ValueError if the settings in a record have another type."""
    decode(str | None, run.get("command"), "command")
    for name in ("hyperparameters", "sam", "model_options"):
        decode(Mapping[str, Any] | None, run.get(name), name)


@dataclass(frozen=True)
class Kept:
    """A saved portrait, with everything that it depends on."""

    of: Sequence[Any]
    portrait: Portrait


@dataclass(frozen=True)
class Report:
    """One model, or two side by side on the same examples."""

    data: str
    split: str  # for the sharpness
    eval_split: str  # for the errors
    eval_examples: int
    plan: Plan
    portraits: Sequence[Portrait]
    between: Landscape | None  # on the line from the first model to the second
    command: str
    versions: Mapping[str, str]
    date: str

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, encode(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a report that `write` wrote.

        Raises:
            ValueError: If the file is truncated, edited or not a report.
        """
        remedy = "restore it, or measure anew with `hf-sam report`"
        return read_json(path, cls, remedy=remedy)

    def __post_init__(self) -> None:
        """Check that all portraits have the same measures."""
        measured = [list(portrait.sharpness.by_m) for portrait in self.portraits]
        if self.between is not None and len(measured) != 2:
            raise ValueError(f"`between` must go with two `portraits`, got {len(measured)}")
        if not measured or any(numbers != measured[0] for numbers in measured):
            raise ValueError(
                f"`portraits` must be one or more with the same `by_m`, got {measured}"
            )


def kept_portrait(path: Path, of: Sequence[Any]) -> Portrait | None:
    """Return the portrait that `keep` saved with the same dependencies, or None."""
    try:
        kept = read_json(path, Kept, remedy="")
    except ValueError:
        return None  # missing, truncated, or of another version
    return kept.portrait if kept.of == list(of) else None


def portray(
    model: nn.Module,
    batches: Sequence[Any],
    plan: Plan,
    *,
    held_out: Sequence[Any],
    name: str,
    error: float,
    run: Mapping[str, Any],
    begin: Callable[[str], None],
    progress: bool = True,
) -> Portrait:
    """Make all measurements of a model.

    Args:
        model: The model, which is restored exactly.
        batches: The examples.
        plan: How much to measure.
        held_out: Examples that it was not trained on, for the scan over rho.
        name: Name to show.
        error: Top-1 error in percent.
        run: The record of its training; may be empty.
        begin: Called before each measurement with its name in `Plan.costs`.
        progress: Show progress bars.

    Raises:
        ValueError: If it cannot be measured.
    """
    shared: dict[str, Any] = {"seed": plan.seed, "progress": progress}
    found: dict[str, Any] = {"line": None, "surface": None}
    if plan.points:
        begin(LINE)
        found["line"] = landscape(
            model, batches, dimensions=1, span=plan.span, points=LINE_POINTS, **shared
        )
        begin(SURFACE)
        found["surface"] = landscape(model, batches, span=plan.span, points=plan.points, **shared)
    begin(SHARPNESS)
    of_sharpness = {n: getattr(plan, n) for n in ("rho", "steps", "sigma", "directions", "m")}
    found["sharpness"] = sharpness(
        model, batches, adaptive_rho=10 * plan.rho, **of_sharpness, **shared
    )
    begin(HESSIAN)
    of_hessian = ("top_k", "trace_probes", "density_probes", "density_steps")
    found["hessian"] = hessian(
        model, batches, **{n: getattr(plan, n) for n in of_hessian}, **shared
    )
    begin(SCAN)
    found["rho_scan"] = rho_scan(model, held_out, max_batches=None, **shared)
    return Portrait(name=name, error=error, run=run, **found)


@dataclass(frozen=True)
class Measure:
    """One row of the table: a measure, and the models' values as text and as numbers."""

    label: str
    shown: list[str]
    values: list[float]  # the smaller, the flatter
    half_widths: list[float]  # of the values' intervals; nan if unknown

    @property
    def counted_as(self) -> str | None:
        """The measure that the row belongs to, as several rows count once; None: does not count."""
        if self.label.startswith(M_SHARPNESS):
            return M_SHARPNESS
        return None if self.label == RATIO else self.label

    @property
    def flatter(self) -> int | None:
        """Index of the model that is flatter beyond both intervals; None if that is unclear."""
        if len(self.values) != 2 or self.counted_as is None:
            return None
        (first, second), apart = self.values, sum(self.half_widths)
        if not abs(first - second) > apart:
            return None
        return 0 if first < second else 1

    @property
    def is_equal(self) -> bool:
        """Whether all models have the same value."""
        return len(set(self.values)) == 1


def table(portraits: Sequence[Portrait]) -> list[Measure]:
    """Return the measures that every model has, one row each; smaller values are flatter."""
    first = portraits[0].sharpness
    rows = [
        (f"worst case, one ascent step, rho {first.rho:g}", lambda p: p.sharpness.worst_case),
        (f"worst case, {1 + first.steps} steps", lambda p: p.sharpness.worst_case_steps),
        (f"average over random directions, sigma {first.sigma:g}", lambda p: p.sharpness.average),
        (f"adaptive (ASAM), rho {first.adaptive_rho:g}", lambda p: p.sharpness.adaptive),
        *(
            (f"{M_SHARPNESS}, m = {m}", lambda p, m=m: p.sharpness.by_m[m])
            for m in first.by_m
        ),
        ("lambda_max", lambda p: p.hessian.lambda_max),
        (RATIO, lambda p: p.hessian.lambda_ratio),
        ("trace of the Hessian", lambda p: p.hessian.trace),
    ]  # fmt: skip
    found = [(label, [value(p) for p in portraits]) for label, value in rows]
    return [_measure(label, values) for label, values in found if None not in values]


def _measure(label: str, found: list[float | Interval]) -> Measure:
    intervals = [
        value if isinstance(value, Interval) else Interval(value, ROUNDING * abs(value), 1)
        for value in found
    ]
    return Measure(
        label,
        [f"{value:.3g}" for value in found],
        [float(interval.mean) for interval in intervals],
        [interval.half_width for interval in intervals],
    )
