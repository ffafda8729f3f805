"""Pictures say what they show: colours, axes, labels and legends."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from places import CARDS

from hf_sam.comparing.comparison import Comparison, Result
from hf_sam.comparing.plots import COLOURS, plot_comparison
from hf_sam.diagnostics import RhoScan, plots
from hf_sam.diagnostics.html import _about_rho
from hf_sam.diagnostics.report import Report
from hf_sam.diagnostics.styles import bar_style, line_style, mark_style

COMPARISON = Comparison.read(CARDS / "cub200_first50-sgd.json")
REPORT = Report.read(CARDS / "sharpness" / "cifar10-no_norm-seed0.json")
PORTRAIT = REPORT.portraits[0]


def plotted(
    errors: dict[str, list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Figure:
    """The figure of a comparison of these arms."""
    kept: list[Figure] = []
    savefig = Figure.savefig

    def keep(figure: Figure, *args: Any, **kwargs: Any) -> None:
        kept.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    results = [
        Result(arm, seed, {"rho": "0"}, {"eval_top1_error": error}, 100 + i % 4, 60.0 + i % 3)
        for i, (arm, of_seeds) in enumerate(errors.items())
        for seed, error in enumerate(of_seeds)
    ]
    plot_comparison(replace(COMPARISON, results=results), tmp_path / "plot.png")
    return kept[0]


@pytest.mark.parametrize(
    ("errors", "limits"),
    [
        ({"base": [1.0, 9.0], "sam": [0.0, 6.0]}, (0.0, None)),
        ({"base": [91.0, 99.0], "sam": [94.0, 100.0]}, (None, 100.0)),
        ({"base": [1.0, 9.0], "sam": [91.0, 99.0]}, (0.0, 100.0)),
        ({"base": [40.0, 41.0], "sam": [39.0, 40.0]}, (None, None)),
        ({"base": [0.0], "sam": [0.0]}, (0.0, None)),
    ],
)
def test_errors_lie_between_0_and_100(
    errors: dict[str, list[float]], limits: tuple[float | None, float | None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    figure = plotted(errors, tmp_path, monkeypatch)
    bottom, top = figure.axes[0].get_ylim()
    assert 0 <= bottom < top <= 100
    for limit, found in zip(limits, (bottom, top), strict=True):
        assert (found == limit) if limit is not None else found not in (0, 100)


def overlapping(texts: list[Text]) -> list[tuple[str, str]]:
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts]
    return [(a, b) for (a, x), (b, y) in combinations(boxes, 2) if x.overlaps(y)]


@pytest.mark.parametrize("arms", [3, 8, 9, 17])
def test_eight_arms_have_colours_and_the_others_names(
    arms: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"arm{i}" for i in range(arms)]
    errors = {name: [40 + i % 5, 41 + i % 5] for i, name in enumerate(names)}
    figure = plotted(errors, tmp_path, monkeypatch)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names[:8]
    assert len(set(COLOURS)) == 8
    for axes in figure.axes:
        assert sorted(text.get_text() for text in axes.texts) == sorted(names[8:])
        for text in axes.texts:
            text.get_window_extent()
            box = Text.get_window_extent(text)
            assert axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)
        assert not overlapping(list(axes.texts))


def test_more_models_than_colours_are_in_the_legend() -> None:
    names = [f"model{i}" for i in range(10)]
    history = [{"step": 1, "loss": 2.0, "sharpness": 0.1}, {"step": 2, "loss": 1.0}]
    line, scan = PORTRAIT.line, PORTRAIT.rho_scan
    assert line and scan
    figures = [
        plots.plot_profile({name: line for name in names}),
        plots.plot_rho_scan({name: scan for name in names}),
        plots.plot_spectrum({name: PORTRAIT.hessian for name in names}),
        plots.plot_m_sharpness({name: PORTRAIT.sharpness for name in names}),
        plots.plot_training({name: history for name in names}),
    ]
    for figure in figures:
        axes = figure.axes[0]
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert set(names) <= set(legend)


def test_models_of_one_colour_have_other_lines_markers_and_hatches() -> None:
    every = range(16)
    lines = [(style["color"], style["linestyle"]) for style in map(line_style, every)]
    marks = [(style["color"], style["marker"]) for style in map(mark_style, every)]
    bars = [(style["color"], style["hatch"]) for style in (bar_style(i, "") for i in every)]
    for styles in (lines, marks, bars):
        assert len(set(styles)) == len(every)


def test_contours_of_losses_below_zero_are_refused() -> None:
    surface = PORTRAIT.surface
    assert surface
    below = replace(surface, losses=-1.0 - surface.losses)
    with pytest.raises(ValueError, match="contours need a loss above 0, got none"):
        plots.plot_contours({"model": below})


def surfaces() -> Iterator[Any]:
    """Bowls, narrow valleys and several minima, steep and flat."""
    surface = PORTRAIT.surface
    assert surface and surface.y is not None
    x, y = np.meshgrid(surface.x, surface.y, indexing="ij")
    losses = [1e-3 + 100 * (x**2 + y**2), 0.01 + (5 * x) ** 2 + (50 * y) ** 2]
    losses += [1.1 + np.sin(12 * x) * np.cos(12 * y), 1 + 0.01 * x]
    draws = np.random.default_rng(0)
    losses += [np.exp(draws.normal(size=x.shape)), np.full_like(x, 2.0)]
    yield from ({"one": replace(surface, losses=found)} for found in losses)
    yield {name: replace(surface, losses=losses[i]) for i, name in enumerate(("a", "b", "c"))}


@pytest.mark.parametrize("drawn", list(surfaces()))
@pytest.mark.parametrize("dpi", [100, 200])
def test_contour_labels_do_not_overlap(drawn: dict[str, Any], dpi: int) -> None:
    figure = plots.plot_contours(drawn)
    figure.set_dpi(dpi)
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert not overlapping(list(axes.texts))


def test_contours_are_labelled() -> None:
    assert PORTRAIT.surface
    assert len(plots.plot_contours({"sam": PORTRAIT.surface}).axes[0].texts) >= 3


@pytest.mark.parametrize("recommended", [0.05, None])
def test_rho_is_recommended_only_where_one_is(recommended: float | None) -> None:
    scan = PORTRAIT.rho_scan
    assert scan
    none = replace(scan, recommended=None, reason="already at rho 0.01 it turns too far.")
    found = scan if recommended is None else replace(scan, recommended=recommended)
    scans: dict[str, RhoScan] = {"a": none, "b": none if recommended is None else found}
    figure = plots.plot_rho_scan(scans)
    said = [
        text.get_text()
        for axes in figure.axes
        for text in (*axes.get_legend().get_texts(), axes.xaxis.label, axes.yaxis.label)
    ]
    assert {"a", "b", "without ascent", "turned by 45 degrees"} <= set(said)
    words = " ".join(said) + _about_rho(scans, REPORT)
    assert "which were not trained on" in words
    assert "not trained on" not in _about_rho(scans, replace(REPORT, eval_split=REPORT.split))
    assert ("recommended" in words) == ("starting point" in words) == (recommended is not None)
    vertical = [line for line in figure.axes[1].lines if list(line.get_xdata()) == [0.05, 0.05]]
    assert len(vertical) == (recommended is not None)
