"""Every trainer of the installed trl is either tried beside its plain form, or refused.

A trainer that trl adds, and a module of it that can no longer be imported, fail here until somebody
has sorted them.
"""

import importlib
import logging
import pkgutil
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny_transformers import TEXT_SIZES, llama
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from trainers import tokenizer
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from hf_sam import SAMArguments, SAMConfig, SAMMixin
from hf_sam.step.checks import why_uncut
from hf_sam.step.generating import generates

PACKAGES = ("trl.trainer", "trl.experimental")
# Modules that need a package which is no part of the test environment.
NOT_IMPORTED = {"trl.experimental.async_grpo.openenv_harness": "openenv"}

STEPS = 2
OF_SAM = {"perturbed_loss", "sharpness", "ascent_grad_norm"}  # entries of the log
PAIRS, KTO = ("prompt", "chosen", "rejected"), ("prompt", "completion", "label")


@dataclass(frozen=True)
class Tried:
    """How a trainer is built."""

    config: str  # the module and the class of its arguments
    columns: tuple[str, ...]  # of its data
    is_cut: bool = False  # whether the first rows of its batches are examples: `ascent_fraction`
    has_reference: bool = False  # a model, which it would look for on the Hub


TRIED = {
    "trl.trainer.base_trainer._BaseTrainer": Tried(
        "trl.trainer.base_config._BaseConfig", ("input_ids", "labels"), is_cut=True
    ),
    "trl.trainer.sft_trainer.SFTTrainer": Tried(
        "trl.SFTConfig", ("prompt", "completion"), is_cut=True
    ),
    "trl.trainer.dpo_trainer.DPOTrainer": Tried("trl.DPOConfig", PAIRS, has_reference=True),
    "trl.trainer.kto_trainer.KTOTrainer": Tried("trl.KTOConfig", KTO, has_reference=True),
    "trl.trainer.reward_trainer.RewardTrainer": Tried("trl.RewardConfig", PAIRS),
    "trl.experimental.bema_for_ref_model.dpo_trainer.DPOTrainer": Tried(
        "trl.DPOConfig", PAIRS, has_reference=True
    ),
    "trl.experimental.cpo.cpo_trainer.CPOTrainer": Tried("trl.experimental.cpo.CPOConfig", PAIRS),
    "trl.experimental.kto.KTOTrainer": Tried(
        "trl.experimental.kto.KTOConfig", KTO, has_reference=True
    ),
    "trl.experimental.orpo.orpo_trainer.ORPOTrainer": Tried(
        "trl.experimental.orpo.ORPOConfig", PAIRS
    ),
    "trl.experimental.tpo.tpo_trainer.TPOTrainer": Tried(
        "trl.experimental.tpo.TPOConfig", (*PAIRS, "reference")
    ),
}
REFUSED = {  # they generate texts while they train
    "trl.experimental.a2po.a2po_trainer.A2POTrainer",
    "trl.experimental.async_distillation.async_distillation_trainer.AsyncDistillationTrainer",
    "trl.experimental.async_grpo.async_grpo_trainer.AsyncGRPOTrainer",
    "trl.experimental.distillation.DistillationTrainer",
    "trl.experimental.gkd.gkd_trainer.GKDTrainer",
    "trl.experimental.gmpo.gmpo_trainer.GMPOTrainer",
    "trl.experimental.gold.gold_trainer.GOLDTrainer",
    "trl.experimental.iw_opd.iw_opd_trainer.IWOPDTrainer",
    "trl.experimental.online_dpo.online_dpo_trainer.OnlineDPOTrainer",
    "trl.experimental.sdft.sdft_trainer.SDFTTrainer",
    "trl.experimental.sdpo.sdpo_trainer.SDPOTrainer",
    "trl.experimental.server_distillation.server_distillation_trainer.ServerDistillationTrainer",
    "trl.trainer.distillation_trainer.DistillationTrainer",
    "trl.trainer.grpo_trainer.GRPOTrainer",
    "trl.trainer.rloo_trainer.RLOOTrainer",
}


@cache
def installed() -> tuple[dict[str, type[Trainer]], dict[str, str]]:
    """Return all trainers of trl by name, and what each module that fails to import lacks."""
    lacking: dict[str, str] = {}
    modules = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        for package in map(importlib.import_module, PACKAGES):
            modules.append(package)
            prefix = f"{package.__name__}."
            for module in pkgutil.walk_packages(package.__path__, prefix, onerror=pytest.fail):
                try:
                    modules.append(importlib.import_module(module.name))
                except ImportError as error:
                    lacking[module.name] = str(error.name)
    kinds = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    found = {
        f"{kind.__module__}.{kind.__name__}": kind
        for kind in kinds
        if issubclass(kind, Trainer) and kind.__module__.startswith("trl.")
    }
    return found, lacking


