"""What users do at the Hub, each in a process of its own: the client reads its settings once.

`python tests/hub_session.py NAME ARGUMENT ...` calls a function of this file.
"""

import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch


def pulls(repo_id: str, folder: str) -> None:
    """Both libraries load what was pushed, to the bits of the folder that it came from."""
    import timm
    import torch
    from huggingface_hub import ModelCard
    from transformers import AutoModelForImageClassification

    if not version("huggingface_hub").startswith("1."):  # asks the Hub itself, whatever is set
        ModelCard.load(repo_id).validate()
    local = AutoModelForImageClassification.from_pretrained(folder)
    pulled = AutoModelForImageClassification.from_pretrained(repo_id)
    by_timm = timm.create_model(f"hf-hub:{repo_id}", pretrained=True)
    for model in (local, pulled, by_timm):
        for tensor in (*model.parameters(), *model.buffers()):
            # from_pretrained leaves them in the mapped file, at addresses where kernels round apart
            tensor.data = tensor.data.clone()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = local.eval()(images).logits
        assert torch.equal(pulled.eval()(images).logits, logits)
        assert torch.equal(by_timm.eval()(images), logits)
    assert pulled.config.id2label == local.config.id2label


def pushes(data: str, folder: str) -> None:
    """Push by the recipes and by hand; print what the recipes say when it fails."""
    from images import TINY, finetune_on

    from hf_sam.finetuning import finetune

    argv = ["--data_dir", data, "--push_to_hub"]
    for name in ("someone/theirs", "user/lost"):
        at = ["--hub_model_id", name, "--output_dir", f"{folder}/{name.split('/')[1]}"]
        with patch("time.sleep"):  # between the six times that the client tries
            _print_message(lambda at=at: finetune.main([*TINY, *argv, *at]))
    token = os.environ.pop("HF_TOKEN")
    at = ["--hub_model_id", "user/again", "--hub_token", token, "--seed", "7"]
    finetune_on(Path(data), Path(folder) / "again", "--push_to_hub", *at)
    _notebook(Path(folder) / "notebook", token)
    _comparison(Path(data), Path(folder) / "compared")


def _notebook(folder: Path, token: str) -> None:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    from hf_sam import SAMConfig, SAMTrainer

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    sizes |= {"intermediate_size": 8, "image_size": 8, "patch_size": 4}
    trainer = SAMTrainer(
        model=ViTForImageClassification(ViTConfig(**sizes)),
        args=SAMConfig(str(folder), rho=0.1, max_steps=1, hub_token=token, report_to="none"),
        train_dataset=[{"pixel_values": torch.randn(3, 8, 8), "labels": i % 2} for i in range(8)],
    )
    trainer.train()
    trainer.push_to_hub()


def _comparison(data: Path, folder: Path) -> None:
    from images import TINY

    from hf_sam.comparing import compare

    file = folder.with_suffix(".yaml")
    file.write_text("push_to_hub: true\nhub_private_repo: true\n")  # neither is for the runs
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(folder), "--config", str(file)]
    compare.main([*argv, "--seeds", "1", "--arms", "sam"])


def fails(folder: str) -> None:
    """Print what the recipes say to a repository that is closed, and to tokens of no use."""
    from hf_sam.finetuning import hub

    path = Path(folder)
    name = hub.create_repo("frozen", path, private=None)
    _print_message(lambda: hub.push(path, name))
    _print_message(lambda: hub.create_repo("model", path, private=True))
    for token in ("not-the-token", "not-ascii-\u00f6"):
        os.environ["HF_TOKEN"] = token
        reaches(folder)


def reaches(folder: str) -> None:
    """Print what the recipes say where there is no Hub."""
    from hf_sam.finetuning import hub

    _print_message(lambda: hub.create_repo("model", Path(folder), private=True))


def _print_message(act: Callable[[], object]) -> None:
    from hf_sam.finetuning.hub import HubError

    try:
        print(f"no error: {act()}")
    except (HubError, SystemExit) as error:
        print(error)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
