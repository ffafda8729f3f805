"""Everything that is measured of one classifier, or of two side by side, and its JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

RATIO = "lambda_max / lambda_5"  # of the paper's figure; says nothing of flatness by itself
M_SHARPNESS = "m-sharpness"
LINE, SURFACE, SHARPNESS = "loss along a direction", "loss landscape", "sharpness"
HESSIAN, SCAN = "Hessian", "choosing rho"
LINE_POINTS = 41
ROUNDING = 1e-3  # of a number without an interval: eigenvalues are found to that, losses rounded


@dataclass(frozen=True)
class Plan:
    """How much is measured; what each number costs is said by the functions that take it."""

    rho: float = 0.05
    steps: int = 10
    sigma: float = 0.01
    directions: int = 10
    m: tuple[int, ...] = (4, 16, 64)
    top_k: int = 5
    trace_probes: int = 20
    density_probes: int = 1
    density_steps: int = 40
    points: int = 15  # of the surface along each direction; 0 to leave pictures of it out
    span: float = 0.5
    seed: int = 0

    def rehearse(self) -> None:
        """Measure next to nothing, so that a number out of its range is refused at once.

        Raises:
            ValueError: As the functions raise it that take the numbers.
        """
        model, examples = nn.Linear(1, 2), max([1, *self.m])
        batches = [(torch.ones(examples, 1), torch.zeros(examples, dtype=torch.int64))]
        told: dict[str, Any] = {"name": "", "error": 0.0, "run": {}, "progress": False}
        portray(model, batches, self, held_out=batches, begin=lambda what: None, **told)

    def costs(self) -> dict[str, float]:
        """Return what `portray` measures, and its cost in forward-backward passes, about."""
        products = 4 * self.top_k + self.trace_probes + self.density_probes * self.density_steps
        by_loss = (3 + 2 * self.directions) / 3  # a forward pass is a third
        pictures = {LINE: LINE_POINTS / 3, SURFACE: self.points**2 / 3} if self.points else {}
        return pictures | {
            SHARPNESS: 1 + self.steps + by_loss + 4 / 3 * len(self.m),
            HESSIAN: 2.0 * products,
            SCAN: 1.0 + len(RHOS),
        }


@dataclass(frozen=True)
class Portrait:
    """One model: how well it does, and how sharp its minimum is."""

    name: str
    error: float  # top-1, in percent, on the evaluation split
    sharpness: Sharpness
    hessian: Hessian
    line: Landscape | None
    surface: Landscape | None
    rho_scan: RhoScan | None
    run: Mapping[str, Any]  # the record of its training, where there is one

    def __post_init__(self) -> None:
        """Require what is shown of the record."""
        require_shown(self.run)

    def keep(self, path: Path, of: Sequence[Any]) -> None:
        """Write it down, for a run that is started again.

        Args:
            path: The file.
            of: What it depends on.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, encode(Kept(of, self)))


def require_shown(run: Mapping[str, Any]) -> None:
    """Raise a ValueError if a record has something else where its settings should be."""
    decode(str | None, run.get("command"), "command")
    for name in ("hyperparameters", "sam", "model_options"):
        decode(Mapping[str, Any] | None, run.get(name), name)


@dataclass(frozen=True)
class Kept:
    """A portrait, and what it depends on."""

    of: Sequence[Any]
    portrait: Portrait


@dataclass(frozen=True)
class Report:
    """One model, or two side by side on the same examples."""

    data: str
    split: str  # that sharpness was measured on
    eval_split: str  # that the errors were measured on
    eval_examples: int
    plan: Plan
    portraits: Sequence[Portrait]
    between: Landscape | None  # on the line from the first model to the second
    command: str
    versions: Mapping[str, str]
    date: str

    def write(self, path: Path) -> None:
        """Write all of it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, encode(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            ValueError: If the file is cut short, edited or of something else.
        """
        remedy = "restore it, or measure anew with `hf-sam report`"
        return read_json(path, cls, remedy=remedy)

    def __post_init__(self) -> None:
        """Require portraits of the same measures."""
        measured = [list(portrait.sharpness.by_m) for portrait in self.portraits]
        if self.between is not None and len(measured) != 2:
            raise ValueError(f"`between` must go with two `portraits`, got {len(measured)}")
        if not measured or any(numbers != measured[0] for numbers in measured):
            raise ValueError(
                f"`portraits` must be one or more with the same `by_m`, got {measured}"
            )


def kept_portrait(path: Path, of: Sequence[Any]) -> Portrait | None:
    """Return what `keep` has written of the same model and plan, or None."""
    try:
        kept = read_json(path, Kept, remedy="")
    except ValueError:
        return None  # none, cut short, or of another version
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
    """Measure all of a model.

    Args:
        model: Restored exactly.
        batches: The examples.
        plan: How much.
        held_out: Examples that it was not trained on, for the scan over rho.
        name: To show.
        error: Top-1, in percent.
        run: The record of its training; may be empty.
        begin: Told what is measured next, by the names in `Plan.costs`.
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
    """One row of the table: what is measured, and the models' values in words and as numbers."""

    label: str
    shown: list[str]
    values: list[float]  # the smaller, the flatter
    half_widths: list[float]  # of their own intervals; nan where there is none to be had

    @property
    def counted_as(self) -> str | None:
        """The measure that the row belongs to, which counts once; None where none is."""
        if self.label.startswith(M_SHARPNESS):
            return M_SHARPNESS
        return None if self.label == RATIO else self.label

    @property
    def flatter(self) -> int | None:
        """Which of two models is flatter beyond the intervals of both; None if that is unclear."""
        if len(self.values) != 2 or self.counted_as is None:
            return None
        (first, second), apart = self.values, sum(self.half_widths)
        if not abs(first - second) > apart:
            return None
        return 0 if first < second else 1

    @property
    def is_equal(self) -> bool:
        """Whether the models do not differ at all."""
        return len(set(self.values)) == 1


def table(portraits: Sequence[Portrait]) -> list[Measure]:
    """Return every measure that is one number for all models; the smaller, the flatter."""
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
