"""Loads image data sets and image classifiers, and transforms the images for training.

A new source of images or models is a new file here; every source must return `Splits` or
`Classifier`, and nothing is downloaded unless the user has named it.
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
)
from .dataset import EpochOfData, ImageDataset, without_bad_images
from .decoding import MAX_IMAGE_PIXELS, BadImageError
from .memory import require_memory
from .models import load_classifier
from .sampling import split_off, with_label_noise
from .splits import select_splits
from .tasks import TASKS, Task, load_task
from .transforms import build_transforms, resize_whole, soft_cross_entropy
from .weights import LoadReport
from .wide_resnet import CIFAR_NETWORKS

__all__ = [
    "CIFAR_NETWORKS",
    "EVAL_SPLITS",
    "MAX_IMAGE_PIXELS",
    "TASKS",
    "BadImageError",
    "Classifier",
    "EpochOfData",
    "ImageDataset",
    "LoadReport",
    "ModelSource",
    "Splits",
    "Task",
    "build_transforms",
    "find_column",
    "freeze_batch_norm",
    "load_classifier",
    "load_digits",
    "load_hub",
    "load_local",
    "load_task",
    "require_memory",
    "require_rgb",
    "resize_whole",
    "select_split",
    "select_splits",
    "soft_cross_entropy",
    "split_off",
    "with_class_labels",
    "with_label_noise",
    "without_bad_images",
]
