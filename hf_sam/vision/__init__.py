"""Image classification: data, models and what is saved of them.

Images come from anywhere and leave as tensors, networks come from timm and leave as transformers'
models that both libraries load. Nothing here knows SAM or a trainer.
"""

from .classifier import Classifier, ModelSource, freeze_batch_norm, require_rgb
from .data import (
    EVAL_SPLITS,
    Splits,
    find_column,
    load_digits,
    load_hub,
    load_local,
    select_split,
    with_class_labels,
    with_label_noise,
)
from .dataset import EpochOfData, ImageDataset, drop_bad_images
from .decoding import MAX_IMAGE_PIXELS, BadImageError
from .memory import require_memory
from .models import load_classifier
from .transforms import build_transforms, resize_whole, soft_cross_entropy
from .weights import LoadReport
from .wide_resnet import CIFAR_NETWORKS

__all__ = [
    "CIFAR_NETWORKS",
    "EVAL_SPLITS",
    "MAX_IMAGE_PIXELS",
    "BadImageError",
    "Classifier",
    "EpochOfData",
    "ImageDataset",
    "LoadReport",
    "ModelSource",
    "Splits",
    "build_transforms",
    "drop_bad_images",
    "find_column",
    "freeze_batch_norm",
    "load_classifier",
    "load_digits",
    "load_hub",
    "load_local",
    "require_memory",
    "require_rgb",
    "resize_whole",
    "select_split",
    "soft_cross_entropy",
    "with_class_labels",
    "with_label_noise",
]
