"""Residual networks for images of 32x32 pixels (CIFAR), registered with timm, which has none."""

from typing import Any

from timm.layers import BatchNormAct2d, create_conv2d
from timm.models import ResNetV2, build_model_with_cfg, register_model
from torch import nn

CIFAR_NETWORKS = ("wide_resnet28_10", "resnet32", "wide_resnet10_2_no_norm")
CIFAR10_CFG = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "first_conv": "stem.conv",
    "classifier": "head.fc",
}
default_cfgs = dict.fromkeys(CIFAR_NETWORKS, CIFAR10_CFG)  # timm reads this name


class CifarResNet(ResNetV2):
    """timm's ResNet of pre-activation blocks (arXiv 1603.05027), the stem one 3x3 convolution.

    timm's own stems reduce an image by a factor of four, too much for 32 pixels.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        channels: tuple[int, ...],
        *,
        batch_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        """Build the network.

        Args:
            layers: Number of blocks of each stage.
            channels: Width of each stage; from the second on, a stage halves the image.
            batch_norm: Whether to normalise. If not, residual branches are initialised to zero,
                which keeps the activations' size through the depth (arXiv 2002.10444).
            **kwargs: Those of timm's ResNetV2.
        """
        super().__init__(
            layers,
            channels,
            basic=True,
            bottle_ratio=1.0,
            stem_chs=16,
            norm_layer=BatchNormAct2d if batch_norm else activation_only,
            conv_layer=create_conv2d,
            **kwargs,
        )
        self.stem = nn.Sequential()
        self.stem.add_module("conv", create_conv2d(self.in_chans, 16, 3))
        for stage in self.feature_info:
            stage["reduction"] = max(stage["reduction"] // 4, 1)
        self.init_weights(zero_init_last=not batch_norm)  # of the new stem too


def activation_only(features: int, **kwargs: Any) -> nn.Module:
    """Build a ReLU in place of timm's normalisation layer with activation."""
    return nn.ReLU()


def _build(name: str, pretrained: bool, **kwargs: Any) -> CifarResNet:
    features = {"flatten_sequential": True, "out_indices": (0, 1, 2, 3)}
    return build_model_with_cfg(CifarResNet, name, pretrained, feature_cfg=features, **kwargs)


def wide_resnet28_10(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Build WRN-28-10 (arXiv 1605.07146): 36.5 million parameters, shortcuts by 1x1 convolution."""
    return _build(
        "wide_resnet28_10", pretrained, layers=(4, 4, 4), channels=(160, 320, 640), **kwargs
    )


def resnet32(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Build the ResNet-32 of CIFAR (arXiv 1512.03385, section 4.2) from pre-activation blocks.

    The original normalises after each convolution, and its shortcuts pad with zeros.
    """
    return _build("resnet32", pretrained, layers=(5, 5, 5), channels=(16, 32, 64), **kwargs)


def wide_resnet10_2_no_norm(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """Build a WRN-10-2 without normalisation, whose Hessian is not affected by BatchNorm.

    The paper's spectra (section 4.2 of arXiv 2010.01412) are of a WRN-40-10 without it.
    """
    return _build(
        "wide_resnet10_2_no_norm",
        pretrained,
        layers=(1, 1, 1),
        channels=(32, 64, 128),
        batch_norm=False,
        **kwargs,
    )


for _entrypoint in (wide_resnet28_10, resnet32, wide_resnet10_2_no_norm):
    register_model(_entrypoint)
