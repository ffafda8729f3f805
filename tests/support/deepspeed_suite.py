"""All whole trainings under ZeRO, each on every stage that it is about."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deepspeed_checkpointing import KINDS, checkpointed_differs
from deepspeed_cpu import config
from deepspeed_faults import left_by_exception, left_by_overflow
from deepspeed_memory import ZERO, extra_memory
from deepspeed_runs import (
    AUTOCAST,
    STAGES,
    best_model_differs,
    checkpoint_differs,
    evaluated_differs,
    fp32_of_checkpoint_differs,
    moved_bytes,
    own_optimizer_differs,
    refusal,
    resumed_differs,
    rho_zero_differs,
    rounding,
    under_deepspeed,
)


def checks(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """All of them, each on every stage that it is about."""
    for some in (_checks, _checks_of_memory, _checks_of_checkpointing):
        for name, check in some(folder):
            yield name, lambda c=check: under_deepspeed(c)


def _checks(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    for stage in STAGES:
        engine, out = config(stage), folder / f"stage{stage}"
        for check in (
            rho_zero_differs,
            resumed_differs,
            checkpoint_differs,
            fp32_of_checkpoint_differs,
            evaluated_differs,
            best_model_differs,
        ):
            yield (
                f"{check.__name__}, {stage}",
                lambda c=check, o=out / check.__name__, e=engine: c(o, e),
            )
        yield (
            f"own_optimizer_differs, {stage}",
            lambda s=stage: own_optimizer_differs(folder / "own", s),
        )
        for call in (9, 10, 11, 12):
            yield (
                f"fault {call}, {stage}",
                lambda c=call, e=engine: left_by_exception(
                    folder / "fault", e, c, "forward", RuntimeError
                ),
            )
        yield (
            f"Ctrl-C, {stage}",
            lambda e=engine: left_by_exception(
                folder / "fault", e, 12, "forward", KeyboardInterrupt
            ),
        )
        yield (
            f"fault in backward, {stage}",
            lambda e=engine: left_by_exception(folder / "fault", e, 11, "backward", RuntimeError),
        )
        for call in (1, 2):
            yield (
                f"overflow {call}, {stage}",
                lambda s=stage, c=call: left_by_overflow(folder / "fp16", s, c),
            )
        bf16 = config(stage, bf16={"enabled": True})
        for rho in (0.001, 0.005, 0.5):
            yield (
                f"bf16, rho {rho}, {stage}",
                lambda e=bf16, r=rho: rounding(folder / "bf16", e, bf16=True, rho=r),
            )
        autocast = config(stage, torch_autocast=AUTOCAST)
        yield f"autocast, {stage}", lambda e=autocast: rounding(folder / "autocast", e)
        for rho in (0.0, 0.5):
            yield (
                f"bytes, rho {rho}, {stage}",
                lambda e=engine, r=rho: moved_bytes(folder / "bytes", e, r),
            )
    hpz = config(3, zero={"zero_hpz_partition_size": 2})
    yield "refused: hpZ", lambda: refusal(folder / "refused", hpz)
    average = {"weight_average": "ema:0.9"}
    yield "refused: average", lambda: refusal(folder / "refused", config(2), **average)
    bf16 = config(0, bf16={"enabled": True})
    yield "refused: stage 0 in bf16", lambda: refusal(folder / "refused", bf16, bf16=True)


def _checks_of_memory(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    bf16 = {"bf16": True, "allow_rounded_perturbation": True}
    for stage in STAGES:
        for name, changes, settings in (
            ("float32", {}, {}),
            ("bf16", {"bf16": {"enabled": True}}, bf16),
            ("gsam", {}, {"method": "gsam"}),
        ):
            if name != "gsam" or stage == 2:
                engine = config(stage, zero=ZERO, **changes)
                yield (
                    f"memory, {name}, {stage}",
                    lambda e=engine, s=settings: extra_memory(folder / "memory", e, **s),
                )


def _checks_of_checkpointing(folder: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    for stage in (2, 3):
        engine = config(stage)
        for kind in KINDS:
            yield (
                f"checkpointed {kind}, {stage}",
                lambda e=engine, k=kind: checkpointed_differs(folder / "ck", e, k),
            )
