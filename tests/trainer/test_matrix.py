"""Every combination of `matrix.py` is right, or refused where it must be."""

from pathlib import Path

import matrix
import pytest
import ranks
from matrix import Outcome
from matrix_case import Case
from matrix_cases import CASES

Results = dict[str, list[dict]]


def of_ranks(count: int) -> pytest.MarkDecorator:
    slow = (pytest.mark.slow,)
    return pytest.mark.parametrize(
        "case",
        [pytest.param(c, marks=slow if c.slow else ()) for c in CASES if c.ranks == count],
        ids=str,
    )


@of_ranks(1)
def test_one_process(case: Case, tmp_path: Path) -> None:
    outcome = matrix.run(case, tmp_path)
    assert outcome.is_right(case), outcome


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return ranks.launch(2, "matrix", tmp_path_factory.mktemp("two"), "2")


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return ranks.launch(3, "matrix", tmp_path_factory.mktemp("three"), "3")


@of_ranks(2)
def test_two_ranks(case: Case, two_ranks: Results) -> None:
    for report in two_ranks[str(case)]:
        assert Outcome(**report).is_right(case), report


@of_ranks(3)
def test_three_ranks(case: Case, three_ranks: Results) -> None:
    for report in three_ranks[str(case)]:
        assert Outcome(**report).is_right(case), report


@pytest.mark.parametrize(("scope", "other"), [("micro_batch", "rank"), ("rank", "micro_batch")])
def test_another_scope_is_another_trajectory(scope: str, other: str, tmp_path: Path) -> None:
    """The comparison can fail: with the perturbation of another scope it does."""
    case = Case("", "", scope)
    assert matrix.largest_error(case, tmp_path, reference_scope=other) > 1e-4
