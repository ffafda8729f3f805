"""The classifiers that the command measures, with the records of their training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.utils import logging

from ..reporting.json_files import read_json
from ..vision import Classifier, ModelSource, load_classifier
from ..vision.decoding import first_line
from .report import require_shown

logger = logging.get_logger("report")
RECORD, CONFIG = "run.json", "config.json"  # files of a run of hf-sam finetune


@dataclass(frozen=True)
class Trained:
    """A trained classifier, and the record of its training."""

    classifier: Classifier
    run: Mapping[str, Any]  # empty without a record

    def require_images(self, eval_share: float | None, max_train_samples: int | None) -> None:
        """Raise a ValueError if the training had other images than these options give.

        A record without a share is of a training that left out none, or of an earlier version.
        """
        recorded = dict(self.run.get("data_options") or {})
        share, most = (recorded.get(name) for name in ("eval_share", "max_train_samples"))
        if eval_share is not None and share not in (None, eval_share):
            raise ValueError(
                f"`--eval_share` must be that of the training, {share}, got {eval_share}: other "
                "images would be called unseen."
            )
        if eval_share is not None and share is None and self.run:
            logger.warning(
                "the record of the training has no `eval_share`: unless it had this one, the error "
                "is that on training images"
            )
        if most not in (None, max_train_samples):
            raise ValueError(
                f"`--max_train_samples` must be that of the training, {most}, got "
                f"{max_train_samples}: it did not train on the others."
            )
        for name in ("label_noise", "holdout"):
            if name in recorded:
                logger.warning(
                    f"the training had `{name}` {recorded[name]}, which the report has not: its "
                    "images and labels are those of the data"
                )


def training_seed(models: Sequence[Trained], otherwise: int) -> int:
    """Return the seed by which `hf-sam finetune` drew a sample of the training images.

    Raises:
        ValueError: If the models are of different seeds.
    """
    recorded = [trained.run.get("seed") for trained in models]
    seeds = {otherwise if seed is None else int(seed) for seed in recorded}
    if len(seeds) > 1:
        raise ValueError(
            "`--max_train_samples` must go with models of one seed, which draws the sample, got "
            f"{' and '.join(map(str, sorted(seeds)))}: report on each by itself."
        )
    return seeds.pop()


def load_trained(name: str, label_names: Sequence[str]) -> Trained:
    """Load a classifier that was trained on these labels.

    Args:
        name: A folder, or an image classifier on the Hub.
        label_names: (classes,) the names of the data's classes.

    Raises:
        ValueError: If it cannot be loaded, or was trained on other labels.
    """
    if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/"))):
        raise ValueError(
            f"the model must be a folder that a classifier was saved to, or owner/name on the Hub, "
            f"got {name!r}: check the path."
        )
    run = _record_of(Path(name))
    try:
        classifier = load_classifier(ModelSource(name), label_names)
    except ValueError as error:
        if error.__cause__ is None:
            raise
        raise ValueError(
            f"`{name}` cannot be loaded ({first_line(error.__cause__)}): save the classifier to a "
            "folder again, or check its name on the Hub and the network."
        ) from error
    if classifier.report.head_drawn_anew or classifier.report.missing:
        raise ValueError(
            f"`{name}` must be a classifier of the {len(label_names)} classes of the data, got "
            f"{classifier.report}: measure it on the data that it was trained on."
        )
    own, given = (list(map(_plain, names)) for names in (_label_names(name), label_names))
    if own != given and set(own) & set(given):
        raise ValueError(
            f"`{name}` must be a classifier of the data's classes in their order, got "
            f"{_shown(own)} for {_shown(given)}: measure it on the data that it was trained on."
        )
    if own and own != given:
        logger.warning(
            f"the classes of {name} are called {_shown(own)}, those of the data {_shown(given)}: "
            "they are taken in their order"
        )
    return Trained(classifier, run)


def _label_names(name: str) -> list[str]:
    """Return the names of a saved classifier's classes; none where they are transformers' own."""
    found = AutoConfig.from_pretrained(name).id2label
    names = [str(found[i]) for i in range(len(found))]
    return [] if names == [f"LABEL_{i}" for i in range(len(names))] else names


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


def _record_of(folder: Path) -> Mapping[str, Any]:
    """Return the record of a model's training, empty where there is none.

    Raises:
        ValueError: If it, or the model's configuration, is damaged.
    """
    if (config := folder / CONFIG).is_file():
        read_json(config, Mapping[str, Any], remedy="save the model to that folder again")
    record = folder / RECORD
    if not (record.exists() or record.is_symlink()):  # a broken link counts as damaged
        return {}
    remedy = "restore it, or remove it: the report says nothing of the training then"
    return read_json(record, Mapping[str, Any], remedy=remedy, check=require_shown)
