"""Cards carry what a reader needs, and no token."""

from pathlib import Path

import pytest
from cases import build, make_trainer
from huggingface_hub import ModelCard
from transformers import PreTrainedConfig

from hf_sam.reporting.model_card import without_tokens


def test_the_trainers_own_card_gains_sam(tmp_path: Path) -> None:
    model = build("mlp")
    model.config = PreTrainedConfig()
    trainer = make_trainer(
        model, tmp_path, rho=0.3, adaptive=True, weight_average="ema:0.9", max_steps=2
    )
    trainer.train()
    trainer.create_model_card(model_name="small", tags=["mine"])
    card = ModelCard.load(tmp_path / "README.md")
    assert {"mine", "sharpness-aware-minimization", "hf_sam"} <= set(card.data.tags)
    rows = ("| `rho` | 0.3 |", "| `adaptive` | True |", "| `weight_average` | ema:0.9 |")
    for part in (*rows, "foret2021", "kwon2021"):
        assert part in card.text


def test_without_sam_the_card_is_the_plain_trainers(tmp_path: Path) -> None:
    model = build("mlp")
    model.config = PreTrainedConfig()
    trainer = make_trainer(model, tmp_path, rho=0.0, max_steps=2)
    trainer.train()
    trainer.create_model_card(model_name="small")
    assert "sharpness" not in (tmp_path / "README.md").read_text().lower()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--hub_token", "secret"], ["--hub_token", "***"]),
        (["--hub-token=secret"], ["--hub-token=***"]),
        (["x", "hf_" + "a" * 34], ["x", "***"]),
        (["--model_kwargs", '{"a": 1}'], ["--model_kwargs", "'{\"a\": 1}'"]),
        (["--rho", "0.1"], ["--rho", "0.1"]),
    ],
)
def test_tokens_are_left_out_of_commands(words: list[str], shown: list[str]) -> None:
    assert without_tokens(words) == shown
