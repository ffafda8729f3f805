"""Every combination of `matrix.py` is right, or refused where it must be."""

from pathlib import Path

import matrix
import pytest
from matrix_case import Case
from matrix_parameters import of_ranks


@of_ranks(1)
def test_one_process(case: Case, tmp_path: Path) -> None:
    outcome = matrix.run(case, tmp_path)
    assert outcome.is_right(case), outcome


@pytest.mark.parametrize(("scope", "other"), [("micro_batch", "rank"), ("rank", "micro_batch")])
def test_another_scope_is_another_trajectory(scope: str, other: str, tmp_path: Path) -> None:
    """The comparison can fail: with the perturbation of another scope it does."""
    case = Case("", "", scope)
    assert matrix.largest_error(case, tmp_path, reference_scope=other) > 1e-4
