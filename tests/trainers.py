"""The trainers that SAM is mixed into, each beside its plain form and a reference."""

from dataclasses import dataclass
from typing import Any

import torch
from reference import ReferenceMixin, ReferenceTrainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
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


@dataclass(frozen=True)
class Kind:
    sam: type[Trainer]
    sam_config: type[TrainingArguments]
    reference: type[Trainer]
    plain: type[Trainer]
    plain_config: type[TrainingArguments]


class ReferenceSeq2Seq(ReferenceMixin, Seq2SeqTrainer):
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
