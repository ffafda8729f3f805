"""Methods and settings that cannot be meant, and models that change under a method."""

import re
from pathlib import Path
from typing import Any

import pytest
from cases import (
    CLASSES,
    FEATURES,
    Classifier,
    build,
    make_trainer,
)
from method_table import momentum, settings_of
from torch import nn
from transformers import TrainerCallback

from hf_sam import SAMConfig

REFUSED = [
    ({"method": "asam"}, "`method` must be one of sam, looksam, msam"),
    ({"method": "gsam", "method_args": "beta=1"}, "arguments of gsam, got 'beta': it has alpha"),
    ({"method": "msam", "method_args": "alpha=1"}, "got 'alpha': it has none, leave it out"),
    ({"method": "gsam", "method_args": "alpha"}, "must be written name=number,name=number"),
    ({"method": "gsam", "method_args": "alpha=high"}, "must be written name=number"),
    ({"method": "gsam", "method_args": "alpha=-1"}, "`alpha` of gsam must be >= 0, got -1.0"),
    ({"method": "gsam", "method_args": "alpha=inf"}, "`alpha` of gsam must be >= 0, got inf"),
    ({"method": "gsam", "method_args": "alpha=nan"}, "must be written name=number,name=number"),
    ({"method": "gsam", "method_args": "alpha=1,alpha=2"}, "each name once, got 'alpha=1,alpha"),
    ({"method": "gsam", "method_args": "alpha=1 0"}, "must be written name=number,name=number"),
    ({"method": "gsam", "method_args": 3}, "must be written name=number,name=number"),
    ({"method": ["sam"]}, "`method` must be one of sam, looksam"),
    ({"method": "vasso", "method_args": "theta=0"}, "`theta` of vasso must be above 0"),
    ({"method": "friendly_sam", "method_args": "decay=0"}, "`decay` of friendly_sam must be above"),
    (
        {"method": "wsam", "method_args": "gamma=1"},
        "`gamma` of wsam must be >= 0 and below 1, got 1.0",
    ),
    ({"method": "rst", "method_args": "p=1.5"}, "`p` of rst must be from 0 to 1, got 1.5"),
    ({"method": "le_sam"}, "`sigma` of le_sam must be above 0, got 0.0"),
    (
        {"method": "le_sam", "method_args": "sigma=1", "adaptive": True},
        "le_sam must be used with the L2 norm",
    ),
    ({"ascent_fraction": 0.0}, "`ascent_fraction` must be above 0 and at most 1, got 0.0"),
    ({"ascent_fraction": 0.5, "method": "msam"}, "`ascent_fraction` has no effect on msam"),
    ({"ascent_fraction": 0.5, "method": "gsam"}, "`ascent_fraction` must be 1 for gsam"),
    ({"ascent_fraction": True}, "`ascent_fraction` must be a number, got True"),
    ({"ascent_fraction": "0.5"}, "`ascent_fraction` must be a number, got '0.5': write it as a"),
    ({"ascent_start": True}, "`ascent_start` must be a number, got True"),
    ({"max_overhead": "1.2"}, "`max_overhead` must be a number, got '1.2'"),
    ({"rho": 0.0, "method": ["sam"]}, "`method` must be one of sam, looksam"),
    ({"replay_rng": False, "method": "s2sam"}, "`replay_rng` has no effect on s2sam"),
    ({"max_overhead": 1.0}, "`max_overhead` must be above 1, got 1.0"),
    (
        {"max_overhead": 1.2, "ascent_interval": 2},
        "and on how much to ascend, got ascent_int",
    ),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[str(s) for s, _ in REFUSED])
def test_what_cannot_be_meant_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SAMConfig(output_dir="unused", **settings)


@pytest.mark.parametrize("optim", ["sgd", "adafactor", "rmsprop"])
def test_momentum_must_be_there_to_be_read(optim: str, tmp_path: Path) -> None:
    trainer = make_trainer(build("mlp"), tmp_path, method="msam", optim=optim)
    with pytest.raises(ValueError, match="msam must (read the|find a) momentum"):
        trainer.train()


@pytest.mark.parametrize(
    "method", ["gsam", "wsam", "looksam", "friendly_sam", "vasso", "msam", "s2sam"]
)
def test_methods_of_the_whole_batch_refuse_smaller_scopes(method: str, tmp_path: Path) -> None:
    settings = {**momentum("sgd"), **settings_of(method), "ascent_scope": "micro_batch"}
    trainer = make_trainer(build("mlp"), tmp_path, gradient_accumulation_steps=2, **settings)
    with pytest.raises(ValueError, match=f"must be global for {method}"):
        trainer.train()


class Replaces(TrainerCallback):
    """Puts a norm without parameters in place of another one, in mid-training."""

    def on_step_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        if state.global_step == 3:
            model.body[1] = nn.BatchNorm1d(16, affine=False).double()


def test_a_module_that_is_replaced_is_noticed(tmp_path: Path) -> None:
    """The new module's statistics are those of one pass, as in the plain Trainer."""
    counts = []
    for rho in (0.0, 1e-9):
        norm = nn.BatchNorm1d(16, affine=False)
        model = Classifier(nn.Linear(FEATURES, 16), norm, nn.Linear(16, CLASSES))
        trainer = make_trainer(model.double(), tmp_path, rho=rho, max_steps=8)
        trainer.add_callback(Replaces())
        trainer.train()
        counts.append(int(trainer.model.body[1].num_batches_tracked))
    assert counts == [5, 5]
