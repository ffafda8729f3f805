"""One combination of what SAM meets in a Trainer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback

FLOAT64 = 1e-9  # sums in another order, over at most 10 steps
FLOAT32 = 1e-5  # the same where a part of the model or of the loss computes in float32
BFLOAT16 = 2e-2  # a different rounding of one sum is 2^-8 of a gradient or of a weight


@dataclass(frozen=True, eq=False)
class Case:
    """One combination. `settings` hold for the reference too, `sam` for SAMTrainer alone."""

    table: str
    line: str
    scope: str
    ranks: int = 1
    accumulation: int = 2
    batch: int = 4  # examples of one micro-batch
    model: str = "mlp"
    data: str = ""  # the model's own unless named
    settings: Mapping[str, Any] = field(default_factory=dict)
    sam: Mapping[str, Any] = field(default_factory=dict)
    meaning: Mapping[str, Any] = field(default_factory=dict)  # of `sam` to the reference
    ddp: Mapping[str, Any] = field(default_factory=dict)  # of the accelerator's ddp_handler
    callback: type[TrainerCallback] | None = None
    tolerance: float = FLOAT64
    refused: str = ""  # part of the message, where it must be refused
    slow: bool = False
    optional: bool = False  # the plain Trainer may be unable to: a package, a GPU, an old torch
    scaler: bool = False  # fp16's gradient scaler, here on the CPU
    fsdp: bool = False
    deepspeed: Mapping[str, Any] | None = None  # the configuration of its engine
    kind: str = "Trainer"  # what SAM is mixed into, by name in TRAINERS

    @property
    def split(self) -> str:
        """Ranks x micro-batches x examples."""
        return f"{self.ranks} x {self.accumulation} x {self.batch}"

    def __str__(self) -> str:
        return f"{self.table}: {self.line}: {self.scope}, {self.split}"
