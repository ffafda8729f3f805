"""Random choices among the rows of a data set: a part to measure on, wrong labels."""

import datasets
import numpy as np


def split_off(
    rows: datasets.Dataset, share: float, *, option: str, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split a share of the rows off, drawn at random.

    Args:
        rows: All rows.
        share: Fraction of them that is split off.
        option: The option that `share` comes from.
        seed: Seed of the draw.

    Returns:
        The rows that are left, and those that are split off.

    Raises:
        ValueError: If one of the parts would be empty.
    """
    if round(share * len(rows)) in (0, len(rows)):
        raise ValueError(
            f"`{option}` {share} of {len(rows)} images must leave some in both parts: take more "
            "images, another share, or a split for it (`--eval_split`; to choose settings in "
            "hf-sam compare, `--sweep_split`)."
        )
    parts = rows.train_test_split(test_size=round(share * len(rows)), seed=seed)
    return parts["train"], parts["test"]


def with_label_noise(
    rows: datasets.Dataset, share: float, *, classes: int, seed: int
) -> datasets.Dataset:
    """Add symmetric label noise: replace labels by other classes (section 3.3 of arXiv 2010.01412).

    Args:
        rows: As `Splits` has them.
        share: Fraction of the rows whose label is replaced, in [0, 1]; they are drawn at random.
        classes: Number of classes; each of the other ones is equally likely.
        seed: Seed of both draws.

    Returns:
        The rows with `label` changed.
    """
    random = np.random.default_rng([seed, 1])  # not the stream that a held-out part is drawn from
    labels = np.asarray(rows["label"])
    replaced = random.permutation(len(labels))[: round(share * len(labels))]
    labels[replaced] = (labels[replaced] + random.integers(1, classes, len(replaced))) % classes
    return rows.remove_columns("label").add_column("label", labels.tolist())
