"""The results of a comparison: all runs, and means, intervals and paired differences by seed."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Self

from ..finetuning.image_errors import ErrorsOfRun
from ..reporting.interval import Interval
from ..reporting.json_files import read_json, write_json
from ..reporting.markdown import Markdown, code, table
from ..reporting.model_card import RunRecord

METRIC = "eval_top1_error"  # in percent: chooses settings and compares arms
BASELINES = ("base", "base_2x")


@dataclass(frozen=True)
class Result:
    """The result of one final run of an arm."""

    arm: str
    seed: int
    settings: Mapping[str, str]  # the arm's own options
    metrics: Mapping[str, float]
    gradient_evaluations: int  # forward-backward passes over an effective batch
    seconds: float  # wall time of training
    errors: ErrorsOfRun | None = None  # image by image; None in older records

    def __post_init__(self) -> None:
        """Check the numbers by which arms are compared."""
        if not 0 <= self.metrics.get(METRIC, math.nan) <= 100:
            raise ValueError(f"`metrics` must have {METRIC} in percent, got {self.metrics}")
        if not math.isfinite(self.seconds):
            raise ValueError("`seconds` must be finite")

    @property
    def error(self) -> float:
        """Top-1 error in percent."""
        return self.metrics[METRIC]


@dataclass(frozen=True)
class Trial:
    """The result of one trial run: a point of the grid from which settings are chosen."""

    arm: str
    settings: Mapping[str, str]
    held_out_error: float  # top-1 error in percent on the images for choosing
    seed: int


@dataclass(frozen=True)
class Comparison:
    """The results of all runs of a plan."""

    command: str
    record: RunRecord  # of the published model: data, model, machine, versions
    published: str  # the arm of the published model
    trials: Sequence[Trial]
    results: Sequence[Result]
    sweep_split: str | None = None  # for choosing settings; None: a tenth of the training images

    def __post_init__(self) -> None:
        """Check that there is a result."""
        if not self.results:
            raise ValueError("`results` must hold one run or more")

    def write(self, path: Path) -> None:
        """Write the comparison as JSON."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a comparison that `write` wrote.

        Raises:
            ValueError: If the file is truncated, edited or not a comparison.
        """
        again = "restore it, or type the command of its hf-sam compare again, which writes it anew"
        return read_json(path, cls, remedy=again)

    @property
    def arms(self) -> list[str]:
        """Names of the arms, in the order of the plan."""
        return list(dict.fromkeys(result.arm for result in self.results))

    def of(self, arm: str) -> list[Result]:
        """Return the runs of an arm, by seed."""
        return sorted((r for r in self.results if r.arm == arm), key=lambda r: r.seed)

    def gradient_evaluations(self, arm: str) -> float:
        """Return the gradient evaluations of one run of an arm, averaged over seeds."""
        return mean(result.gradient_evaluations for result in self.of(arm))

    def minutes(self, arm: str) -> float:
        """Return the wall time of an arm's fastest run, as other work makes runs slower."""
        return min(result.seconds for result in self.of(arm)) / 60

    def differences(self, arm: str, baseline: str) -> list[float]:
        """Return the arm's error minus the baseline's, for each seed that both have run."""
        reference = {result.seed: result.error for result in self.of(baseline)}
        return [r.error - reference[r.seed] for r in self.of(arm) if r.seed in reference]


def comparison_table(comparison: Comparison) -> Markdown:
    """Render a table with one row per arm: error, paired differences, cost and number of seeds."""
    baselines = [name for name in BASELINES if name in comparison.arms]
    minus = [Markdown(f"minus {code(name)}") for name in baselines]
    titles = ["arm", "settings", "top-1 error, %", *minus]
    rows = [[*titles, "gradient evaluations", "minutes, fastest", "seeds"]]
    for arm in comparison.arms:
        results = comparison.of(arm)
        settings = ", ".join(f"{name} {value}" for name, value in results[0].settings.items())
        rows.append(
            [
                code(arm),
                settings or "-",
                str(Interval.of([result.error for result in results])),
                *(_difference(comparison, arm, baseline) for baseline in baselines),
                f"{comparison.gradient_evaluations(arm):,.0f}",
                f"{comparison.minutes(arm):.1f}",
                str(len(results)),
            ]
        )
    return table(rows)


def _difference(comparison: Comparison, arm: str, baseline: str) -> str:
    paired = [] if arm == baseline else comparison.differences(arm, baseline)
    return str(Interval.of(paired)) if paired else "-"


def held_out_error(trials: Sequence[Trial], arm: str, settings: Mapping[str, str]) -> float:
    """Return the mean held-out error of an arm with these settings, in percent."""
    return mean(t.held_out_error for t in trials if (t.arm, t.settings) == (arm, settings))


def trials_table(comparison: Comparison) -> Markdown:
    """Render the grid of trials, one row per point, with each arm's chosen point marked."""
    chosen = {result.arm: result.settings for result in comparison.results}
    points = [(trial.arm, tuple(trial.settings.items())) for trial in comparison.trials]
    chosen_on = "held-out training images"
    if comparison.sweep_split:
        chosen_on = f"the {code(comparison.sweep_split)} split"
    rows = [["arm", "settings", f"error on {chosen_on}, %", "seeds", ""]]
    for (arm, settings), n in Counter(points).items():
        error = held_out_error(comparison.trials, arm, dict(settings))
        shown = ", ".join(f"{name} {value}" for name, value in settings)
        mark = "chosen" if settings and set(settings) <= set(chosen.get(arm, {}).items()) else ""
        rows.append([code(arm), shown, f"{error:.2f}", str(n), mark])
    return table(rows)
