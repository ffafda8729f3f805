"""What is called flatter: only what differs beyond the measures' own intervals, each once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from places import CARDS

from hf_sam.diagnostics.card import card_section
from hf_sam.diagnostics.html import write_html
from hf_sam.diagnostics.report import Portrait, Report
from hf_sam.diagnostics.verdict import verdict
from hf_sam.reporting.interval import Interval
from hf_sam.reporting.sharpness_card import add_sharpness_to_card

MEASURED = CARDS / "sharpness"
REPORT = Report.read(MEASURED / "cifar10-no_norm-seed1.json")
SAME = {"worst_case": 1.0, "worst_case_steps": 1.0, "adaptive": 1.0, "by_m": {4: 1.0, 16: 1.0}}


def portrait(
    name: str, *, lambda_max: float = 1.0, trace: Any = None, **sharpness: Any
) -> Portrait:
    found = REPORT.portraits[0]
    average = sharpness.pop("average", Interval(1.0, 0.2, 10))
    return replace(
        found,
        name=name,
        sharpness=replace(found.sharpness, average=average, **{**SAME, **sharpness}),
        hessian=replace(found.hessian, eigenvalues=np.array([lambda_max]), trace=trace),
    )


def said_of(first: Portrait, second: Portrait) -> str:
    return verdict(replace(REPORT, portraits=[first, second]))


AVERAGE = "average over random directions, sigma 0.01"
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "nothing differs": ({}, "a and b are equally flat by all 6 measures."),
    "beyond": ({"average": Interval(2.0, 0.3, 10)}, "a is flatter than b by 1 of 6 measures."),
    "within": (
        {"average": Interval(1.4, 0.3, 10)},
        "Neither a nor b is flatter by any of 6 measures. Unclear, within the intervals of the "
        f"measures: {AVERAGE}.",
    ),
    "one direction": (
        {"average": Interval(9.0, float("nan"), 1)},
        "Neither a nor b is flatter by any of 6 measures. Unclear, within the intervals of the "
        f"measures: {AVERAGE}.",
    ),
    "to the eigenvalues' accuracy": (
        {"lambda_max": 1.0009},
        "Neither a nor b is flatter by any of 6 measures. Unclear, within the intervals of the "
        "measures: lambda_max.",
    ),
    "every m": ({"by_m": {4: 2.0, 16: 3.0}}, "a is flatter than b by 1 of 6 measures."),
    "one m of two": (
        {"by_m": {4: 2.0, 16: 1.0}},
        "Neither a nor b is flatter by any of 6 measures. Unclear, within the intervals of the "
        "measures: m-sharpness.",
    ),
    "m against m": (
        {"by_m": {4: 2.0, 16: 0.5}, "lambda_max": 0.5},
        "b is flatter than a by 1 of 6 measures. Unclear, within the intervals of the measures: "
        "m-sharpness.",
    ),
    "both": (
        {"worst_case": 2.0, "adaptive": 2.0, "lambda_max": 0.5},
        "a is flatter than b by 2 of 6 measures, but not by: lambda_max.",
    ),
    "as many": (
        {"adaptive": 2.0, "lambda_max": 0.5},
        "a is flatter by: adaptive (ASAM), rho 0.5. b is, by: lambda_max.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_flatter_is_what_is_beyond_the_intervals(case: str) -> None:
    of_second, expected = CASES[case]
    first, second = portrait("a"), portrait("b", **of_second)
    assert said_of(first, second) == expected
    if case in ("beyond", "every m", "both"):  # whichever comes first
        assert said_of(second, first) == expected


def test_the_trace_has_an_interval_too() -> None:
    first, second = (portrait(n, trace=Interval(v, 10, 20)) for n, v in (("a", 50), ("b", 65)))
    assert said_of(first, second).endswith("measures: trace of the Hessian.")
    assert said_of(first, portrait("b", trace=Interval(71, 10, 20))).startswith("a is flatter")


def test_bold_and_words_say_the_same(tmp_path: Path) -> None:
    """In the page and in the card."""
    first = portrait("a", trace=Interval(50.0, 10.0, 20))
    second = portrait("b", trace=Interval(65.0, 10.0, 20), lambda_max=2.0, worst_case=0.5)
    report = replace(REPORT, portraits=[first, second], between=None)
    write_html(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text()
    rows = {row.split("</td>")[0]: row for row in page.split("<tr><td>")[1:]}
    trace, largest = rows["trace of the Hessian"], rows["lambda_max"]
    assert 'class="least"' not in trace and "<td>unclear</td>" in trace
    assert '<td class="least">1</td><td>2</td><td>a</td>' in largest
    assert page.count('class="least"') == 2
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n")
    add_sharpness_to_card(tmp_path / "README.md", card_section(report, second))
    card = ModelCard.load(tmp_path / "README.md").text
    assert "| lambda_max | 2 | 1 | a |" in card
    assert "| worst case, one ascent step, rho 0.05 | 0.5 | 1 | this model |" in card
    assert "| trace of the Hessian | 65 ± 10 | 50 ± 10 | unclear |" in card
    assert "| adaptive (ASAM), rho 0.5 | 1 | 1 | equal |" in card


def test_a_section_that_is_replaced_leaves_paragraphs_apart(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: mit\n---\n\n# A model\n")
    add_sharpness_to_card(path, "old")
    path.write_text(path.read_text() + "\nA note\n")
    add_sharpness_to_card(path, "new")
    text = ModelCard.load(path).text
    assert "# A model\n\nA note\n\n<!--" in text and "new" in text and "old" not in text


def test_one_model_is_not_judged(tmp_path: Path) -> None:
    report = replace(REPORT, portraits=[portrait("a")], between=None)
    write_html(tmp_path / "report.html", report)
    assert "<th>flatter</th>" not in (tmp_path / "report.html").read_text()
    assert "flatter |" not in card_section(report, report.portraits[0])
