"""Plots of the measurements, legible at the width of a column and without colour vision.

Each function takes measurements by name, as `{"base": ..., "SAM": ...}`, to show models side by
side on one scale, and returns a matplotlib figure; `save` writes it as PNG and SVG.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from .contour_labels import label_contours
from .hessian import Hessian
from .landscape import Landscape
from .rho_scan import ALIGNED, RhoScan
from .sharpness import Sharpness
from .styles import bar_style, colour, label, line_style, mark_style

WIDTH = 3.5  # inches, of a column


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as SVG and as PNG; the same numbers give the same bytes.

    Args:
        figure: A figure of this module.
        path: The file, without a suffix or with either of the two.
    """
    path = Path(path)
    with reproducible():
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        figure.savefig(path.with_suffix(".png"), dpi=200, metadata={"Software": None})


def reproducible() -> Any:
    """Return a context manager in which the ids in an SVG are not random."""
    return rc_context({"svg.hashsalt": "hf_sam"})


def plot_spectrum(results: Mapping[str, Hessian]) -> Figure:
    """Plot spectral densities of the Hessian on a logarithmic axis, and the largest eigenvalues.

    Args:
        results: Measured with `density_probes` > 0.

    Raises:
        ValueError: If one has no density.
    """
    figure, axes = _figure()
    floor = min(map(_height_of_one, results.items())) / 10
    for i, (name, result) in enumerate(results.items()):
        assert result.density is not None
        _plot(axes, i, name, result.density.eigenvalues, result.density.density)
        largest = {**mark_style(i), "linestyle": "", "label": label(f"{name}: largest")}
        axes.plot(result.eigenvalues, np.full(len(result.eigenvalues), 1.6 * floor), **largest)
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    axes.set_xlabel("eigenvalue of the Hessian")
    axes.set_ylabel("density")
    _legend(axes)
    return figure


def plot_profile(results: Mapping[str, Landscape]) -> Figure:
    """Plot the loss along one direction, or on the line between two models.

    Args:
        results: Landscapes of one dimension.

    Raises:
        ValueError: If one is a surface.
    """
    figure, axes = _figure()
    for i, (name, result) in enumerate(results.items()):
        if result.y is not None:
            raise ValueError(f"{name} is a surface: measure with `dimensions=1`.")
        _plot(axes, i, name, result.x, result.losses)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel(f"steps, {next(iter(results.values())).axes[0]}")
    axes.set_ylabel("mean loss")
    _legend(axes)
    return figure


def plot_contours(results: Mapping[str, Landscape]) -> Figure:
    """Plot contours of surfaces, side by side with the same levels.

    Args:
        results: Landscapes of two dimensions.

    Raises:
        ValueError: If one is a line.
    """
    figure, panels = _panels(results)
    levels = _levels(results)
    contours = []
    for axes, (name, result) in zip(panels, results.items(), strict=True):
        drawn = axes.contour(
            result.x, _second(name, result), result.losses.T, levels=levels, norm=LogNorm(),
            cmap="viridis", linewidths=0.9,
        )  # fmt: skip
        contours.append((axes, drawn))
        axes.plot(0, 0, marker="+", color="black", markersize=7)
        axes.set_title(f"{label(name)}, loss {result.setup.loss:.3g}", fontsize=8)
        axes.set_aspect("equal")
        axes.set_xlabel(_short(result.axes[0]))
    panels[0].set_ylabel(_short(next(iter(results.values())).axes[1]))
    figure.draw_without_rendering()  # computes the layout, which the labels need
    for axes, drawn in contours:
        label_contours(axes, drawn, levels[::2])
    return figure


def plot_surfaces(results: Mapping[str, Landscape]) -> Figure:
    """Plot surfaces in three dimensions, side by side on the same scale.

    Args:
        results: Landscapes of two dimensions.

    Raises:
        ValueError: If one is a line.
    """
    figure, panels = _panels(results, projection="3d")
    levels = _levels(results)
    for axes, (name, result) in zip(panels, results.items(), strict=True):
        x, y = np.meshgrid(result.x, _second(name, result), indexing="ij")
        heights = np.log10(np.clip(np.nan_to_num(result.losses, nan=np.inf), None, levels[-1]))
        axes.plot_surface(
            x, y, heights, cmap=colormaps["viridis"], rstride=1, cstride=1, linewidth=0.1,
            edgecolor="#00000030", vmin=np.log10(levels[0]), vmax=np.log10(levels[-1]),
        )  # fmt: skip
        axes.set_zlim(np.log10(levels[0]), np.log10(levels[-1]))
        axes.set_title(f"{label(name)}, log10 of the mean loss", fontsize=8)
        axes.tick_params(labelsize=6, pad=-2)
        axes.set_xlabel(_short(result.axes[0]), fontsize=7, labelpad=-6)
        axes.set_ylabel(_short(result.axes[1]), fontsize=7, labelpad=-6)
    return figure


