"""What the ranks of one launch check, by the name of the launch."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import deepspeed_faults
import deepspeed_suite
import matrix
import matrix_cases
import overflows
import scenarios
import sharded
import torch
import whole_backward
from cases import OPTIMIZERS
from naive import NaiveSAMTrainer

from hf_sam.config import ASCENT_SCOPES

Checks = Iterator[tuple[str, Callable[[], Any]]]
DTYPES = {"float64": torch.float64, "float32": torch.float32}
COMMUNICATION: dict[str, dict[str, Any]] = {
    "plain": scenarios.PLAIN,
    **{scope: {"ascent_scope": scope} for scope in ASCENT_SCOPES},
    "naive": {"trainer": NaiveSAMTrainer},
}


def matrix_checks(folder: Path, ranks: str, which: str = "all") -> Checks:
    """The cases of so many ranks, or the slow or the quick ones of them."""
    slow = {"all": (True, False), "slow": (True,), "quick": (False,)}[which]
    for case in matrix_cases.CASES:
        if case.ranks == int(ranks) and case.slow in slow:
            yield str(case), lambda case=case: asdict(matrix.run(case, folder / "out"))


def behaviour_checks(folder: Path) -> Checks:
    yield "rho zero", lambda: scenarios.differences_at_rho_zero(folder / "zero")
    for scope in ASCENT_SCOPES:
        yield (
            f"unseen, {scope}",
            lambda s=scope: scenarios.events_that_saw_other_weights(s, folder / f"unseen-{s}"),
        )
        yield (
            f"resume, {scope}",
            lambda s=scope: scenarios.resumed_differs(s, folder / f"resume-{s}"),
        )
    for scope in ASCENT_SCOPES:
        for calls in ((1,), (2,)):
            yield (
                f"overflow in pass {calls[0]}, {scope}",
                lambda s=scope, c=calls: overflows.overflow_on_last_rank(s, folder / "inf", c),
            )
    for scope in ASCENT_SCOPES:
        yield (
            f"whole, {scope}",
            lambda s=scope: whole_backward.differences_under_ddp(folder / "whole", s),
        )
    yield "saved by one", lambda: scenarios.average_saved_by_rank_zero(folder / "saved")
    yield "unused", lambda: whole_backward.loss_with_unused_parameters(folder / "unused")
    for name in ("mlp", "dropout", "sometimes_used", "routed"):
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


def sharded_checks(folder: Path) -> Checks:
    """FSDP2 as accelerate sets it up."""
    with sharded.fsdp2_on_cpu():
        for optimizer, settings in OPTIMIZERS.items():
            for clip in (0.0, 0.1):
                for accumulation, batch in ((1, 8), (2, 4)):
                    changes = {
                        "max_steps": 10,
                        "max_grad_norm": clip,
                        "gradient_accumulation_steps": accumulation,
                        "per_device_train_batch_size": batch,
                        "learning_rate": 0.1,
                        **settings,
                    }
                    yield (
                        f"{optimizer}, clip {clip}, 2 x {accumulation} x {batch}",
                        lambda c=changes: sharded.weights_after(folder / "run", **c),
                    )
        for name, sam in sharded.PERTURBATIONS.items():
            yield name, lambda s=sam: sharded.odd_weights_after(folder / "run", **s)
        yield "resume", lambda: sharded.resumed_differs(folder / "resumed")
        for call in range(9, 13):
            yield f"fault {call}", lambda c=call: sharded.left_by_exception(folder / "run", c)
        yield "moved", lambda: sharded.events_at_which_shards_moved(folder / "run")
        for scope in ASCENT_SCOPES:
            yield scope, lambda s=scope: sharded.refusal(folder / "run", ascent_scope=s)
        yield "whole", lambda: whole_backward.differences_under_fsdp2(folder / "run")
        yield "reduced", lambda: whole_backward.reduced_bytes(folder / "run")
        yield "late", lambda: sharded.refusal(folder / "run", trainer=sharded.Late)
        yield "kept", lambda: sharded.refusal(folder / "run", keeps_gathered=True)


def loaded_checks(folder: Path, model: str, plan: str) -> Checks:
    """A model that transformers shards while it loads."""
    for accumulation, batch in ((1, 4), (2, 2)):
        yield (
            f"{accumulation} x {batch}",
            lambda a=accumulation, b=batch: sharded.loaded_weights(
                folder / "run", model, json.loads(plan), a, b
            ),
        )


SUITES: dict[str, Callable[..., Checks]] = {
    "matrix": matrix_checks,
    "behaviour": behaviour_checks,
    "killed": killed_checks,
    "revived": revived_checks,
    "sharded": sharded_checks,
    "loaded": loaded_checks,
    "deepspeed": deepspeed_suite.checks,
    "deepspeed killed": deepspeed_faults.killed,
    "deepspeed revived": deepspeed_faults.revived,
}
