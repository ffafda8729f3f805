"""What the cases of the matrix train, on what, and what befalls them on the way."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from cases import MODELS, SparseEmbedding, bags, build, examples, queue, uneven
from datasets import Dataset
from tiny_transformers import bert, images, llama, t5, texts, vit
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from trainers import Body
from transformers import PreTrainedConfig, TrainerCallback


class Leftovers(IterableDataset[dict[str, Tensor]]):
    """34 examples: on one rank and on two, a last micro-batch that the Trainer does not step."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(examples(count=34))


class StopEpoch(TrainerCallback):
    """Gives up the epoch after the first micro-batch of the third step."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_epoch_stop = state.global_step == 2
        return control


class StopTraining(TrainerCallback):
    """Stops after the first micro-batch of the third step."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step == 2
        return control


class OutOfMemory(nn.Module):
    """Has no memory for micro-batches of more than 4 in the given forward pass and later ones."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.model, self.call, self.calls = build("batch_norm"), call, 0

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        if len(x) > 4 and self.calls >= self.call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return self.model(x, labels)


def configured() -> nn.Module:
    """With the configuration that the Trainer asks when it smooths labels."""
    model = build("mlp")
    model.config = PreTrainedConfig()
    return model


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().double()


def adapted(model: nn.Module) -> nn.Module:
    """With a LoRA adapter, the only part that is trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(model, config)


BUILD: dict[str, Callable[[], nn.Module]] = {
    **{name: (lambda name=name: build(name)) for name in MODELS},
    "float32": lambda: build("mlp", torch.float32),
    "bfloat16": lambda: build("mlp", torch.bfloat16),
    "t5": lambda: seeded(t5).float(),
    "bert": lambda: seeded(bert).float(),
    "llama with an adapter": lambda: adapted(seeded(llama).float()),
    "configured": configured,
    "queue": queue,
    "uneven": lambda: seeded(uneven),
    "body": lambda: seeded(Body),
    "vit": lambda: seeded(vit),
    "llama": lambda: seeded(llama),
    "sparse": lambda: seeded(lambda: SparseEmbedding(sparse=True)),
    "dense": lambda: seeded(lambda: SparseEmbedding(sparse=False)),
    **{f"out of memory at {n}": (lambda n=n: OutOfMemory(n)) for n in (2, 3)},
}
DATA: dict[str, Callable[[], Any]] = {
    "vit": images,
    "llama": texts,
    "sparse": bags,
    "float32": lambda: examples(torch.float32),
    "bfloat16": lambda: examples(torch.bfloat16),
    "t5": texts,
    "bert": bags,
    "texts": lambda: Dataset.from_list([{k: v.tolist() for k, v in t.items()} for t in texts()]),
    "leftovers": Leftovers,
}