def plot_m_sharpness(results: Mapping[str, Sharpness]) -> Figure:
    """Plot m-sharpness as bars, one group for each m.

    Args:
        results: Measured for the same `m`.

    Raises:
        ValueError: If they differ, or none was measured.
    """
    numbers = [tuple(result.by_m) for result in results.values()]
    if not numbers[0] or len(set(numbers)) > 1:
        raise ValueError(f"all must have the same `m`, one or more, got {numbers}.")
    figure, axes = _figure()
    width = 0.8 / len(results)
    for i, (name, result) in enumerate(results.items()):
        at = np.arange(len(numbers[0])) + (i - (len(results) - 1) / 2) * width
        bars = list(result.by_m.values())
        axes.bar(at, bars, width, edgecolor="white", **bar_style(i, name))
    axes.set_xticks(range(len(numbers[0])), map(str, numbers[0]))
    axes.set_xlabel("m, examples that share a perturbation")
    axes.set_ylabel(f"rise of the loss, rho {next(iter(results.values())).rho:g}")
    _legend(axes)
    return figure


def plot_rho_scan(results: Mapping[str, RhoScan]) -> Figure:
    """Plot the loss after the ascent, and the cosine between the gradients, against rho.

    Args:
        results: The recommended rho of each is marked, where there is one.
    """
    figure, above, below = _stacked()
    for i, (name, result) in enumerate(results.items()):
        thin = {"color": colour(i), "linewidth": 0.8, "linestyle": ":"}
        _plot(above, i, name, result.rhos, result.perturbed_losses, **mark_style(i))
        below.plot(result.rhos, result.cosines, **{**line_style(i), **mark_style(i)})
        above.axhline(result.setup.loss, **thin)
        if result.recommended is not None:
            below.axvline(result.recommended, **thin)
    above.axhline(math.nan, color="black", linewidth=0.8, linestyle=":", label="without ascent")
    below.axhline(ALIGNED, color="#888888", linewidth=0.8, label="turned by 45 degrees")
    if any(result.recommended is not None for result in results.values()):
        dotted = {"color": "black", "linewidth": 0.8, "linestyle": ":"}
        below.plot([], [], label="recommended rho", **dotted)
    above.set_ylabel("loss after the ascent")
    below.set_ylabel("cosine of the gradients")
    below.set_xlabel("rho")
    below.set_xscale("log")
    _legend(above)
    _legend(below)
    return figure


def plot_training(log_histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Plot training loss and sharpness against optimizer steps.

    Args:
        log_histories: For each run `trainer.state.log_history`. Sharpness is SAM's own, or the
            worst case that `SharpnessCallback` logs.
    """
    figure, above, below = _stacked()
    for i, (name, history) in enumerate(log_histories.items()):
        key = "probe_worst_case" if any("probe_worst_case" in e for e in history) else "sharpness"
        for axes, entry in ((above, "loss"), (below, key)):
            points = [(e["step"], e[entry]) for e in history if entry in e]
            if points:
                _plot(axes, i, name, *zip(*points, strict=True))
    above.set_ylabel("training loss")
    below.set_ylabel("sharpness")
    below.set_xlabel("optimizer step")
    _legend(above)
    return figure


def _height_of_one(named: tuple[str, Hessian]) -> float:
    """Return the height of a single eigenvalue in a density."""
    name, result = named
    if result.density is None:
        raise ValueError(f"{name} has no density: measure with `density_probes=1` or more.")
    return 1 / (result.setup.parameters * result.density.width * math.sqrt(2 * math.pi))


def _figure() -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.subplots()
    _tidy(axes)
    return figure, axes


def _stacked() -> tuple[Figure, Any, Any]:
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    _tidy(above)
    _tidy(below)
    return figure, above, below


def _panels(results: Mapping[str, Landscape], **options: Any) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(2.6 * len(results), 2.8), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False, subplot_kw=options)
    for axes in panels[0]:
        axes.locator_params(nbins=5)
        axes.tick_params(labelsize=7)
        axes.xaxis.label.set_size(8)
        axes.yaxis.label.set_size(8)
    return figure, list(panels[0])


def _levels(results: Mapping[str, Landscape]) -> Any:
    """Return levels for all plots, evenly spaced on a logarithmic scale."""
    every = np.concatenate([result.losses.ravel() for result in results.values()])
    every = every[np.isfinite(every) & (every > 0)]
    if not len(every):
        raise ValueError("contours need a loss above 0, got none: use `plot_surfaces`.")
    lowest = max(float(every.min()), float(every.max()) * 1e-4)
    levels = np.geomspace(lowest, max(float(np.quantile(every, 0.98)), 1.01 * lowest), 12)
    return np.array([float(f"{level:.9g}") for level in levels])  # the same on every processor


def _second(name: str, result: Landscape) -> Any:
    if result.y is None:
        raise ValueError(f"{name} is a line: measure with `dimensions=2`.")
    return result.y


def _plot(axes: Any, i: int, name: str, x: Any, y: Any, **marked: Any) -> None:
    """Plot a curve, with its name in the legend."""
    axes.plot(x, y, label=label(name), **{**line_style(i), **marked})


def _short(axis: str) -> str:
    return "steps along the gradient" if "gradient" in axis else "steps, random direction"


def _legend(axes: Any) -> None:
    axes.legend(frameon=False, fontsize=7)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=7)
    axes.xaxis.label.set_size(8)
    axes.yaxis.label.set_size(8)
