"""Other trainers, searches and texts: what goes on around the step stays theirs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import build, examples, make_trainer
from datasets import Dataset
from matrix_models import BUILD, DATA
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from trainers import KINDS, with_attention
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    pipeline,
)

from hf_sam import SAMConfig, SAMMixin, SAMTrainer
from hf_sam.config import ASCENT_SCOPES


@pytest.mark.parametrize("scope", ASCENT_SCOPES)
def test_trl_counts_once(scope: str, tmp_path: Path) -> None:
    """Tokens and accuracy in the log are those of the clean passes: at rate 0, the plain ones."""
    kind = KINDS["SFTTrainer"]()
    entries = []
    for trainer, config, sam in (
        (kind.plain, kind.plain_config, {}),
        (kind.sam, kind.sam_config, {"ascent_scope": scope}),
    ):
        run = make_trainer(
            BUILD["llama with an adapter"](), tmp_path, trainer=trainer, config=config,
            data=DATA["texts"](), recorder=with_attention, learning_rate=0.0, max_steps=2,
            logging_steps=1, gradient_accumulation_steps=2, per_device_train_batch_size=4, **sam,
        )  # fmt: skip
        run.train()
        entries.append([e for e in run.state.log_history if "loss" in e])
    for plain, sam in zip(*entries, strict=True):
        assert plain["num_tokens"] > 0
        for name in ("num_tokens", "mean_token_accuracy", "entropy", "loss"):
            assert sam[name] == plain[name]


def test_an_adapter_alone_is_perturbed(tmp_path: Path) -> None:
    kind = KINDS["SFTTrainer"]()
    model = BUILD["llama with an adapter"]()
    seen: list[dict[str, Tensor]] = []
    trainer = make_trainer(
        model, tmp_path, trainer=kind.sam, config=kind.sam_config, data=DATA["texts"](),
        recorder=with_attention, max_steps=1, rho=0.3,
    )  # fmt: skip
    trainer.model.register_forward_pre_hook(
        lambda *_: seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
    )
    trainer.train()
    moved = {name: after - seen[0][name] for name, after in seen[1].items()}
    adapter = [m.flatten() for name, m in moved.items() if "lora_" in name]
    assert float(torch.cat(adapter).norm()) == pytest.approx(0.3, rel=1e-4)
    assert not any(m.any() for name, m in moved.items() if "lora_" not in name)


class Generates(SAMTrainer):
    """As trl's do: from method to method, to what is called `generate`."""

    def _prepare_inputs(self, inputs: Any) -> Any:
        return super()._prepare_inputs(self.completions(inputs))

    def completions(self, inputs: Any) -> Any:
        return [row for row in self.model.generate(inputs)]


class GeneratesToEvaluate(SAMTrainer):
    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        self.model.generate()


class GeneratesInItsStep(Trainer):
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.model.generate()
        return super().training_step(*args, **kwargs)


class GeneratesInEachPass(SAMMixin, GeneratesInItsStep):
    """SAM's training step calls the other one for each of its passes."""


class GeneratesAroundBoth(GeneratesInItsStep, SAMTrainer):
    """The other training step calls SAM's: it generates once a micro-batch."""


@pytest.mark.parametrize("kind", [Generates, GeneratesInEachPass], ids=lambda kind: kind.__name__)
def test_trainers_that_generate_are_refused(kind: type[Trainer], tmp_path: Path) -> None:
    said = f"got a {kind.__name__}, which generates texts while it trains"
    with pytest.raises(ValueError, match=said):
        make_trainer(build("mlp"), tmp_path, trainer=kind).train()


@pytest.mark.parametrize("kind", [GeneratesToEvaluate, GeneratesAroundBoth])
def test_trainers_that_generate_outside_of_passes_are_not(
    kind: type[Trainer], tmp_path: Path
) -> None:
    model, calls = build("mlp"), []
    model.generate = lambda: calls.append(1)
    make_trainer(model, tmp_path, trainer=kind, max_steps=3).train()
    assert len(calls) == (3 if kind is GeneratesAroundBoth else 0)


def test_hyperparameter_search_over_rho(tmp_path: Path) -> None:
    args = SAMConfig(
        output_dir=str(tmp_path), max_steps=6, learning_rate=0.1, optim="sgd", report_to="none",
        use_cpu=True, disable_tqdm=True, save_strategy="no", eval_strategy="steps", eval_steps=6,
    )  # fmt: skip
    trained: set[float] = set()

    class Rhos(TrainerCallback):
        def on_step_begin(self, args: Any, *others: Any, **kwargs: Any) -> None:
            trained.add(args.rho)

    data = examples()
    trainer = SAMTrainer(
        model_init=lambda: build("mlp"), args=args, train_dataset=data, eval_dataset=data,
        callbacks=[Rhos()],
    )  # fmt: skip

    def space(trial: Any) -> dict[str, Any]:
        """Only some trials set eta; transformers leaves it set for the next."""
        adaptive = trial.number == 0
        rho = trial.suggest_float("rho", 0.01, 1.0, log=True)
        return {"rho": rho, "adaptive": adaptive, **({"eta": 0.1} if adaptive else {})}

    best = trainer.hyperparameter_search(space, n_trials=3, backend="optuna")
    assert len(trained) == 3
    assert best.hyperparameters["rho"] in trained


SENTENCES = {
    1: ["a fine film", "a warm and funny film", "funny and fine", "a film to love"],
    0: ["a dull film", "a cold and slow film", "slow and dull", "a film to leave"],
}


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = sorted(
        {word for group in SENTENCES.values() for line in group for word in line.split()}
    )
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
    )


def test_texts_end_to_end(tmp_path: Path) -> None:
    """A tokenizer, padded batches, dropout, evaluation, a saved folder and a pipeline."""
    tokenizer = word_tokenizer()
    rows = [{"text": t, "labels": label} for label, group in SENTENCES.items() for t in group]
    data = Dataset.from_list(rows).map(
        lambda row: tokenizer(row["text"]), remove_columns="text", desc="tokens"
    )
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    model = BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), num_hidden_layers=2, initializer_range=0.2, **size)
    )

    def accuracy(predicted: Any) -> dict[str, float]:
        return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}

    args = SAMConfig(
        output_dir=str(tmp_path), rho=0.05, num_train_epochs=30, learning_rate=3e-3,
        per_device_train_batch_size=2, gradient_accumulation_steps=2, eval_strategy="epoch",
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, logging_steps=10,
    )  # fmt: skip
    trainer = SAMTrainer(
        model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer), compute_metrics=accuracy,
    )  # fmt: skip
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] == 1.0
    trainer.save_model()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    classify = pipeline(
        "text-classification", model=loaded, tokenizer=AutoTokenizer.from_pretrained(tmp_path)
    )
    assert [out["label"] for out in classify(["a funny film", "a slow film"])] == [
        "LABEL_1",
        "LABEL_0",
    ]
