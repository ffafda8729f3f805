"""The trainer of sentence-transformers with SAM mixed in, as the document shows it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from places import ROOT
from test_other_trainers import word_tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer  # noqa: E402

TEXT = (ROOT / "docs" / "sentence_transformers.md").read_text()
[CODE] = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
CLASSES, _ = CODE.split("\n\nmodel = ")
PAIRS = [
    ("a fine film", "a film to love", 0),
    ("a dull film", "a funny film", 1),
    ("slow and dull", "cold and slow", 0),
    ("funny and fine", "a film to leave", 1),
]
RATE, RHO = 0.1, 0.3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny encoder without dropout, of sentence-transformers' form."""
    path = str(tmp_path_factory.mktemp("encoder"))
    tokenizer = word_tokenizer()
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), num_hidden_layers=1, **size, **dropout))
    bert.save_pretrained(path)
    tokenizer.save_pretrained(path)
    encoder = Transformer(path)
    SentenceTransformer(modules=[encoder, Pooling(16)], device="cpu").save(path)
    return path


class InParts(nn.Module):
    """A loss of two parts, which the trainer logs each for itself."""

    def __init__(self, whole: SoftmaxLoss) -> None:
        super().__init__()
        self.whole, self.model = whole, whole.model

    def forward(self, features: Any, labels: Tensor) -> dict[str, Tensor]:
        loss = self.whole(features, labels)
        return {"most": 0.75 * loss, "rest": 0.25 * loss}


def train(folder: str, out: Path, *, plain: bool = False, parts: bool = False, **sam: Any) -> Any:
    """One epoch of SGD: two optimizer steps; the weights of all that is trained go along."""
    names: dict[str, Any] = {"__name__": __name__}
    exec(CLASSES, names)
    trainer_class, args_class = (
        names[f"{'' if plain else 'SAM'}SentenceTransformer{end}"]
        for end in ("Trainer", "TrainingArguments" if plain else "Arguments")
    )
    model = SentenceTransformer(folder, device="cpu")
    torch.manual_seed(1)
    loss = SoftmaxLoss(model, 16, num_labels=2)
    args = args_class(
        output_dir=str(out), optim="sgd", learning_rate=RATE, lr_scheduler_type="constant",
        max_grad_norm=0.0, per_device_train_batch_size=2, max_steps=2, logging_steps=2,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", **sam,
    )  # fmt: skip
    data = Dataset.from_dict(dict(zip(("a", "b", "label"), zip(*PAIRS, strict=True), strict=True)))
    trainer = trainer_class(
        model=model, args=args, train_dataset=data, loss=InParts(loss) if parts else loss
    )
    trainer.seen, trainer.batches = [], []
    loss.classifier.register_forward_pre_hook(lambda *_: trainer.seen.append(weights(loss)))
    compute = trainer.compute_loss

    def noted(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        trainer.batches.append(dict(inputs))
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = noted
    trainer.train()
    trainer.after = weights(loss)
    return trainer


def weights(loss: SoftmaxLoss) -> Tensor:
    return torch.cat([p.detach().clone().flatten() for p in loss.parameters()])


def test_the_document_runs(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = CODE.replace("distilbert/distilroberta-base", folder)
    names: dict[str, Any] = {"__name__": __name__}
    exec(code.replace("max_steps=10", "max_steps=2, use_cpu=True, save_strategy='no'"), names)
    assert names["trainer"].state.global_step == 2
    assert len(TEXT.splitlines()) < 60


def test_the_model_and_the_loss_share_one_perturbation(folder: str, tmp_path: Path) -> None:
    trainer = train(folder, tmp_path, rho=RHO)
    clean, perturbed, later, _ = trainer.seen
    head = sum(p.numel() for p in trainer.loss.classifier.parameters())
    moved = perturbed - clean
    assert float(moved.norm()) == pytest.approx(RHO, rel=1e-4)
    for part in (moved[:-head], moved[-head:]):  # of the model, and of the loss module
        assert float(part.norm()) > 0.01 * RHO
    assert not torch.equal(later, clean)


def test_a_step_is_the_papers(folder: str, tmp_path: Path) -> None:
    """Algorithm 1, by hand, on the batches that the trainer drew."""
    trainer = train(folder, tmp_path, rho=RHO)
    model = SentenceTransformer(folder, device="cpu").train()
    torch.manual_seed(1)
    loss = SoftmaxLoss(model, 16, num_labels=2)
    params = [p for p in loss.parameters() if p.requires_grad]

    def gradient(inputs: Any) -> Tensor:
        features, labels = trainer.collect_features(dict(inputs))
        found = torch.autograd.grad(loss(features, labels), params, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]
        return torch.cat([g.flatten() for g in flat])

    def put(flat: Tensor) -> None:
        nn.utils.vector_to_parameters(flat, params)

    w = nn.utils.parameters_to_vector(params).detach().clone()
    for batch in trainer.batches[::2]:  # each is passed over twice
        put(w)
        g = gradient(batch)
        put(w + RHO * g / g.norm())
        w = w - RATE * gradient(batch)
    torch.testing.assert_close(trainer.after, w, rtol=1e-4, atol=1e-6)  # float32


def test_rho_0_is_the_plain_trainer(folder: str, tmp_path: Path) -> None:
    plain = train(folder, tmp_path / "plain", plain=True)
    sam = train(folder, tmp_path / "sam", rho=0.0)
    assert torch.equal(sam.after, plain.after)


def test_parts_of_a_loss_are_counted_once(folder: str, tmp_path: Path) -> None:
    trainer = train(folder, tmp_path, parts=True, rho=RHO)
    [entry] = [entry for entry in trainer.state.log_history if "perturbed_loss" in entry]
    assert entry["most"] + entry["rest"] == pytest.approx(entry["loss"], rel=1e-4)
    assert entry["perturbed_loss"] > entry["loss"]
