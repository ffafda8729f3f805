"""Every field has its help and its rule, and a broken rule says so."""

import math
import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments

from hf_sam import SAMArguments, SAMConfig, SAMSeq2SeqConfig

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rho": -0.1}, "`rho` must be >= 0, got -0.1"),
    ({"rho": math.nan}, "`rho` must be >= 0, got nan"),
    ({"rho": "0.05"}, "`rho` must be a number, got '0.05'"),
    ({"rho": True}, "`rho` must be a number, got True"),
    ({"adaptive": True, "eta": -0.01}, "`eta` must be >= 0, got -0.01"),
    ({"eta": 0.1}, "`eta` has an effect only with `adaptive=True`, got eta=0.1"),
    ({"adaptive": "no"}, "`adaptive` must be True or False, got 'no'"),
    ({"perturbation_norm": 1}, "`perturbation_norm` must be > 1, got 1"),
    ({"perturbation_norm": -math.inf}, "`perturbation_norm` must be > 1, got -inf"),
    ({"ascent_scope": "batch"}, "`ascent_scope` must be one of micro_batch, rank, global"),
]


@pytest.mark.parametrize("arguments", [SAMArguments, SAMConfig])
@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_invalid_values_are_refused(arguments: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(**values)


def test_rho_zero_goes_with_anything() -> None:
    assert SAMConfig(rho=0, eta=0.5, ascent_scope="global").rho == 0


def test_fields_are_options_with_help() -> None:
    (args,) = HfArgumentParser(SAMConfig).parse_args_into_dataclasses(
        [
            "--rho",
            "0.2",
            "--adaptive",
            "--eta",
            "0.02",
            "--perturbation_norm",
            "inf",
            "--no_replay_rng",
            "--ascent_scope",
            "micro_batch",
            "--learning_rate",
            "0.5",
        ]
    )
    assert (args.rho, args.adaptive, args.eta, args.perturbation_norm) == (
        0.2,
        True,
        0.02,
        math.inf,
    )
    assert (args.replay_rng, args.ascent_scope, args.learning_rate) == (False, "micro_batch", 0.5)
    assert all(f.metadata["help"] for f in fields(SAMArguments))


def test_combines_with_other_arguments_in_one_line() -> None:
    @dataclass
    class Seq2SeqConfig(SAMArguments, Seq2SeqTrainingArguments):
        pass

    config = Seq2SeqConfig(rho=0.1, predict_with_generate=True, eval_strategy="no")
    assert (config.rho, config.predict_with_generate) == (0.1, True)
    assert config.eval_strategy.value == "no"  # the Trainer's own checks have run
    with pytest.raises(ValueError, match="`rho` must be >= 0"):
        Seq2SeqConfig(rho=-1.0)


def test_defaults_are_the_papers() -> None:
    args = SAMArguments()
    assert (args.rho, args.adaptive, args.eta, args.perturbation_norm) == (0.05, False, 0.01, 2.0)
    assert (args.ascent_scope, args.replay_rng) == (None, True)
    assert issubclass(SAMConfig, TrainingArguments)


@pytest.mark.parametrize("config", [SAMConfig, SAMSeq2SeqConfig])
def test_no_token_is_pickled(config: type[TrainingArguments], tmp_path: Path) -> None:
    """The Trainer pickles its arguments into each checkpoint, and pushes them."""
    args = config(output_dir=str(tmp_path), rho=0.3, hub_token="secret")
    again = pickle.loads(pickle.dumps(args))
    assert b"secret" not in pickle.dumps(args)
    assert args.hub_token == "secret"
    assert again.hub_token is None
    assert again.to_dict() | {"hub_token": None} == args.to_dict() | {"hub_token": None}
