"""The picture of all comparisons: which rows it has, what they say, and what it looks like."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from places import CARDS

from hf_sam.comparing import overview
from hf_sam.comparing.comparison import Comparison, Result
from hf_sam.comparing.overview import (
    LESS,
    MORE,
    UNCLEAR,
    Row,
    all_rows,
    plot_overview,
    rows_of,
    summary,
)
from hf_sam.reporting.interval import Interval

COMPARISON = Comparison.read(CARDS / "cub200_first50-sgd.json")


def made(*arms: tuple[str, str, int, list[float]]) -> Comparison:
    """A comparison of arms with these names, rho, gradient evaluations and errors by seed."""
    results = [
        Result(arm, seed, {"rho": rho}, {"eval_top1_error": error}, evaluations, 1.0)
        for arm, rho, evaluations, errors in arms
        for seed, error in enumerate(errors)
    ]
    return replace(COMPARISON, results=results)


BASE = ("base", "0", 100, [30.0, 31.0, 32.0])
TWICE = ("base_2x", "0", 200, [20.0, 22.0, 24.0])


def test_a_row_is_an_arm_with_sam_minus_base_at_twice_the_epochs() -> None:
    """By hand: differences by seed of -1, -1, -4 have mean -2 and standard error 1."""
    sam = ("sam", "0.1", 200, [19.0, 21.0, 20.0])
    late = ("late", "0.05", 120, [21.0, 23.0])
    rows = rows_of(made(BASE, TWICE, sam, ("mixup", "0", 100, [1.0, 1.0, 1.0]), late))
    assert [(row.arm, row.share, row.is_equal_cost) for row in rows] == [
        ("sam", 1.0, True),
        ("late", 0.6, False),
    ]
    assert rows[0].difference.mean == -2.0
    assert rows[0].difference.half_width == pytest.approx(4.302653, rel=1e-6)
    assert rows[1].difference == Interval(1.0, 0.0, 2)


def test_zero_is_zero_however_it_is_written_and_dearer_is_not_equal() -> None:
    plain, dear = ("plain", "0.0", 200, [1.0, 1.0, 1.0]), ("dear", "0.1", 400, [1.0, 1.0, 1.0])
    rows = rows_of(made(BASE, TWICE, plain, dear))
    assert [(row.arm, row.is_equal_cost) for row in rows] == [("dear", False)]


def test_nothing_is_compared_without_the_baseline() -> None:
    assert rows_of(made(BASE, ("sam", "0.1", 200, [1.0, 2.0]))) == []
    assert rows_of(made(BASE, TWICE)) == []


@pytest.mark.parametrize(
    ("difference", "colour"),
    [
        (Interval(-2.0, 1.9, 3), LESS),
        (Interval(2.0, 1.9, 3), MORE),
        (Interval(-2.0, 2.0, 3), UNCLEAR),
        (Interval(-9.0, float("nan"), 1), UNCLEAR),
    ],
)
def test_colour_says_what_is_beyond_the_interval(difference: Interval, colour: str) -> None:
    assert Row("sam", difference, 1.0).colour == colour


def test_summary_counts() -> None:
    less, more, unclear = (Interval(mean, 1.0, 3) for mean in (-2.0, 2.0, 0.5))
    rows = {
        "a": [Row("sam", less, 1.0), Row("late", unclear, 0.6)],
        "b": [Row("sam", more, 1.0), Row("gsam", unclear, 1.0)],
    }
    assert summary(rows) == (
        "3 rows of 2 comparisons are at equal gradient evaluations: 1 err less than the base "
        "optimizer beyond the interval, 1 err more, and 1 are not settled. 1 rows, the hollow "
        "ones, make fewer: 0 err less than the base optimizer beyond the interval, 0 err more, and "
        "1 are not settled."
    )


def test_picture_has_a_line_for_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = all_rows(list(CARDS.glob("*.json")))
    names = [row.arm for of_one in rows.values() for row in of_one]
    assert names.count("sam") == len(rows) and "base" not in names
    plot_overview(rows, tmp_path / "all.png")
    assert (tmp_path / "all.png").stat().st_size > 20_000
    again = tmp_path / "again.png"
    overview.main([*map(str, CARDS.glob("*.json")), "--out", str(again)])
    assert again.read_bytes() == (tmp_path / "all.png").read_bytes()


def test_damage_and_nothing_to_show_are_said(tmp_path: Path) -> None:
    shutil.copy(CARDS / "cifar10-no_norm.json", tmp_path / "x.json")
    words = [str(tmp_path / "x.json"), "--out", str(tmp_path / "x.png")]
    with pytest.raises(SystemExit, match=r"overview\.py: none of 1 files has an arm with SAM"):
        overview.main(words)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(SystemExit, match=r"overview\.py: .*x\.json' is no whole JSON"):
        overview.main(words)
