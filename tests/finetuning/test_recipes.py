"""Every recipe: what it comes to, whether its network exists, and two steps of it."""

import dataclasses
import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from images import write_parquet
from places import ROOT
from protocols import DROP, TABLE, VIT, Protocol
from safetensors.torch import save_file
from timm.layers import DropPath
from torch import nn
from torchvision.transforms import AutoAugment, RandomCrop

from hf_sam.finetuning import finetune
from hf_sam.finetuning.loading import model_source, task_of
from hf_sam.finetuning.options import DEFAULTS, parse_options
from hf_sam.finetuning.resolved import as_yaml, image_size
from hf_sam.vision import TASKS
from hf_sam.vision.transforms import blank_square

RECIPES = ROOT / "recipes"
FOUND = sorted(str(p.relative_to(RECIPES).with_suffix("")) for p in RECIPES.glob("*/*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small wait for threads more than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(name: str) -> list[str]:
    return ["--config", str(RECIPES / f"{name}.yaml"), "--use_cpu"]


def comes_to(name: str) -> Protocol:
    data, model, args = parse_options(config(name))
    task = task_of(data)
    source = model_source(model, task)
    by_steps = args.eval_strategy == args.save_strategy == "steps"
    assert args.eval_steps == args.save_steps or not by_steps
    return Protocol(
        model=source.name,
        image_size=image_size(source),
        learning_rate=args.learning_rate,
        batch=args.per_device_train_batch_size * args.gradient_accumulation_steps,
        m=args.per_device_train_batch_size,
        steps=args.max_steps if args.max_steps > 0 else None,
        epochs=None if args.max_steps > 0 else args.num_train_epochs,
        rho=args.rho,
        weight_decay=args.weight_decay,
        clip=args.max_grad_norm,
        warmup=args.warmup_steps,
        optimizer=f"{args.optim.value} {args.optim_args} {args.lr_scheduler_type.value}",
        frozen_batch_norm=model.freeze_batch_norm,
        checkpointing=args.gradient_checkpointing,
        kwargs=tuple(source.model_kwargs.items()),
        scratch=source.init_scratch,
        crop_scale=task.crop_scale,
        crop_padding=data.crop_padding,
        flip=task.horizontal_flip,
        auto_augment=data.auto_augment,
        cutout=data.cutout,
        smoothing=args.label_smoothing_factor,
        label_noise=data.label_noise,
        mean=model.mean and tuple(model.mean),
        std=model.std and tuple(model.std),
        every=int(args.eval_steps) if by_steps else None,
        skip_bad_images=data.skip_bad_images,
        squash=task.squash,
    )


def test_every_recipe_is_in_the_table() -> None:
    assert sorted(TABLE) == FOUND


@pytest.mark.parametrize("name", FOUND)
def test_comes_to_what_the_sources_say(name: str) -> None:
    assert comes_to(name) == TABLE[name]
    data, _, args = parse_options(config(name))
    assert data.dataset == (name.split("/")[0] if data.data_dir is None else None)
    plain = (args.ascent_scope, args.adaptive, args.perturbation_norm, data.mixup)
    assert plain == (None, False, 2.0, 0.0)


@pytest.mark.parametrize("name", [name for name in FOUND if not name.startswith("cub200")])
def test_repeats_no_default_and_names_every_source(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"--config recipes/{name}.yaml" in text
    data, model, args = parse_options(["--use_cpu", "--init_scratch"])
    defaults = dataclasses.asdict(data) | dataclasses.asdict(model) | vars(args) | DEFAULTS
    defaults |= {"init_scratch": False, "batch_size": None}
    repeated = [key for key, value in yaml.safe_load(text).items() if value == defaults[key]]
    assert repeated == []
    lines = [line for line in text.splitlines() if not line.startswith(("#", "dataset:"))]
    assert [line for line in lines if "  # " not in line] == []


NETWORKS = {
    (p.model, p.image_size, p.kwargs): (name, p.scratch or name.startswith("cub200"))
    for name, p in TABLE.items()
}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network[0])
def test_network_is_timms_and_has_weights(network: tuple[str, int, Any]) -> None:
    listed, size, kwargs = network
    recipe, unpublished = NETWORKS[network]
    name = listed.removeprefix("timm/")
    cfg = timm.get_pretrained_cfg(name)
    assert unpublished or (cfg.has_weights and cfg.hf_hub_id == listed)
    assert listed != VIT.model or cfg.num_classes > 1000  # so ImageNet's head starts at zero too
    classes = TASKS[recipe.split("/")[0]].classes if "cub" not in recipe else 50
    fixed = {"img_size": size} if cfg.fixed_input_size else {}
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=classes, **fixed, **dict(kwargs))
        assert model(torch.empty(2, 3, size, size)).shape == (2, classes)


def stand_in(model: str) -> str:
    """A tiny network of the same family."""
    if "resnet" in model:
        return "resnet32"
    return "test_vit" if "vit" in model else "test_efficientnet"


@pytest.fixture(scope="module")
def data_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def write(dataset: str) -> Path:
        task = TASKS.get(dataset, TASKS["digits"])
        splits = (*task.train_split.split("+"), task.eval_split)
        columns = {"image_column": task.image_column, "label_column": task.label_column}
        return write_parquet(tmp_path_factory.mktemp("data"), splits, **columns)

    return write


def small(name: str, data: Path, folder: Path) -> list[str]:
    """The recipe's command line, with network, images, batch and steps scaled down."""
    row = TABLE[name]
    argv = [*config(name), "--model", stand_in(row.model), "--image_size", "32"]
    argv += ["--data_dir", str(data), "--output_dir", str(folder / "out"), "--max_steps", "2"]
    argv += ["--logging_steps", "1", "--disable_tqdm", "true"]
    if name.startswith("cub200"):
        save_file(timm.create_model("test_efficientnet").state_dict(), folder / "w.safetensors")
        argv += ["--weights", str(folder / "w.safetensors")]
    else:
        argv += ["--init_scratch"]
    if row.batch > row.m:
        argv += ["--batch_size", "4", "--per_device_train_batch_size", "2"]
    else:
        argv += ["--per_device_train_batch_size", "4"]
    return argv + (["--eval_steps", "2", "--save_steps", "2"] if row.every else [])


class Watch:
    """What happens in the training passes of a network: calls of a block, modes of BatchNorm."""

    def __init__(self, model: nn.Module) -> None:
        self.calls = 0
        self.modes: set[bool] = set()
        first = model.stages[0] if hasattr(model, "stages") else model
        block = first.blocks[0]
        block = block[0] if isinstance(block, nn.Sequential) else block
        block.register_forward_pre_hook(self.count)  # a recomputation stops before its end
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(partial(self.note, model))

    def count(self, module: nn.Module, *args: Any) -> None:
        self.calls += module.training

    def note(self, model: nn.Module, module: nn.Module, *args: Any) -> None:
        if model.training:
            self.modes.add(module.training)


@pytest.mark.parametrize("name", FOUND)
def test_two_steps(name: str, data_of: Any, tmp_path: Path) -> None:
    row = TABLE[name]
    parsed = parse_options(small(name, data_of(name.split("/")[0]), tmp_path))
    run = finetune.load(*parsed)
    trainer = finetune.build_trainer(parsed[0], parsed[2], run)
    network = run.classifier.model.timm_model
    head = network.get_classifier().weight
    assert bool((head == 0).all()) == (row.kwargs == VIT.kwargs)
    drops = any(isinstance(module, DropPath) for module in network.modules())
    assert drops == (getattr(network, "drop_rate", 0) == 0.5) == (row.kwargs == DROP)
    wrong = [label != i % 3 for i, label in enumerate(run.splits.train["label"])]
    assert sum(wrong) == round(row.label_noise * len(wrong))
    crop, augment, _, *after = trainer.train_dataset.transform.transforms
    assert isinstance(augment, AutoAugment) == (row.auto_augment == "cifar10")
    cropping = getattr(crop.transforms[0], "transforms", crop.transforms)[-1]
    assert isinstance(cropping, RandomCrop) == (row.crop_padding is not None)
    assert [stage.func for stage in after] == [blank_square] * (row.cutout is not None)
    watch = Watch(network)
    trainer.train()
    micro_batches = 2 * (2 if row.batch > row.m else 1)  # of two steps
    assert watch.calls == micro_batches * 2 * (2 if row.checkpointing else 1)  # two passes
    has_batch_norm = stand_in(row.model) != "test_vit"
    assert watch.modes == ({not row.frozen_batch_norm} if has_batch_norm else set())
    left = row.learning_rate * 2 / row.warmup if row.warmup else 0.0  # by cosine
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(left, abs=1e-12)
    groups = trainer.optimizer.param_groups
    momentum = 0.9 if row.optimizer.startswith("sgd") else None
    assert [(g["weight_decay"], g.get("momentum")) for g in groups] == [
        (row.weight_decay, momentum),
        (0, momentum),
    ]
    log = trainer.state.log_history
    assert sum("perturbed_loss" in entry for entry in log) == 2
    evaluated = sum("eval_top1_error" in entry for entry in log)
    assert evaluated == (parsed[2].eval_strategy != "no")


def test_a_head_that_starts_at_zero_does_so_beside_pretrained_weights(tmp_path: Path) -> None:
    """With another number of classes in the checkpoint, as all ViT recipes have it."""
    given = timm.create_model("test_vit", num_classes=5)
    save_file(given.state_dict(), tmp_path / "w.safetensors")
    for kwargs in (dict(VIT.kwargs), {}):
        overlay = {"file": str(tmp_path / "w.safetensors"), "num_classes": 5}
        as_from_the_hub = timm.create_model(
            "test_vit", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, **kwargs
        )
        argv = ["--model", "test_vit", "--weights", overlay["file"]]
        argv += ["--model_kwargs", json.dumps(kwargs), "--output_dir", str(tmp_path / "out")]
        argv += ["--image_size", "160"]  # that of the checkpoint
        ours = finetune.load(*parse_options(argv)).classifier.model
        for model in (as_from_the_hub, ours.timm_model):
            assert torch.equal(model.blocks[0].mlp.fc1.weight, given.blocks[0].mlp.fc1.weight)
            assert bool((model.head.weight == 0).all()) == bool(kwargs)


@pytest.mark.parametrize("name", FOUND)
def test_printed_options_ask_for_the_same_run(name: str, tmp_path: Path) -> None:
    printed = as_yaml(*parse_options(config(name)))
    (tmp_path / "printed.yaml").write_text(printed)
    again = ["--config", str(tmp_path / "printed.yaml")]
    assert yaml.safe_load(as_yaml(*parse_options(again))) == yaml.safe_load(printed)
    assert yaml.safe_load(printed)["rho"] == TABLE[name].rho