def test_each_is_sorted() -> None:
    found, lacking = installed()
    assert {name for name, kind in found.items() if generates(kind)} == REFUSED
    assert {name for name, kind in found.items() if not generates(kind)} == TRIED.keys()
    assert lacking == NOT_IMPORTED


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_generates_is_refused(name: str, tmp_path: Path) -> None:
    """By the first thing that `train()` does of SAM's.

    The trainer is not constructed: that takes reward models, teachers, servers. It has all that is
    looked at before.
    """
    kind = installed()[0][name]
    sam = type("Mixed", (SAMMixin, kind), {})
    trainer = sam.__new__(sam)
    trainer.args, trainer.data_collator = SAMConfig(str(tmp_path), use_cpu=True), None
    with pytest.raises(ValueError, match="got a Mixed, which generates texts while it trains"):
        trainer._prepare_for_training(1, None, None)


def words() -> PreTrainedTokenizerFast:
    made = tokenizer()
    made.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    return made


def rows(columns: tuple[str, ...], count: int = 12) -> Dataset:
    """Texts of two to four words; pairs are of different lengths."""
    generator = torch.Generator().manual_seed(5)

    def text(length: int) -> str:
        ids = torch.randint(14, (length,), generator=generator)
        return " ".join(f"w{int(i)}" for i in ids)

    def value(column: str, index: int) -> Any:
        if column in ("input_ids", "labels"):
            return [index % 14, 3, 5, (index * 5) % 14]
        if column == "label":
            return index % 2 == 0
        words = text(2 + (index + len(column)) % 3)
        return words if column == "prompt" else f" {words}"

    return Dataset.from_list([{c: value(c, i) for c in sorted(columns)} for i in range(count)])


def model_for(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.endswith(".RewardTrainer"):
        return LlamaForSequenceClassification(LlamaConfig(**TEXT_SIZES, num_labels=1))
    return llama()


def trained(name: str, folder: Path, *, mixin: bool = True, **settings: Any) -> Trainer:
    """Train one of TRIED on the CPU, in float32, two micro-batches of 3 examples a step."""
    how, kind = TRIED[name], installed()[0][name]
    module, _, config_name = how.config.rpartition(".")
    plain: Any = getattr(importlib.import_module(module), config_name)
    config = dataclass(type("Config", (SAMArguments, plain), {})) if mixin else plain
    defaults = {
        "output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2, "learning_rate": 0.5, "optim": "sgd", "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "logging_steps": 1, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True, "lr_scheduler_type": "constant",
        "dataloader_pin_memory": False, "max_grad_norm": 0.0,
    }  # fmt: skip
    reference = {"ref_model": model_for(name)} if how.has_reference else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # trl's, that parts of it will go
        args: TrainingArguments = config(**defaults | settings)
        trainer = (type("Mixed", (SAMMixin, kind), {}) if mixin else kind)(
            model=model_for(name), args=args, train_dataset=rows(how.columns),
            processing_class=words(), **reference,
        )  # fmt: skip
        trainer.train()
    return trainer


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def losses(trainer: Trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("scope", ["micro_batch", "global"])
@pytest.mark.parametrize("name", sorted(TRIED))
def test_what_is_tried_trains_and_counts_once(
    name: str, scope: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the ascent goes nowhere, weights and log are the plain trainer's."""
    plain = trained(name, tmp_path, mixin=False)
    with caplog.at_level(logging.WARNING, "hf_sam"):
        sam = trained(name, tmp_path, rho=1e-6, ascent_scope=scope)
    # none that a pass changes what nothing puts back
    assert not [record for record in caplog.records if record.name.startswith("hf_sam")]
    # rho times the curvature; it is 5e-5 at a rho of 1e-5, and a weight moves by 0.1
    assert (weights(plain) - weights(sam)).abs().max() < 1e-5
    assert len(losses(plain)) == STEPS
    assert losses(plain)[-1].get("num_tokens", 1) > 0
    for expected, entry in zip(losses(plain), losses(sam), strict=True):
        assert entry.keys() - expected.keys() == OF_SAM
        for key, value in expected.items():  # sums of some ten terms in float32
            assert entry[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize("name", sorted(TRIED))
def test_what_is_tried_ascends(name: str, tmp_path: Path) -> None:
    """Also: the batches whose rows are no examples are known as such."""
    plain, sam = trained(name, tmp_path, mixin=False), trained(name, tmp_path, rho=0.1)
    assert (weights(plain) - weights(sam)).abs().max() > 1e-3
    assert all(entry["sharpness"] > 0 for entry in losses(sam))
    assert (why_uncut(sam) is None) == TRIED[name].is_cut
