"""SAM's settings: the fields of the training arguments, their help and their validation."""

import copy
import math
from dataclasses import dataclass, field
from typing import Any, Self

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from .ascent.methods import METHODS, Method, method_of
from .ascent.perturbation import require_valid_ascent
from .ascent.schedule import RHO_SCHEDULES
from .ascent.selection import share_of_blocks
from .average_rule import rule_of

ASCENT_SCOPES = ("micro_batch", "rank", "global")
NUMBERS = ("rho", "eta", "perturbation_norm", "ascent_start", "ascent_fraction", "max_overhead")


@dataclass
class SAMArguments:
    """SAM's settings, to be combined with the training arguments of any Trainer.

    `@dataclass class MyConfig(SAMArguments, MyTrainingArguments)` is all it takes. Each field is
    documented by its `metadata["help"]`.

    Raises:
        ValueError: If a field is invalid, or has no effect with the other settings.
    """

    rho: float = field(
        default=0.05,
        metadata={
            "help": "Radius in parameter space within which SAM minimises the worst-case loss. "
            "0 trains exactly as the plain Trainer does."
        },
    )
    adaptive: bool = field(
        default=False,
        metadata={
            "help": "Scale the perturbation by the size of the weights (ASAM). ASAM takes a rho "
            "about ten times larger than SAM's."
        },
    )
    eta: float = field(
        default=0.01,
        metadata={"help": "Constant that ASAM adds to |w|, so that weights of 0 are moved too."},
    )
    perturbation_norm: float = field(
        default=2.0,
        metadata={
            "help": "Order p of the norm that rho bounds: any p > 1, or inf. 2 is the L2 norm."
        },
    )
    ascent_scope: str | None = field(
        default=None,
        metadata={
            "help": "Which examples share one perturbation (m of m-sharpness): micro_batch (one "
            "device's micro-batch, as in the paper), rank (all micro-batches of one device in an "
            "optimizer step) or global (the effective batch of all devices, which costs one more "
            "gradient reduction a step). Unset means micro_batch, but global under FSDP2 and "
            "DeepSpeed, and for methods that use the gradient of the effective batch."
        },
    )
    ascent_interval: int = field(
        default=1,
        metadata={
            "help": "Perturb the weights at every k-th optimizer step only; the steps between are "
            "the base optimizer's. Costs 1 + 1/k forward-backward passes a step instead of 2."
        },
    )
    ascent_start: float = field(
        default=0.0,
        metadata={
            "help": "When SAM begins: a value below 1 is a fraction of the run's optimizer steps, "
            "a value from 1 on a number of steps, as for `warmup_steps`. Earlier steps are the "
            "base optimizer's."
        },
    )
    rho_schedule: str = field(
        default="constant",
        metadata={
            "help": "How rho changes during the run: constant, linear or cosine. The last two fall "
            "from rho to 0; SAM then begins when the learning rate's warm-up has ended."
        },
    )
    ascent_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Fraction f of each micro-batch that the clean pass uses: the first examples "
            "that have labels, rounded up to whole ones, at least two if the model has BatchNorm. "
            "Costs 1 + f passes a step. The second pass, running statistics and counters use the "
            "whole micro-batch; `loss` is then that of the fraction, none of SAM's log entries is "
            "written, and dropout draws other masks in the second pass."
        },
    )
    perturb: str = field(
        default="all",
        metadata={
            "help": "Which trainable parameters are perturbed: all; norm, those of normalisation "
            "layers only (SAM-ON, with a rho about ten times larger); last:0.33, the last third of "
            "the blocks and what comes after them; or names of modules, separated by commas. All "
            "parameters are trained; the clean pass computes gradients of the perturbed ones only."
        },
    )
    method: str = field(
        default="sam",
        metadata={
            "help": "Which method of the SAM family to use: sam, looksam, msam, s2sam, rst, "
            "friendly_sam, vasso, gsam, wsam or le_sam. docs/methods.md compares them."
        },
    )
    method_args: str | None = field(
        default=None,
        metadata={
            "help": "Arguments of the method, written as for `optim_args`: name=number,name=number."
        },
    )
    max_overhead: float | None = field(
        default=None,
        metadata={
            "help": "Limit of a run's cost, relative to the base optimizer's: at 1.25 the clean "
            "pass uses a quarter of each micro-batch, if that is two examples or more. Chooses "
            "`ascent_fraction` and `ascent_interval`, and logs them; `train()` returns the "
            "measured cost as `train_overhead`."
        },
    )
    replay_rng: bool = field(
        default=True,
        metadata={
            "help": "Draw the same dropout and drop-path masks in both passes, as the paper's "
            "code does. Without effect if `ascent_fraction` is below 1."
        },
    )
    weight_average: str | None = field(
        default=None,
        metadata={
            "help": "Average of the trained weights and of BatchNorm's statistics that is "
            "evaluated and saved in their place: ema:0.99 (each step adds 0.01 of the weights to "
            "0.99 of the average) or swa:0.75 (the mean over the last quarter of the steps), also "
            "without SAM (`rho=0`). Costs no pass, and a float32 copy of the trained weights."
        },
    )
    allow_rounded_perturbation: bool = field(
        default=False,
        metadata={
            "help": "Continue even if rounding to the weights' dtype more than halves or doubles "
            "the perturbation or turns it by more than 60 degrees, as for weights in bfloat16."
        },
    )

    def __post_init__(self) -> None:
        """Check SAM's fields, then let the Trainer's arguments check theirs."""
        self.require_valid_fields()
        numbers = {name: getattr(self, name) for name in NUMBERS if getattr(self, name) is not None}
        vars(self).update({n: float(x) for n, x in numbers.items()})  # a search casts to old types
        if self.rho > 0 and self.eta != SAMArguments.eta and not self.adaptive:
            raise ValueError(
                f"`eta` has an effect only with `adaptive=True`, got eta={self.eta}: set both."
            )
        if isinstance(self, TrainingArguments):
            super().__post_init__()  # type: ignore[misc] # of the other base class

    def __getstate__(self) -> dict[str, Any]:
        """Leave out `hub_token`: checkpoints contain the pickled arguments, and may be pushed."""
        return {name: value for name, value in self.__dict__.items() if name != "hub_token"}

    def __copy__(self) -> Self:
        """Copy all fields, `hub_token` too."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy all fields and what they hold."""
        memo[id(self)] = copied = copy.copy(self)
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    def require_valid_fields(self) -> None:
        """Raise a ValueError for the first invalid field.

        Called by the constructor, and again when training starts, as a hyperparameter search sets
        fields in between.

        Raises:
            ValueError: With rule, value and remedy.
        """
        for name in NUMBERS:
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number or (name == "max_overhead" and value is None)):
                raise ValueError(f"`{name}` must be a number, got {value!r}: write it as a float.")
        for name in ("adaptive", "replay_rng", "allow_rounded_perturbation"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(
                    f"`{name}` must be True or False, got {value!r}: write it without quotes."
                )
        require_valid_ascent(rho=self.rho, eta=self.eta, perturbation_norm=self.perturbation_norm)
        if self.ascent_scope not in (None, *ASCENT_SCOPES):
            raise ValueError(
                f"`ascent_scope` must be one of {', '.join(ASCENT_SCOPES)}, "
                f"got {self.ascent_scope!r}: leave it out for the paper's micro_batch."
            )
        if self.weight_average is not None:
            rule_of(self.weight_average)
        self._require_valid_schedule()
        self._require_valid_method()

    def _require_valid_schedule(self) -> None:
        interval, start = self.ascent_interval, self.ascent_start
        if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
            raise ValueError(
                f"`ascent_interval` must be a whole number >= 1, got {interval!r}: 1 is every step."
            )
        if not (math.isfinite(start) and start >= 0):
            raise ValueError(f"`ascent_start` must be >= 0, got {start!r}: 0 is from the start.")
        if start > 1 and start != int(start):
            raise ValueError(
                f"`ascent_start` must be a share below 1 or whole steps, got {start}: round it."
            )
        if self.rho_schedule not in RHO_SCHEDULES:
            raise ValueError(
                f"`rho_schedule` must be one of {', '.join(RHO_SCHEDULES)}, got "
                f"{self.rho_schedule!r}: leave it out for a constant rho."
            )
        if not isinstance(self.perturb, str) or not self.perturb:
            raise ValueError(
                "`perturb` must be all, norm, last:share or names of modules, got "
                f"{self.perturb!r}: leave it out to perturb all."
            )
        share_of_blocks(self.perturb)

    def _require_valid_method(self) -> None:
        if self.rho == 0 and isinstance(self.method, str) and self.method in METHODS:
            return  # it has no effect, and arms of a comparison without SAM share the options
        method, fraction, limit = self.chosen_method, self.ascent_fraction, self.max_overhead
        if not 0 < fraction <= 1:
            raise ValueError(
                f"`ascent_fraction` must be above 0 and at most 1, got {fraction!r}: 1 is the "
                "whole micro-batch."
            )
        if fraction < 1 and not method.has_clean_pass:
            raise ValueError(
                f"`ascent_fraction` has no effect on {self.method}, which makes no clean pass, got "
                f"{fraction}: leave it out."
            )
        if fraction < 1 and method.keeps_clean_grad:
            raise ValueError(
                f"`ascent_fraction` must be 1 for {self.method}, which combines the gradients of "
                f"both passes, got {fraction}: leave it out."
            )
        if not self.replay_rng and not method.has_clean_pass:
            raise ValueError(
                f"`replay_rng` has no effect on {self.method}, which makes one pass, got False: "
                "leave it out."
            )
        if not self.replay_rng and fraction < 1:
            raise ValueError(
                "`replay_rng` has no effect beside `ascent_fraction`, whose passes draw different "
                "masks, got False: leave it out."
            )
        if method.is_euclidean and (self.adaptive or self.perturbation_norm != 2):
            raise ValueError(
                f"{self.method} must be used with the L2 norm, got adaptive={self.adaptive} and "
                f"perturbation_norm={self.perturbation_norm}: leave them out."
            )
        if limit is None:
            return
        if not limit > 1:
            raise ValueError(
                f"`max_overhead` must be above 1, got {limit!r}: 1.2 allows a fifth more than the "
                "base optimizer's run, 2 is SAM at every step."
            )
        for name in ("ascent_interval", "ascent_start", "ascent_fraction", "method"):
            if getattr(self, name) != getattr(SAMArguments, name):
                raise ValueError(
                    f"`max_overhead` chooses when and on how much to ascend, got {name}="
                    f"{getattr(self, name)} beside it: leave one of them out."
                )

    @property
    def chosen_method(self) -> Method:
        """`method` with its arguments.

        Raises:
            ValueError: If a name is unknown or a value out of its range; lists the valid ones.
        """
        return method_of(self.method, self.method_args)


@dataclass
class SAMConfig(SAMArguments, TrainingArguments):
    """`TrainingArguments` with SAM's fields: what `SAMTrainer` takes as `args`."""


@dataclass
class SAMSeq2SeqConfig(SAMArguments, Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with SAM's fields: what `SAMSeq2SeqTrainer` takes as `args`."""
