"""Two real processes under DDP do what one does, and move no more bytes than they must."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import ranks
import scenarios
import torch
from cases import OPTIMIZERS
from rank_suites import DTYPES

from hf_sam.config import ASCENT_SCOPES

Reports = Mapping[str, list]
SCOPES = pytest.mark.parametrize("scope", ASCENT_SCOPES)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reports]:
    with ranks.launched(2, "behaviour", tmp_path_factory.mktemp("behaviour")) as reports:
        yield reports


def test_rho_zero_is_the_plain_trainer(reports: Reports) -> None:
    """Callbacks in the same order with the same arguments, logs, checkpoints file by file."""
    assert reports["rho zero"] == [[], []]


@SCOPES
def test_nobody_sees_perturbed_weights(scope: str, reports: Reports) -> None:
    assert reports[f"unseen, {scope}"] == [[], []]


def skip_if_nobody_resumes(report: list) -> None:
    if "don't know how to restore data location" in str(report):
        pytest.skip("transformers 5.17 resumes no Trainer on several CPU processes")


@SCOPES
def test_resumed_is_bit_for_bit(scope: str, reports: Reports) -> None:
    skip_if_nobody_resumes(reports[f"resume, {scope}"])
    assert reports[f"resume, {scope}"] == [[], []]


@SCOPES
@pytest.mark.parametrize("first", [1, 2], ids=["clean pass", "perturbed pass"])
def test_an_overflow_on_one_rank_skips_the_step_on_all(
    first: int, scope: str, reports: Reports
) -> None:
    assert reports[f"overflow in pass {first}, {scope}"] == [[], []]


@SCOPES
def test_clean_passes_leave_out_what_ddp_does_not_wait_for(scope: str, reports: Reports) -> None:
    expected = ["as many operations"] if scope == "global" else []  # whose buckets must be full
    assert reports[f"whole, {scope}"] == [expected, expected]


def test_what_only_some_micro_batches_use_may_stay_where_it_is(reports: Reports) -> None:
    assert all(0.5 < loss < 2.0 for loss in reports["unused"])


def test_one_rank_may_save_the_average(reports: Reports) -> None:
    assert reports["saved by one"] == [0.0, 0.0]


@pytest.mark.parametrize("scope", ["micro_batch", "rank"])
@pytest.mark.parametrize("name", ["mlp", "dropout", "sometimes_used", "routed"])
def test_ranks_average_the_equations(name: str, scope: str, reports: Reports) -> None:
    # the order of float64 sums differs
    assert max(reports[f"equations, {name}, {scope}"]) < 1e-12


@pytest.mark.parametrize("count", [48, 40], ids=["full windows", "a short last window"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "tied", "frozen"])
def test_global_scope_is_one_trajectory(
    name: str, optimizer: str, dtype: str, count: int, reports: Reports
) -> None:
    """1 x 16 = 2 x 8 = 4 x 4 micro-batches = 2 ranks x 8 = 2 ranks x 2 x 4.

    (40 examples are 5 batches of 8: for two ranks accelerate repeats one, in any Trainer.)
    """
    one = [
        scenarios.global_weights(name, OPTIMIZERS[optimizer], DTYPES[dtype], count, split)
        for split in ((1, 16), (2, 8), (4, 4))
    ]
    splits = {48: [(1, 8), (2, 4)], 40: [(2, 4)]}[count]
    two = [
        weights
        for split in splits
        for weights in reports[f"{name}, {optimizer}, {dtype}, {count}, {split}"]
    ]
    weights = torch.tensor([*one, *two], dtype=torch.float64)
    assert len(weights) == 3 + 2 * len(splits)
    # rounding, which AdamW's division scales up
    tolerance = {"float64": 1e-9, "float32": 1e-5}[dtype] * weights.abs().max()
    assert (weights - weights[0]).abs().max() < tolerance


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("model", ["mlp", "batch_norm"])
def test_communication_is_the_plain_trainers(
    model: str, accumulation: int, reports: Reports
) -> None:
    """Global scope adds one reduction of the gradients, and nothing else."""
    for rank in (0, 1):
        kinds = ("plain", "micro_batch", "rank", "global", "naive")
        moved = {k: reports[f"bytes, {model}, {accumulation}, {k}"][rank] for k in kinds}
        parameters = sum(p.numel() for p in scenarios.build(model).parameters())
        assert moved["plain"]["allreduce_"] >= 6 * 8 * parameters  # six steps in float64
        assert moved["micro_batch"] == moved["rank"] == moved["plain"]
        twice = {**moved["plain"], "allreduce_": 2 * moved["plain"]["allreduce_"]}
        assert moved["global"] == twice
        assert moved["naive"]["allreduce_"] > moved["plain"]["allreduce_"]


def test_killed_and_resumed_is_bit_for_bit(tmp_path: Path) -> None:
    killed, revived = tmp_path / "killed", tmp_path / "revived"
    killed.mkdir(), revived.mkdir()
    with pytest.raises(RuntimeError, match="SIGKILL|Signal 9"):
        ranks.launch(2, "killed", killed)
    reports = ranks.launch(2, "revived", revived, str(killed / "run"))
    skip_if_nobody_resumes(reports["resumed"])
    assert reports["resumed"] == [[], []]
