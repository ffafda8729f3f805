"""The report as one self-contained HTML page, without network access or scripts."""

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ..reporting.markdown import TEMPLATES
from . import plots
from .report import Report, table
from .rho_scan import RhoScan
from .verdict import outcome, verdict


@dataclass(frozen=True)
class Picture:
    """A figure with its title and caption."""

    title: str
    data_url: str
    text: str


def write_html(path: Path, report: Report) -> None:
    """Write the page.

    Args:
        path: The file.
        report: The measurements.
    """
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = page.from_string((TEMPLATES / "report.html").read_text(encoding="utf-8"))
    rows = table(report.portraits)
    settings = [
        {**(p.run.get("hyperparameters") or {}), **(p.run.get("model_options") or {}),
         **{f"SAM: {name}": value for name, value in (p.run.get("sam") or {}).items()}}
        for p in report.portraits
    ]  # fmt: skip
    names = list(dict.fromkeys(name for of_model in settings for name in of_model))
    path.write_text(
        template.render(
            report=report,
            first=report.portraits[0],
            rows=rows,
            outcome=outcome,
            names=[portrait.name for portrait in report.portraits],
            verdict=verdict(report),
            pictures=list(_pictures(report)),
            settings=[(name, [of.get(name, "-") for of in settings]) for name in names],
            plan=asdict(report.plan),
        ),
        encoding="utf-8",
    )


def _pictures(report: Report) -> Iterator[Picture]:
    by_name = {portrait.name: portrait for portrait in report.portraits}
    if all(portrait.surface for portrait in report.portraits):
        surfaces = {name: p.surface for name, p in by_name.items() if p.surface}
        lines = {name: p.line for name, p in by_name.items() if p.line}
        yield _picture(
            "Loss landscape",
            plots.plot_contours(surfaces),
            "The loss along two random directions, each filter moved by up to "
            f"{report.plan.span:g} of its own norm; the same levels for all, + is the model.",
        )
        yield _picture(
            "The same in three dimensions",
            plots.plot_surfaces(surfaces),
            "Cut off where the loss leaves the scale that all share.",
        )
        yield _picture(
            "Along one direction",
            plots.plot_profile(lines),
            "The first of the two directions, more finely.",
        )
    if report.between:
        first, second = report.portraits
        yield _picture(
            "Between the two",
            plots.plot_profile({f"{first.name} to {second.name}": report.between}),
            f"The loss on the straight line from {first.name} (0) to {second.name} (1). A hill "
            "between them means two basins; BatchNorm's statistics on the way can raise it too.",
        )
    if all(portrait.hessian.density for portrait in report.portraits):
        yield _picture(
            "Spectrum of the Hessian",
            plots.plot_spectrum({name: p.hessian for name, p in by_name.items()}),
            "Most eigenvalues are near zero; the few large ones, marked below, are the directions "
            "in which the loss is sharp.",
        )
    if report.plan.m:
        yield _picture(
            "m-sharpness",
            plots.plot_m_sharpness({name: p.sharpness for name, p in by_name.items()}),
            "The mean rise of the loss of m examples after an ascent step of their own.",
        )
    if all(portrait.rho_scan for portrait in report.portraits):
        scans = {name: p.rho_scan for name, p in by_name.items() if p.rho_scan}
        yield _picture(
            "Choosing rho",
            plots.plot_rho_scan(scans),
            _about_rho(scans, report),
        )


def _about_rho(scans: Mapping[str, RhoScan], report: Report) -> str:
    """Return the caption of the scan over rho, with the recommended values."""
    setup = next(iter(scans.values())).setup
    unseen = "" if report.eval_split == report.split else ", which were not trained on"
    text = (
        "Above, the mean loss after an ascent step of each rho, and dotted without one. Below, the "
        "cosine between the gradients before and after that step; the grey line is at 45 degrees. "
        f"On {setup.examples} images of the {report.eval_split} split{unseen}, in {setup.batches} "
        "batches that each have a perturbation of their own."
    )
    for name, scan in scans.items():
        found = "" if scan.recommended is None else f"recommended is {scan.recommended:g}: "
        text += f" {name}: {found}{scan.reason}"
    if any(scan.recommended is not None for scan in scans.values()):
        text += " A starting point: choose among its neighbours on held-out training images."
    return text


def _picture(title: str, figure: Any, text: str) -> Picture:
    """Embed a figure as SVG, which is small even for a surface of 225 cells."""
    file = io.BytesIO()
    with plots.reproducible():
        figure.savefig(file, format="svg", metadata={"Date": None})
    encoded = base64.b64encode(file.getvalue()).decode()
    return Picture(title, f"data:image/svg+xml;base64,{encoded}", text)
