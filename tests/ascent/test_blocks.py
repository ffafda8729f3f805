"""The blocks of a network are those of its library, and the last of them are what is perturbed."""

import re

import pytest
import timm
import torch
from cases import build
from timm.models import group_parameters
from tiny_transformers import bert, llama, t5, vit
from torch import nn

from hf_sam import SAMConfig
from hf_sam.ascent.blocks import blocks_of, last_blocks
from hf_sam.ascent.selection import perturbed_parameters

TIMM = [
    "mobilenetv2_035",
    "tf_efficientnet_lite0",
    "test_vit",
    "resnet18",
    "test_convnext",
    "swin_tiny_patch4_window7_224",
    "regnetx_002",
    "mixer_s32_224",
]


@pytest.mark.parametrize("name", TIMM)
def test_timm_divides_its_networks(name: str) -> None:
    """No two blocks have the same rate when rates fall layer by layer, and none has several."""
    with torch.device("meta"):
        model = timm.create_model(name)
    groups = group_parameters(model, model.group_matcher(coarse=False))
    group_of = {param: number for number, params in groups.items() for param in params}
    blocks = blocks_of(model)
    numbers = [
        {group_of[f"{block}.{name}"] for name, _ in model.get_submodule(block).named_parameters()}
        for block in blocks
    ]
    flat = [number for (number,) in numbers]
    assert flat == sorted(set(flat))
    assert len(groups) - 3 <= len(blocks) <= len(groups)  # a stem, what follows, the head


@pytest.mark.parametrize(
    ("make", "count", "first"),
    [
        (vit, 2, "vit.layers.0"),
        (llama, 2, "model.layers.0"),
        (bert, 2, "bert.encoder.layer.0"),
        (t5, 4, "encoder.block.0"),
    ],
    ids=["vit", "llama", "bert", "t5"],
)
def test_transformers_divides_its_networks(make: object, count: int, first: str) -> None:
    assert (len(blocks_of(make())), blocks_of(make())[0]) == (count, first)


@pytest.mark.parametrize("name", ["cait_xxs24_224", "coat_tiny", "hrnet_w18_small"])
def test_timm_divides_some_by_a_function(name: str) -> None:
    with torch.device("meta"):
        assert len(blocks_of(timm.create_model(name))) > 3


def test_blocks_that_share_all_with_earlier_ones_have_nothing_to_perturb() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].weight, model[2].bias = model[0].weight, model[0].bias
    with pytest.raises(ValueError, match="has none in this model"):
        perturbed_parameters(model, "last:0.1")


def test_a_model_inside_another_is_found() -> None:
    with torch.device("meta"):
        net = timm.create_model("test_vit")
    names = blocks_of(nn.ModuleDict({"net": net}))
    assert names == [f"net.{name}" for name in blocks_of(net)]


def test_lists_divide_other_networks() -> None:
    def block() -> nn.Module:
        return nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Sequential(nn.Linear(2, 2), nn.ReLU())})

    stages = nn.Sequential(nn.Sequential(block(), block()), nn.Sequential(block()))
    model = nn.ModuleDict({"stem": nn.Linear(2, 2), "stages": stages, "head": nn.Linear(2, 2)})
    assert blocks_of(model) == ["stages.0.0", "stages.0.1", "stages.1.0"]
    assert blocks_of(build("dropout")) == ["body.1", "body.4"]
    assert blocks_of(stages) == ["0.0", "0.1", "1.0"]
    # the blocks of an inner list come where it stands, and not after all others
    mixed = nn.Sequential(nn.Sequential(block(), block()), block(), block(), nn.Linear(2, 2))
    assert blocks_of(mixed) == ["0.0", "0.1", "1", "2"]
    assert {name.partition(".")[0] for name in named(mixed, 0.25)} == {"2", "3"}


def named(model: nn.Module, share: float) -> set[str]:
    chosen = last_blocks(model, share)
    return {name for name, param in model.named_parameters() if param in chosen}


@pytest.mark.parametrize(
    ("share", "first"), [(1.0, 0), (0.5, 6), (0.33, 8), (0.25, 9), (0.1, 11), (1e-9, 11)]
)
def test_what_follows_the_last_blocks_belongs_to_them(share: float, first: int) -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    numbers = {int(n.split(".")[1]) for n in named(model, share) if n.startswith("blocks.")}
    assert numbers == set(range(first, 12))
    others = {name for name in named(model, share) if not name.startswith("blocks.")}
    assert others == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_shared_weights_belong_to_where_they_are_first() -> None:
    """A head that has the embedding's table is not moved: its gradient needs the whole network."""
    assert named(llama(), 0.5) >= {"model.norm.weight"}
    assert "model.embed_tokens.weight" not in named(llama(), 0.5)


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("`perturb=last:0.3` must find blocks, got a L")):
        perturbed_parameters(nn.Linear(2, 2), "last:0.3")


@pytest.mark.parametrize(
    "perturb", ["last:0", "last:1.5", "last:", "last:x", "last:nan", "last:-1"]
)
def test_the_share_is_checked_before_a_run(perturb: str) -> None:
    with pytest.raises(ValueError, match=f"share above 0 and at most 1, got '{perturb}'"):
        SAMConfig(output_dir="unused", perturb=perturb)
