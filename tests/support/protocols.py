"""What each recipe must come to, typed from the sources and not from the recipes."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """What a recipe comes to, in one process; the defaults are Foret et al.'s fine-tuning."""

    model: str
    image_size: int  # pixels
    learning_rate: float
    batch: int  # images of an optimizer step
    m: int  # images that share a perturbation
    steps: int | None = None
    epochs: float | None = None
    rho: float = 0.05
    weight_decay: float = 1e-5
    clip: float = 5.0
    warmup: float = 0
    optimizer: str = "sgd momentum=0.9 cosine"
    frozen_batch_norm: bool = False
    checkpointing: bool = False
    kwargs: tuple[tuple[str, Any], ...] = ()  # of timm.create_model
    scratch: bool = False
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_padding: int | None = None
    flip: float = 0.5
    auto_augment: str | None = None
    cutout: int | None = None
    smoothing: float = 0.0
    label_noise: float = 0.0
    mean: tuple[float, ...] | None = None  # None: the model's own
    std: tuple[float, ...] | None = None
    every: int | None = None  # steps between evaluations; None: each epoch, or none at all
    skip_bad_images: bool = False
    squash: bool = False


DROP = (("drop_rate", 0.5), ("drop_path_rate", 0.2))
B7 = Protocol(
    "timm/tf_efficientnet_b7.ra_in1k", 600, 0.016, 1024, 16, steps=5000, every=500,
    frozen_batch_norm=True, checkpointing=True, kwargs=DROP,
)  # fmt: skip
L2 = Protocol(
    "timm/tf_efficientnet_l2.ns_jft_in1k_475", 475, 0.008, 512, 4, steps=10000, every=1000,
    frozen_batch_norm=True, checkpointing=True, kwargs=DROP,
)  # fmt: skip
VIT = Protocol(
    "timm/vit_base_patch16_224.augreg_in21k", 384, 0.01, 512, 64, weight_decay=0.0, clip=1.0,
    kwargs=(("weight_init", "jax"),),
)  # fmt: skip
B0 = Protocol("timm/efficientnet_b0.ra_in1k", 224, 0.02, 64, 64)
LITE0 = Protocol(
    "timm/tf_efficientnet_lite0.in1k", 112, 0.02, 64, 64, epochs=15, crop_scale=(0.25, 1.0),
)  # fmt: skip
WRN = Protocol(
    "wide_resnet28_10", 32, 0.1, 256, 32, epochs=200, weight_decay=5e-4, scratch=True,
    crop_padding=4,
)  # fmt: skip
CIFAR100_PIXELS = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)}
WRN100 = replace(WRN, rho=0.1, **CIFAR100_PIXELS)

VIT_STEPS = {  # learning rate, steps, warm-up, steps between evaluations
    "oxford_pets": (0.003, 500, 100, 100),
    "oxford_flowers": (0.003, 500, 100, 100),
    "cifar10": (0.003, 10000, 500, 1000),
    "cifar100": (0.01, 10000, 500, 1000),
    "imagenet": (0.01, 20000, 500, 2000),
    "fgvc_aircraft": (0.01, 2000, 500, 200),
    "stanford_cars": (0.01, 2000, 500, 200),
    "birdsnap": (0.01, 2000, 500, 200),
    "food101": (0.01, 10000, 500, 1000),
}
B0_EPOCHS = {
    "oxford_pets": 50, "oxford_flowers": 100, "cifar10": 20, "cifar100": 20, "imagenet": 3,
    "fgvc_aircraft": 100, "stanford_cars": 100, "birdsnap": 30, "food101": 10,
}  # fmt: skip


def fine_tuning(data: str) -> dict[str, Protocol]:
    rate, steps, warmup, every = VIT_STEPS[data]
    rows = {
        "efficientnet_b7": B7,
        "efficientnet_l2": L2,
        "vit_base_patch16": replace(
            VIT, learning_rate=rate, steps=steps, warmup=warmup, every=every
        ),
        "efficientnet_b0": replace(B0, epochs=B0_EPOCHS[data]),
    }
    if data.startswith("cifar"):
        for name, padding in (("b7", 75), ("l2", 59), ("b0", 28)):  # 4 of 32 pixels, enlarged
            row = rows[f"efficientnet_{name}"]
            augmented = replace(row, auto_augment="cifar10", crop_padding=padding)
            rows[f"efficientnet_{name}"] = augmented
    if data == "imagenet":
        ten = {"learning_rate": 0.1, "steps": None, "epochs": 10, "every": None}
        rows["efficientnet_b7"] = replace(B7, **ten)
        rows["efficientnet_l2"] = replace(L2, **ten, clip=1.0, smoothing=0.1)
        keeps_head = {"learning_rate": 0.01, "frozen_batch_norm": True}
        rows["efficientnet_b0"] = replace(rows["efficientnet_b0"], **keeps_head)
    return {
        f"{data}/{name}": replace(row, skip_bad_images=data == "birdsnap")
        for name, row in rows.items()
    }


TABLE = {name: row for data in VIT_STEPS for name, row in fine_tuning(data).items()} | {
    "cifar10/wide_resnet28_10": WRN,
    "cifar10/wide_resnet28_10_cutout": replace(WRN, cutout=16),
    "cifar10/wide_resnet28_10_autoaugment": replace(WRN, auto_augment="cifar10"),
    "cifar100/wide_resnet28_10": WRN100,
    "cifar100/wide_resnet28_10_cutout": replace(WRN100, cutout=16),
    "cifar100/wide_resnet28_10_autoaugment": replace(WRN100, auto_augment="cifar10"),
    "cifar10/resnet32_label_noise": replace(WRN, model="resnet32", rho=0.1, label_noise=0.4),
    "cifar10/wide_resnet10_2_no_norm": Protocol(
        "wide_resnet10_2_no_norm", 32, 0.1, 64, 64, epochs=20, weight_decay=5e-4, scratch=True,
        crop_padding=4,
    ),
    "oxford_flowers/efficientnet_lite0": LITE0,
    "oxford_flowers/vit_small_patch14": Protocol(
        "timm/vit_small_patch14_dinov2.lvd142m", 168, 5e-5, 64, 64, epochs=15, weight_decay=0.05,
        clip=1.0, warmup=32, optimizer="adamw_torch None cosine", crop_scale=(0.25, 1.0),
    ),
    "stanford_cars/efficientnet_lite0": replace(LITE0, epochs=30, squash=True),
    "cub200_first50/mobilenetv2_035": Protocol(
        "mobilenetv2_035", 144, 0.02, 64, 64, epochs=15, rho=0.1, crop_scale=(0.5, 1.0),
        mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), kwargs=(("pad_type", "same"), ("bn_eps", 0.001)),
    ),
}  # fmt: skip
