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
    def launched(count: int, part: int) -> dict[str, list[dict]]:
        folder = tmp_path_factory.mktemp("ranks")
        return ranks.launch(count, "matrix", folder, str(count), str(part), str(PARTS[count]))

    def of_case(case: Case) -> list[dict]:
        number = [other for other in CASES if other.ranks == case.ranks].index(case)
        return launched(case.ranks, number % PARTS[case.ranks])[str(case)]

    return of_case


@of_ranks(2)
def test_two_ranks(case: Case, reports: Reports) -> None:
    for report in reports(case):
        assert Outcome(**report).is_right(case), report


@of_ranks(3)
def test_three_ranks(case: Case, reports: Reports) -> None:
    for report in reports(case):
        assert Outcome(**report).is_right(case), report
