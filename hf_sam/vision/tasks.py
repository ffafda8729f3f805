"""The table of known data sets: where they are, their sizes, and the paper's results on them.

Sources: Foret et al. (arXiv 2010.01412), table 3; the figures are top-1 errors in percent. Split
sizes are those of the pinned revision. We have not loaded them from the Hub ourselves: `hf-sam
finetune` checks the sizes when it loads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import datasets

from .data import load_digits, load_hub


@dataclass(frozen=True)
class PaperErrors:
    """The paper's top-1 errors in percent on the test split, means of five runs."""

    b7_sam: float  # EfficientNet-b7 with SAM
    b7: float
    l2_sam: float  # EfficientNet-L2 with SAM
    l2: float

    def __str__(self) -> str:
        """Format as one sentence."""
        return (
            f"Foret et al. report {self.b7_sam:.2f} % top-1 error with SAM and {self.b7:.2f} % "
            f"without for EfficientNet-b7, {self.l2_sam:.2f} % and {self.l2:.2f} % for L2."
        )


@dataclass(frozen=True)
class Task:
    """One data set, with its defaults."""

    hub_id: str | None  # None: bundled with scikit-learn
    classes: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)  # examples by split, where known
    revision: str | None = None
    train_split: str = "train"
    eval_split: str | None = "test"  # None: the first of the usual ones
    image_column: str | None = "image"  # None: the only column of images
    label_column: str | None = "label"  # None: the only column of class labels
    data_files: Mapping[str, str] | None = None  # by split, if the repository holds more
    paper: PaperErrors | None = None
    model: str = "timm/efficientnet_b0.ra_in1k"
    init_scratch: bool = False
    image_size: int | None = None  # pixels; None: the model's own
    crop_scale: tuple[float, float] = (0.08, 1.0)  # fraction of the area; the paper's for ImageNet
    horizontal_flip: float = 0.5
    squash: bool = False  # whether whole images of any shape are resized to a square
    license: str | None = None  # of the data, as the Hub states it; None: not stated
    limits: str = ""  # caveat for a reader of the results


TASKS: dict[str, Task] = {
    "digits": Task(
        hub_id=None,
        classes=10,
        sizes={"train": 1437, "test": 360},
        model="resnet10t",
        init_scratch=True,
        image_size=32,
        crop_scale=(0.7, 1.0),
        horizontal_flip=0.0,  # mirrored digits are not digits
        limits="Scans of 8x8 pixels, bundled with scikit-learn: a check that all works.",
    ),
    "fgvc_aircraft": Task(
        hub_id="HuggingFaceM4/FGVC-Aircraft",
        revision="refs/pr/1",
        classes=100,
        sizes={"train": 3334, "validation": 3333, "test": 3333},
        train_split="train+validation",
        label_column="variant",
        paper=PaperErrors(b7_sam=6.80, b7=8.15, l2_sam=4.82, l2=5.80),
        license="non-commercial research only",
    ),
    "oxford_flowers": Task(
        hub_id="dpdl-benchmark/oxford_flowers102",
        classes=102,
        sizes={"train": 1020, "validation": 1020, "test": 6149},
        train_split="train+validation",
        paper=PaperErrors(b7_sam=0.63, b7=1.16, l2_sam=0.35, l2=0.40),
    ),
    "oxford_pets": Task(
        hub_id="timm/oxford-iiit-pet",
        classes=37,
        sizes={"train": 3680, "test": 3669},
        license="cc-by-sa-4.0",
        paper=PaperErrors(b7_sam=3.97, b7=4.24, l2_sam=2.90, l2=3.08),
    ),
    "stanford_cars": Task(
        hub_id="tanganke/stanford_cars",
        revision="9abf6cf7d6dfa7b95152a0d6e791ea9435b47a40",
        classes=196,
        sizes={"train": 8144, "test": 8041},
        data_files={"train": "data/train-*.parquet", "test": "data/test-*.parquet"},
        paper=PaperErrors(b7_sam=5.18, b7=5.94, l2_sam=4.04, l2=4.93),
    ),
    "cifar10": Task(
        hub_id="uoft-cs/cifar10",
        classes=10,
        sizes={"train": 50000, "test": 10000},
        image_column="img",
        paper=PaperErrors(b7_sam=0.88, b7=0.95, l2_sam=0.30, l2=0.34),
    ),
    "cifar100": Task(
        hub_id="uoft-cs/cifar100",
        classes=100,
        sizes={"train": 50000, "test": 10000},
        image_column="img",
        label_column="fine_label",
        paper=PaperErrors(b7_sam=7.44, b7=7.68, l2_sam=3.92, l2=4.07),
    ),
    "birdsnap": Task(
        hub_id="mteb/birdsnap",
        revision="fd23015508be94f0b5b59d61630e4ea2536509e4",
        classes=500,
        sizes={"test": 1851},
        label_column="common",
        paper=PaperErrors(b7_sam=13.64, b7=14.30, l2_sam=9.93, l2=10.31),
        limits="The copy is incomplete (1,851 of 2,443 test images, one corrupt training image: "
        "pass --skip_bad_images): not comparable with the paper.",
    ),
    "food101": Task(
        hub_id="ethz/food101",
        classes=101,
        sizes={"train": 75750, "validation": 25250},
        eval_split="validation",
        paper=PaperErrors(b7_sam=7.02, b7=7.17, l2_sam=3.82, l2=3.97),
    ),
    "imagenet": Task(
        hub_id="ILSVRC/imagenet-1k",
        classes=1000,
        sizes={"train": 1281167, "validation": 50000},
        eval_split="validation",
        paper=PaperErrors(b7_sam=15.14, b7=15.3, l2_sam=11.39, l2=11.8),
        license="non-commercial use only",
        limits="Gated: accept its terms on the Hub first.",
    ),
}


def load_task(task: Task) -> datasets.DatasetDict:
    """Load all splits of a known data set, bundled or from the Hub.

    Raises:
        ValueError: If they cannot be loaded.
    """
    if task.hub_id is None:
        return load_digits()
    return load_hub(task.hub_id, revision=task.revision, data_files=task.data_files)
