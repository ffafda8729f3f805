"""Fine-tune a text classifier with SAM, all of it or LoRA adapters: load, train, measure, save.

python recipes/text_classification.py --train_file train.csv --model FacebookAI/roberta-base
python recipes/text_classification.py --train_file train.csv --model Qwen/Qwen3-4B-Base --lora 16
"""

import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Value, load_dataset
from datasets.exceptions import DatasetsError
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    HfArgumentParser,
    PreTrainedModel,
    set_seed,
)

from hf_sam import SAMConfig, SAMTrainer
from hf_sam.metrics import compute_metrics, rank_classes

HEADS = ["classifier", "score"]  # what peft trains whole beside the adapters


def option(text: str, default: Any = None) -> Any:
    """Declare an option with its help."""
    return field(default=default, metadata={"help": text})


@dataclass
class TextOptions:
    """Which texts, and which model."""

    model: str = option("Name on the Hub, or folder.", "distilbert/distilbert-base-uncased")
    train_file: str | None = option("CSV with a column of texts and one of labels.")
    eval_file: str | None = option("The same, to measure on.")
    dataset: str | None = option("Name on the Hub, in place of the files; trains on its train.")
    eval_split: str | None = option("Split of the data set to measure on.")
    holdout: float = option("Share of the training texts to measure on, where none are given.", 0.1)
    text_column: str = option("Column of the texts.", "text")
    label_column: str = option("Column of the labels: class labels, words or integers.", "label")
    max_length: int = option("Tokens of a text, at most.", 256)
    lora: int | None = option("Train LoRA adapters of this rank and the head, and nothing else.")
    load_in_4bit: bool = option("Hold the weights beside the adapters in 4 bits: QLoRA.", False)

    def __post_init__(self) -> None:
        """Refuse what cannot be had."""
        if (self.train_file is None) == (self.dataset is None):
            raise ValueError("pass one of `--train_file FILE.csv` and `--dataset NAME`.")
        if (self.eval_file and self.dataset) or (self.eval_split and self.train_file):
            raise ValueError("`eval_file` goes with `train_file`, and `eval_split` with `dataset`.")
        if self.load_in_4bit and not (self.lora and torch.accelerator.is_available()):
            raise ValueError("`load_in_4bit` needs a GPU and `--lora 16`: have both, or neither.")
        for name, package in (("lora", "peft"), ("load_in_4bit", "bitsandbytes")):
            if getattr(self, name) and find_spec(package) is None:
                raise ValueError(f"`{name}` needs {package}: `pip install {package}`.")


def load_texts(options: TextOptions, seed: int) -> list[Dataset]:
    """Return the texts to train on and those to measure on, with class labels of the same names."""
    given = [name for name in (options.eval_file, options.eval_split) if name]
    if options.train_file:
        parts = [Dataset.from_csv(file) for file in (options.train_file, *given)]
    else:
        parts = [load_dataset(options.dataset, split=split) for split in ("train", *given)]
    text, label = options.text_column, options.label_column
    for part in parts:
        if missing := {text, label} - {*part.column_names}:
            raise ValueError(f"no column {missing.pop()!r} among {', '.join(part.column_names)}.")
        unlabelled = -1 if isinstance(part.features[label], ClassLabel) else None
        if None in part[text] or unlabelled in part[label]:
            raise ValueError("every row must have a text and a label, got one without.")
    if not isinstance(parts[0].features[label], ClassLabel):
        parts = [part.cast_column(label, Value("string")) for part in parts]
        classes = ClassLabel(names=sorted({*parts[0][label]}))
        if unknown := {*parts[-1][label]} - {*classes.names}:  # digits would be taken as codes
            raise ValueError(f"labels must be ones of the training texts, got {min(unknown)!r}.")
        parts = [part.cast_column(label, classes) for part in parts]
    return parts if given else [*parts[0].train_test_split(options.holdout, seed=seed).values()]


def load_model(options: TextOptions, names: list[str]) -> PreTrainedModel:
    """Load the model in float32 with a head of these classes, under adapters if asked for."""
    how = {"bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": HEADS}
    four_bits = BitsAndBytesConfig(load_in_4bit=True, **how)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        quantization_config=four_bits if options.load_in_4bit else None,
        dtype=torch.float32,  # weights in bfloat16 would swallow much of a perturbation
        ignore_mismatched_sizes=True,  # of another task's head
    )
    if not options.lora:
        return model
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if options.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    targets = {"target_modules": "all-linear", "modules_to_save": HEADS}
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=options.lora, **targets))


def build_trainer(options: TextOptions, args: SAMConfig) -> SAMTrainer:
    """Put texts, tokenizer and model together."""
    set_seed(args.seed)  # the head is drawn here
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # of a model that writes

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        words = [str(text) for text in rows[options.text_column]]
        tokens = tokenizer(words, truncation=True, max_length=options.max_length)
        return {**tokens, "labels": rows[options.label_column]}

    with args.main_process_first():
        texts = load_texts(options, args.seed)
        data = [part.map(encode, batched=True, remove_columns=part.column_names) for part in texts]
    model = load_model(options, texts[0].features[options.label_column].names)
    model.config.pad_token_id = tokenizer.pad_token_id
    return SAMTrainer(
        model=model, args=args, train_dataset=data[0], eval_dataset=data[1],
        processing_class=tokenizer, compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=rank_classes,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the recipe and return its metrics; bad input ends in one message and exit status 1."""
    usage = "%(prog)s (--train_file FILE.csv | --dataset NAME) [--option value ...]"
    parser = HfArgumentParser((TextOptions, SAMConfig), usage=usage, allow_abbrev=False)
    parser.set_defaults(output_dir="runs/text", eval_strategy="epoch", logging_steps=50)
    try:
        options, args = parser.parse_args_into_dataclasses(argv)
        trainer = build_trainer(options, args)
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    except (ImportError, OSError, ValueError, DatasetsError) as error:
        sys.exit(f"{parser.prog}: {' '.join(str(error).split())}")
    trainer.save_metrics("eval", metrics := trainer.evaluate())
    trainer.save_model()
    trainer.create_model_card(finetuned_from=options.model, dataset=options.dataset)
    return metrics


if __name__ == "__main__":
    main()
