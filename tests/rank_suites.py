"""What the ranks of one launch check, by the name of the launch."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matrix
import matrix_cases
import scenarios
import torch
from naive import NaiveSAMTrainer

from hf_sam.config import ASCENT_SCOPES

Checks = Iterator[tuple[str, Callable[[], Any]]]
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD with momentum": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "AdamW": {"optim": "adamw_torch", "learning_rate": 0.01},
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
COMMUNICATION: dict[str, dict[str, Any]] = {
    "plain": scenarios.PLAIN,
    **{scope: {"ascent_scope": scope} for scope in ASCENT_SCOPES},
    "naive": {"trainer": NaiveSAMTrainer},
}


def matrix_checks(folder: Path, ranks: str) -> Checks:
    for case in matrix_cases.CASES:
        if case.ranks == int(ranks):
            yield str(case), lambda case=case: asdict(matrix.run(case, folder / "out"))


def behaviour_checks(folder: Path) -> Checks:
    run = folder / "run"
    yield "rho zero", lambda: scenarios.differences_at_rho_zero(run)
    for scope in ASCENT_SCOPES:
        yield f"unseen, {scope}", lambda s=scope: scenarios.events_that_saw_other_weights(s, run)
        yield f"resume, {scope}", lambda s=scope: scenarios.resumed_differs(s, run)
    for name in ("mlp", "dropout", "sometimes_used"):
        for scope in ("micro_batch", "rank"):
            yield (
                f"equations, {name}, {scope}",
                lambda n=name, s=scope: scenarios.error_to_the_equations(n, s, 2),
            )
    for name in ("mlp", "tied", "frozen"):
        for optimizer, settings in OPTIMIZERS.items():
            for dtype in DTYPES:
                for count, split in ((48, (1, 8)), (48, (2, 4)), (40, (2, 4))):
                    yield (
                        f"{name}, {optimizer}, {dtype}, {count}, {split}",
                        lambda n=name, o=settings, d=dtype, c=count, s=split: (
                            scenarios.global_weights(n, o, DTYPES[d], c, s)
                        ),
                    )
    for model in ("mlp", "batch_norm"):
        for accumulation in (1, 3):
            for kind, settings in COMMUNICATION.items():
                yield (
                    f"bytes, {model}, {accumulation}, {kind}",
                    lambda m=model, a=accumulation, k=settings: scenarios.moved_bytes(m, a, k),
                )


def killed_checks(folder: Path) -> Checks:
    """The second rank dies in a forward pass, and torchrun ends the first."""
    forward = 23 if os.environ["RANK"] == "1" else -1
    yield "killed", lambda: scenarios.train_until_killed("rank", folder / "run", forward)


def revived_checks(folder: Path, killed: str) -> Checks:
    yield "resumed", lambda: scenarios.killed_and_resumed_differs("rank", Path(killed))


SUITES: dict[str, Callable[..., Checks]] = {
    "matrix": matrix_checks,
    "behaviour": behaviour_checks,
    "killed": killed_checks,
    "revived": revived_checks,
}
