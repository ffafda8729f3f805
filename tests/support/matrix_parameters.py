"""The cases of `matrix.py` as parameters of a test."""

import pytest
from matrix_cases import CASES


def of_ranks(count: int) -> pytest.MarkDecorator:
    slow = (pytest.mark.slow,)
    return pytest.mark.parametrize(
        "case",
        [pytest.param(c, marks=slow if c.slow else ()) for c in CASES if c.ranks == count],
        ids=str,
    )
