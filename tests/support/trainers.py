"""The trainers that SAM is mixed into, each beside its plain form and a reference."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from cases import CLASSES, FEATURES, HIDDEN
from reference import ReferenceMixin, ReferenceTrainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from hf_sam import (
    SAMArguments,
    SAMConfig,
    SAMMixin,
    SAMSeq2SeqConfig,
    SAMSeq2SeqTrainer,
    SAMTrainer,
)

AnyTrainer: Any = object  # what a mixin is mixed into


@dataclass(frozen=True)
class Kind:
    sam: type[Trainer]
    sam_config: type[TrainingArguments]
    reference: type[Trainer]
    plain: type[Trainer]
    plain_config: type[TrainingArguments]


class ReferenceSeq2Seq(ReferenceMixin, Seq2SeqTrainer):
    pass


class Body(nn.Module):
    """Features, of which a module outside makes the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, HIDDEN)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"features": torch.tanh(self.layer(x))}


class Head(nn.Module):
    """Trained beside the model, with a moving centre in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(HIDDEN, CLASSES)
        self.register_buffer("centre", torch.zeros(CLASSES))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        logits = self.layer(features) - self.centre.clone()
        loss = F.cross_entropy(logits, labels)
        with torch.no_grad():
            self.centre.mul_(0.9).add_(logits.mean(dim=0), alpha=0.1)
        return loss


class LossModuleMixin(AnyTrainer):
    """Trains a head that is an attribute of the trainer and no part of the model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        torch.manual_seed(1)
        self.head = Head().double()
        super().__init__(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        trained = [*self.model.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(trained, lr=self.args.learning_rate, momentum=0.9)
        # the Trainer zeroes the gradients of the model only
        self.optimizer.register_step_post_hook(lambda *args: self.head.zero_grad())
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        loss = self.head(model(x=inputs["x"])["features"], inputs["labels"])
        return (loss, {"loss": loss}) if return_outputs else loss


class PlainLossModule(LossModuleMixin, Trainer):
    pass


class SAMLossModule(SAMMixin, PlainLossModule):
    pass


class ReferenceLossModule(ReferenceMixin, PlainLossModule):
    pass


KINDS = {
    "Trainer": lambda: Kind(SAMTrainer, SAMConfig, ReferenceTrainer, Trainer, TrainingArguments),
    "Seq2SeqTrainer": lambda: Kind(
        SAMSeq2SeqTrainer,
        SAMSeq2SeqConfig,
        ReferenceSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    ),
    "SFTTrainer": lambda: sft(),
    "loss module": lambda: Kind(
        SAMLossModule, SAMConfig, ReferenceLossModule, PlainLossModule, TrainingArguments
    ),
}


def sft() -> Kind:
    """As the docs show it: two classes without a body."""
    from trl import SFTConfig, SFTTrainer

    class Tiny(SFTTrainer):
        """With a tokenizer and settings for the tiny model."""

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(processing_class=tokenizer(), **kwargs)

    @dataclass
    class TinyConfig(SFTConfig):
        dataset_kwargs: dict[str, Any] | None = None

        def __post_init__(self) -> None:
            self.dataset_kwargs = {"skip_prepare_dataset": True}
            self.bf16 = self.gradient_checkpointing = False
            super().__post_init__()

    @dataclass
    class SAMSFTConfig(SAMArguments, TinyConfig):
        pass

    class SAMSFTTrainer(SAMMixin, Tiny):
        pass

    class ReferenceSFT(ReferenceMixin, Tiny):
        pass

    return Kind(SAMSFTTrainer, SAMSFTConfig, ReferenceSFT, Tiny, TinyConfig)


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(14)} | {"<eos>": 14, "<pad>": 15}
    model = Tokenizer(WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<eos>", pad_token="<pad>")


def with_attention(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A collator for texts whose tokens trl counts."""
    batch = default_data_collator(rows)
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
