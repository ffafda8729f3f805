"""The recipe for texts, from a CSV to a folder that loads again: whole, by LoRA and in 4 bits."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from places import ROOT
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
)

from hf_sam import SAMConfig, SAMTrainer

WORDS = {
    "good": ["funny", "warm", "fine", "lovely", "bright"],
    "bad": ["dull", "cold", "slow", "grey", "flat"],
}
PAIRS = [(a, b, label) for label, words in WORDS.items() for a in words for b in words]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    path = ROOT / "recipes" / "text_classification.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tokenizer(*, pads: bool) -> PreTrainedTokenizerFast:
    words = ["<pad>", "<unk>", "</s>", "a", "and", "film", *WORDS["good"], *WORDS["bad"]]
    raw = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {
        "unk_token": "<unk>",
        "eos_token": "</s>",
        **({"pad_token": "<pad>"} if pads else {}),
    }
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    size = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16, num_hidden_layers=1, num_labels=3, initializer_range=0.2, **size
    )
    BertForSequenceClassification(config).save_pretrained(folder)  # three classes: another task's
    tokenizer(pads=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def csv(tmp_path: Path) -> str:
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"a {a} and {b} film,{label}\n" for a, b, label in PAIRS)
    )
    return str(tmp_path / "train.csv")


def words_of(model: str, csv: str, out: Path, *more: str) -> list[str]:
    settings = "--learning_rate 0.005 --num_train_epochs 8 --use_cpu --disable_tqdm true --rho 0.05"
    told = f"--model {model} --train_file {csv} --output_dir {out} --report_to none {settings}"
    return [*told.split(), *more]


def label_of(folder: Path, text: str) -> str:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.num_labels == 2
    words = AutoTokenizer.from_pretrained(folder)
    return pipeline("text-classification", model=model, tokenizer=words)(text)[0]["label"]


def test_trains_all_weights_and_saves_what_loads(
    recipe: ModuleType, bert: str, csv: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    metrics = recipe.main(words_of(bert, csv, out, "--eval_file", csv))
    assert metrics["eval_top1_error"] <= 10.0  # by chance 50
    assert label_of(out, "a lovely and funny film") == "good"
    assert label_of(out, "a grey and flat film") == "bad"
    card = (out / "README.md").read_text()
    assert "sharpness-aware-minimization" in card
    assert "Foret" in card


class Watched(SAMTrainer):
    """Keeps the weights before each forward pass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[dict[str, Tensor]] = []
        self.model.register_forward_pre_hook(lambda *_: self.seen.append(self.weights()))
        Watched.last = self

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    last: "Watched"


def require_only_adapters_move(trainer: Watched, *, rho: float) -> None:
    """By rho within a step, and not at all the frozen weights, of whatever type."""
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in trained)
    clean, perturbed = trainer.seen[:2]
    moved = torch.cat([(perturbed[name] - clean[name]).flatten() for name in trained])
    assert float(moved.norm()) == pytest.approx(rho, rel=1e-4)
    after = trainer.weights()
    frozen = clean.keys() - trained
    for weights in (perturbed, after):
        assert all(torch.equal(weights[name], clean[name]) for name in frozen)
    assert not all(torch.equal(after[name], clean[name]) for name in trained)


