"""Models of transformers, as small as they get, and what they are trained on."""

import torch
from cases import CLASSES, EXAMPLES
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
TEXT_SIZES = {**SIZES, "vocab_size": 16, "max_position_embeddings": 16}


def vit(dropout: float = 0.1) -> nn.Module:
    """A transformers model in float64 throughout, which supports gradient checkpointing."""
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    shape = {"image_size": 8, "patch_size": 4, "num_labels": CLASSES}
    return ViTForImageClassification(ViTConfig(**SIZES, **shape, **rates))


def llama() -> nn.Module:
    """A language model that takes num_items_in_batch; it computes norms and loss in float32."""
    heads = {"num_key_value_heads": 2, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**TEXT_SIZES, **heads))


def bert() -> nn.Module:
    """Accepts num_items_in_batch and ignores it, as T5 does."""
    return BertForSequenceClassification(BertConfig(**TEXT_SIZES, num_labels=CLASSES))


def t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=16,
            d_model=8,
            d_kv=4,
            d_ff=16,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
        )
    )


def images(dtype: torch.dtype = torch.float64, count: int = EXAMPLES) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return [{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels, strict=True)]


def texts(count: int = EXAMPLES) -> list[dict[str, Tensor]]:
    """Of 8 tokens, between none and 6 of them without a label: the counts differ."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(16, (count, 8), generator=generator)
    ignored = torch.randint(7, (count, 1), generator=generator)
    labels = torch.where(torch.arange(8) < ignored, -100, ids)
    return [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]
