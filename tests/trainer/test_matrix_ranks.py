"""Every combination of `matrix.py` on several ranks, some of them a launch."""

from collections.abc import Callable
from functools import cache

import pytest
import ranks
from matrix import Outcome
from matrix_case import Case
from matrix_cases import CASES
from matrix_parameters import of_ranks

Reports = Callable[[Case], list[dict]]
PARTS = {2: 6, 3: 1}  # launches, each of every sixth case: the first test of each waits for it


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """What each rank reports of a case."""

    @cache
    def launched(count: int, part: int, which: str) -> dict[str, list[dict]]:
        words = (str(count), str(part), str(PARTS[count]), which)
        return ranks.launch(count, "matrix", tmp_path_factory.mktemp("ranks"), *words)

    def of_case(case: Case) -> list[dict]:
        alike = [c for c in CASES if c.ranks == case.ranks and c.slow == case.slow]
        part = alike.index(case) % PARTS[case.ranks]
        return launched(case.ranks, part, "slow" if case.slow else "quick")[str(case)]

    return of_case


@of_ranks(2)
def test_two_ranks(case: Case, reports: Reports) -> None:
    for report in reports(case):
        assert Outcome(**report).is_right(case), report


@of_ranks(3)
def test_three_ranks(case: Case, reports: Reports) -> None:
    for report in reports(case):
        assert Outcome(**report).is_right(case), report