def test_trains_adapters_alone(
    recipe: ModuleType, bert: str, csv: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    monkeypatch.setattr(recipe, "SAMTrainer", Watched)
    out = tmp_path / "out"
    metrics = recipe.main(words_of(bert, csv, out, "--lora", "4", "--eval_file", csv))
    assert metrics["eval_top1_error"] <= 10.0  # by chance 50
    require_only_adapters_move(Watched.last, rho=0.05)
    assert {"adapter_model.safetensors", "README.md"} <= {path.name for path in out.iterdir()}
    assert "sharpness-aware-minimization" in (out / "README.md").read_text()


def test_trains_adapters_beside_weights_in_4_bits(
    recipe: ModuleType, bert: str, csv: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, where bitsandbytes trains until its first evaluation, and no further."""
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(recipe, "SAMTrainer", Watched)
    options = recipe.TextOptions(model=bert, train_file=csv, lora=4)
    options.load_in_4bit = True  # which is refused without a GPU
    settings = {"max_steps": 4, "learning_rate": 0.01, "report_to": "none", "use_cpu": True}
    trainer = recipe.build_trainer(
        options, SAMConfig(output_dir=str(tmp_path), rho=0.1, **settings)
    )
    trainer.train()
    types = {p.dtype for p in trainer.model.parameters() if not p.requires_grad}
    assert torch.uint8 in types  # two weights a byte
    require_only_adapters_move(trainer, rho=0.1)


def test_a_model_that_writes_gets_a_head_and_a_padding(
    recipe: ModuleType, csv: str, tmp_path: Path
) -> None:
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=16, num_hidden_layers=1, num_key_value_heads=2, **size)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "llama")
    tokenizer(pads=False).save_pretrained(tmp_path / "llama")
    words = words_of(str(tmp_path / "llama"), csv, tmp_path / "out", "--max_steps", "2")
    recipe.main(words)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert saved.config.pad_token_id == 2  # that of the end
    assert {p.dtype for p in saved.parameters()} == {torch.float32}


def test_labels_may_be_numbers(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text(
        "text,label\n" + "".join(f"w{i},{i % 11 - 1}\n" for i in range(44))
    )
    options = recipe.TextOptions(train_file=str(tmp_path / "n.csv"), holdout=0.5)
    train, held_out = recipe.load_texts(options, seed=0)
    assert (len(train), len(held_out)) == (22, 22)
    names = train.features["label"].names
    assert names == held_out.features["label"].names == sorted(str(i) for i in range(-1, 10))
    for row in held_out:
        assert names[row["label"]] == str(int(row["text"][1:]) % 11 - 1)


MESSAGES = {
    "": "pass one of `--train_file FILE.csv` and `--dataset NAME`",
    "--train_file CSV --dataset imdb": "pass one of",
    "--dataset imdb --eval_file CSV": "`eval_file` goes with `train_file`",
    "--train_file CSV --eval_split test": "`eval_split` with `dataset`",
    "--train_file none.csv": "none.csv",
    "--train_file CSV --text_column review": "no column 'review' among text, label",
    "--train_file EMPTY": "every row must have a text and a label",
    "--train_file CSV --eval_file OTHER": "labels must be ones of the training texts, got 'ugly'",
    "--train_file CSV --eval_file CODES": "labels must be ones of the training texts, got '0'",
    "--train_file CSV --load_in_4bit": "`load_in_4bit` needs a GPU and `--lora 16`",
    "--train_file CSV --rho -1": "`rho` must be >= 0, got -1.0",
    "--train_file CSV --model no/such": "offline mode",
    "--train_file CSV --holdout 2": "2",
    "--train_file CSV --perturb nosuch": "`perturb` must be",
    "--train_file CSV --resume_from_checkpoint last": "checkpoint",
}


@pytest.mark.parametrize("options", MESSAGES)
def test_bad_input_ends_in_one_line(
    options: str, recipe: ModuleType, bert: str, csv: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.csv").write_text("text,label\na film,\na dull film,bad\n")
    (tmp_path / "other.csv").write_text("text,label\na film,ugly\n")
    (tmp_path / "codes.csv").write_text("text,label\na film,0\na dull film,1\n")
    names = {name: str(tmp_path / f"{name.lower()}.csv") for name in ("EMPTY", "OTHER", "CODES")}
    names["CSV"] = csv
    words = [names.get(word, word) for word in options.split()]
    words += [] if "--model" in words else ["--model", bert]
    with pytest.raises(SystemExit) as stopped:
        recipe.main([*words, "--output_dir", str(tmp_path / "out"), "--use_cpu"])
    said = str(stopped.value)
    assert MESSAGES[options] in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("told", "package"), [("--lora 4", "peft"), ("--lora 4 --load_in_4bit", "bitsandbytes")]
)
def test_a_package_that_is_not_there_is_named(
    told: str, package: str, recipe: ModuleType, csv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(recipe, "find_spec", lambda name: None if name == package else True)
    with pytest.raises(SystemExit, match=f"needs {package}: `pip install {package}`"):
        recipe.main(["--train_file", csv, *told.split()])


def test_the_recipe_stays_short() -> None:
    text = (ROOT / "recipes" / "text_classification.py").read_text()
    assert len(text.splitlines()) <= 150
