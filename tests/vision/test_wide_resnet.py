"""The networks for 32 pixels: their size, and folders that two libraries load."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from transformers import AutoModelForImageClassification

from hf_sam.vision import CIFAR_NETWORKS, ModelSource, load_classifier


# of WRN-28-10 with 1x1 shortcuts, as in every PyTorch version of it (arXiv 1605.07146 prints 36.5M)
@pytest.mark.parametrize(
    ("name", "parameters", "width"),
    [
        ("wide_resnet28_10", 36_479_194, 640),
        ("resnet32", 466_714, 64),
        ("wide_resnet10_2_no_norm", 302_778, 128),
    ],
)
def test_size_of_the_network(name: str, parameters: int, width: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
        assert model.forward_features(torch.empty(2, 3, 32, 32)).shape == (2, width, 8, 8)
        features = timm.create_model(name, features_only=True)(torch.empty(2, 3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == parameters
    convolutions = [
        m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] == 3
    ]
    depths = {"wide_resnet28_10": 25, "resnet32": 31, "wide_resnet10_2_no_norm": 7}
    assert len(convolutions) == depths[name]
    assert [f.shape[-1] for f in features] == [32, 32, 16, 8]


def test_feature_maps_are_announced_at_their_size() -> None:
    info = timm.create_model("resnet32", features_only=True).feature_info
    assert info.reduction() == [1, 1, 2, 4]


def test_weights_start_at_one_scale() -> None:
    """The stem too, which replaces timm's own; by fan out, as in the official code."""
    torch.manual_seed(0)
    model = timm.create_model("wide_resnet28_10")
    for module in (model.stem.conv, model.stages[1].blocks[0].conv1):
        fan_out = module.out_channels * 9
        weight = module.weight.detach()
        assert float(weight.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        assert weight.abs().max() > 2.5 * weight.std()  # normal; torch's own start is uniform


def test_network_without_normalisation_begins_with_its_shortcuts() -> None:
    """Each residual branch adds nothing yet, and no module normalises."""
    torch.manual_seed(0)
    model = timm.create_model("wide_resnet10_2_no_norm")
    kinds = {type(module).__name__ for module in model.modules()}
    assert not any("Norm" in kind for kind in kinds)
    branches = [m for n, m in model.named_modules() if n.endswith(".conv2")]
    assert len(branches) == 3 and not any(m.weight.any() for m in branches)


def test_saved_model_loads_in_both_libraries(tmp_path: Path) -> None:
    assert all(timm.is_model(name) for name in CIFAR_NETWORKS)
    torch.manual_seed(0)
    source = ModelSource("resnet32", init_scratch=True, model_kwargs={"drop_path_rate": 0.1})
    classifier = load_classifier(source, ["cat", "dog", "hen"])
    assert classifier.data_config["input_size"] == (3, 32, 32)
    assert classifier.data_config["mean"] == (0.4914, 0.4822, 0.4465)
    images = torch.randn(2, 3, 32, 32)
    classifier.model(images)  # moves the running statistics
    classifier.model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = classifier.model.eval()(images).logits
        wrapped = AutoModelForImageClassification.from_pretrained(tmp_path)
        assert torch.equal(wrapped.eval()(images).logits, expected)
        plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        assert torch.equal(plain.eval()(images), expected)
