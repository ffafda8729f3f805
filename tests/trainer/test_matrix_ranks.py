"""Every combination of `matrix.py` on several ranks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest
import ranks
from matrix import Outcome
from matrix_case import Case
from matrix_parameters import of_ranks

Reports = Callable[[Case], list[dict]]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reports]:
    """What each rank reports of a case: a launch for each number of ranks runs all."""
    with ExitStack() as running:

        @cache
        def launch(count: int, which: str) -> ranks.Launch:
            words = count, "matrix", tmp_path_factory.mktemp("ranks"), str(count), which
            return running.enter_context(ranks.launched(*words))

        yield lambda case: launch(case.ranks, "slow" if case.slow else "quick")[str(case)]


@of_ranks(2)
def test_two_ranks(case: Case, reports: Reports) -> None:
    for report in reports(case):
        assert Outcome(**report).is_right(case), report


@of_ranks(3)
def test_three_ranks(case: Case, reports: Reports) -> None:
    for report in reports(case):
        assert Outcome(**report).is_right(case), report
