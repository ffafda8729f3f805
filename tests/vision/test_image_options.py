"""What is done to images, labels and batches on request, by independent counts."""

import random
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from images import TINY, dataset, message_of, pictures, write_parquet
from PIL import Image

from hf_sam.finetuning.fields import BatchOptions
from hf_sam.finetuning.loading import load_splits, task_of
from hf_sam.finetuning.options import parse_options
from hf_sam.vision import (
    BadImageError,
    ImageDataset,
    Splits,
    build_transforms,
    with_label_noise,
)
from hf_sam.vision.transforms import blank_square

CONFIG = {
    "input_size": (3, 32, 32),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}


def labelled(count: int, classes: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"label": [i % classes for i in range(count)], "index": range(count)}
    )


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8, 1.0])
def test_label_noise_replaces_its_share_by_other_labels_uniformly(share: float) -> None:
    count, classes = 6000, 6
    rows = labelled(count, classes)
    before = np.asarray(rows["label"])
    after = np.asarray(with_label_noise(rows, share, classes=classes, seed=3)["label"])
    assert (before != after).sum() == round(share * count)
    moved = np.bincount((after - before) % classes, minlength=classes)[1:]
    spread = 5 * np.sqrt(share * count / (classes - 1)) + 1  # five standard deviations
    assert np.abs(moved - share * count / (classes - 1)).max() <= spread
    again = with_label_noise(rows, share, classes=classes, seed=3)
    assert list(again["label"]) == after.tolist()
    if share > 0:
        other = with_label_noise(rows, share, classes=classes, seed=4)
        assert list(other["label"]) != after.tolist()


def test_noise_and_holdout_leave_the_evaluation_split_alone(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path, count=12)
    words = ["--data_dir", str(folder), "--label_noise", "0.5"]

    def splits(*more: str, seed: int = 0) -> tuple[list[int], list[int], list[int]]:
        options = parse_options([*words, *more])[0]
        found = load_splits(options, task_of(options), seed=seed)
        return found.train["label"], found.eval["label"], list(found.train["index"])

    clean = [i % 3 for i in range(12)]
    train, evaluation, _ = splits()
    assert list(evaluation) == clean
    assert sum(a != b for a, b in zip(train, clean, strict=True)) == 6
    kept, held_out, indices = splits("--holdout", "0.25")
    assert (len(kept), len(held_out)) == (9, 3)
    assert all(train[i] == label for i, label in zip(indices, kept, strict=True))
    assert splits("--holdout", "0.25")[2] == indices != splits("--holdout", "0.25", seed=1)[2]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_held_out_images_have_their_share_of_noise(share: float, seed: int) -> None:
    """The draw of the noise and that of the held-out part must not be the same."""
    options = parse_options(["--label_noise", str(share), "--holdout", "0.1"])[0]
    clean = parse_options(["--holdout", "0.1"])[0]
    noisy, plain = (load_splits(o, task_of(o), seed=seed) for o in (options, clean))
    assert list(noisy.eval["index"]) == list(plain.eval["index"])
    for part in ("train", "eval"):
        given, true = (np.asarray(getattr(s, part)["label"]) for s in (noisy, plain))
        spread = 4 * np.sqrt(share * (1 - share) / len(true))  # four standard deviations
        assert (given != true).mean() == pytest.approx(share, abs=spread)


def test_what_is_split_off_is_the_same_with_every_seed_and_never_trained_on(tmp_path: Path) -> None:
    """Whether its images are held out for choosing settings, sampled, or have wrong labels."""
    words = ["--data_dir", str(write_parquet(tmp_path, count=24)), "--eval_share", "0.25"]

    def splits(*more: str, seed: int) -> Splits:
        options = parse_options([*words, *more])[0]
        return load_splits(options, task_of(options), seed=seed)

    measured = list(splits(seed=0).eval["index"])
    assert len(measured) == 6
    for seed in range(4):
        noisy = splits("--label_noise", "0.5", "--max_train_samples", "9", seed=seed)
        assert list(noisy.eval["index"]) == measured
        assert list(noisy.eval["label"]) == [i % 3 for i in measured]
        assert len(noisy.train) == 9
        trial = splits("--holdout", "0.5", seed=seed)
        parts = [*trial.train["index"], *trial.eval["index"]]
        assert sorted([*parts, *measured]) == list(range(24))
        assert not set(noisy.train["index"]) & set(measured)


@pytest.mark.parametrize(
    "options", ["--holdout 0.01", "--holdout 0.99", "--eval_share 0.01", "--eval_share 0.99"]
)
def test_shares_leave_images_in_both_parts(options: str, tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data")
    words = [*TINY, "--data_dir", str(folder), "--output_dir", str(tmp_path / "out")]
    said = message_of([*words, *options.split()])
    assert "must leave some in both parts: take more images, another share, or a split" in said


def test_cutout_blanks_one_square() -> None:
    torch.manual_seed(0)
    areas = []
    for _ in range(200):
        blanked = (blank_square(torch.ones(3, 32, 20), side=8) == 0).all(dim=0)  # (32, 20)
        rows, columns = blanked.any(dim=1).sum(), blanked.any(dim=0).sum()
        assert blanked.sum() == rows * columns, "one rectangle"
        assert 4 <= rows <= 8 and 4 <= columns <= 8, "its centre is in the image"
        areas.append(int(blanked.sum()))
    assert max(areas) == 64


def test_padded_crop_moves_the_image_and_keeps_its_pixels() -> None:
    train, _ = build_transforms(CONFIG, crop_padding=4, horizontal_flip=0.0)
    picture = pictures(1, size=(32, 32))[0]
    whole = torch.as_tensor(np.asarray(picture)).permute(2, 0, 1) / 127.5 - 1
    padded = torch.nn.functional.pad(whole, (4, 4, 4, 4), value=-1.0)
    windows = padded.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 9, 9, 32, 32)
    torch.manual_seed(0)
    found = set()
    for _ in range(30):
        crop = train(picture)
        same = (windows - crop[:, None, None]).abs().amax(dim=(0, 3, 4)) < 1e-5
        assert same.sum() == 1
        found.add(tuple(same.nonzero()[0].tolist()))
    assert len(found) > 15


def coordinates(width: int, height: int) -> Image.Image:
    """Red says how far right a pixel is, green how far down, from 0 to 255."""
    x = np.linspace(0, 255, width)[None].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, 0 * x], axis=2).round().astype("uint8"))


SHAPES = [(120, 60), (60, 120), (200, 31), (64, 64)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_squashed_evaluation_sees_all_of_an_image(width: int, height: int) -> None:
    config = {**CONFIG, "crop_pct": 0.875}
    image = coordinates(width, height)
    for squash in (True, False):
        _, transform = build_transforms(config, squash=squash)
        red, green, _ = transform(image)
        reach = [(c.amax() - c.amin()).item() / 2 for c in (red, green)]  # 1 is all of the image
        seen = (
            [1.0, 1.0]
            if squash
            else [0.875 * min(1, height / width), 0.875 * min(1, width / height)]
        )
        assert reach == pytest.approx(seen, abs=0.06)  # two of 32 pixels


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_squashed_crops_are_crops_of_the_squashed_image(width: int, height: int) -> None:
    """Shares of width and height whose product is the area's and whose ratio is in bounds."""
    torch.manual_seed(0)
    random.seed(0)
    train, _ = build_transforms(CONFIG, crop_scale=(0.25, 0.5), horizontal_flip=0.0, squash=True)
    shares = []
    for _ in range(200):
        red, green, _ = train(coordinates(width, height))
        shares.append([(c.amax() - c.amin()).item() / 2 for c in (red, green)])
    across, down = np.asarray(shares).T
    assert (across * down).min() > 0.25 - 0.05 and (across * down).max() < 0.5 + 0.05
    assert (across / down).min() > 0.75 * 0.85 and (across / down).max() < 4 / 3 * 1.15
    assert (across / down).min() < 0.9 and (across / down).max() > 1.1  # and they do vary


def test_cifars_policy_is_used_in_training_only() -> None:
    picture = pictures(1, size=(32, 32))[0]
    plain, plain_eval = build_transforms(CONFIG, crop_padding=1, horizontal_flip=0.0)
    policy, policy_eval = build_transforms(
        CONFIG, crop_padding=1, horizontal_flip=0.0, auto_augment="cifar10"
    )
    assert torch.equal(plain_eval(picture), policy_eval(picture))
    changed = 0
    for seed in range(10):
        torch.manual_seed(seed)
        first = plain(picture)
        torch.manual_seed(seed)
        changed += not torch.equal(first, policy(picture))
    assert changed >= 8


def test_cached_images_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import hf_sam.vision.dataset as module

    decode, calls = module.decode, []
    monkeypatch.setattr(module, "decode", lambda *a, **k: calls.append(a) or decode(*a, **k))
    rows = dataset(3).add_column("index", range(3))
    for cache, expected in ((True, 3), (False, 6)):
        calls.clear()
        images = ImageDataset(rows, np.asarray, split="train", cache=cache)
        for _ in range(2):
            for i in range(3):
                assert images[i]["pixel_values"].shape == (28, 20, 3)
        assert len(calls) == expected
    assert issubclass(BadImageError, ValueError)


@pytest.mark.parametrize("name", ["junk", "originals", "rand-q9", "3a-x1", "randx"])
def test_a_policy_that_timm_does_not_have(name: str) -> None:
    with pytest.raises(ValueError, match=f"must be cifar10 or a policy of timm .* got '{name}'"):
        build_transforms(CONFIG, auto_augment=name)


BATCHES = [
    ("--batch_size 64 --per_device_train_batch_size 16", (16, 4)),
    ("--batch_size 64 --m 4", (4, 16)),
    ("--m 4 --per_device_train_batch_size 16 --gradient_accumulation_steps 2", (4, 8)),
    ("--m 16 --per_device_train_batch_size 16", (16, 1)),
    ("--per_device_train_batch_size 16 --gradient_accumulation_steps 3", (16, 3)),
]


@pytest.mark.parametrize(("options", "expected"), BATCHES, ids=[o for o, _ in BATCHES])
def test_a_batch_is_split_as_asked(options: str, expected: tuple[int, int]) -> None:
    args = parse_options(options.split())[2]
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == expected


REFUSED = [
    ("--batch_size 60 --m 16", "`batch_size` must be a multiple of 16 images"),
    (
        "--batch_size 64 --m 16 --per_device_train_batch_size 8",
        "has no effect beside `batch_size` and `m`, got 8: leave one",
    ),
    ("--m 0", "`m` must be >= 1"),
    ("--batch_size 64 --gradient_accumulation_steps 2", "exclude each other"),
    ("--m 4 --ascent_scope global", "`m` goes with `ascent_scope` micro_batch"),
    ("--m 4 --method gsam", "`ascent_scope` micro_batch, got global, which is that of gsam"),
    ("--label_noise 1.5", "`label_noise` must be in [0, 1]"),
    ("--holdout 1", "`holdout` must be a share"),
    ("--eval_share 0", "`eval_share` must be a share"),
    ("--eval_share 0.1 --eval_split test", "`eval_share` and `eval_split` exclude each other"),
    ("--cutout 0", "`cutout` must be >= 1"),
    ("--crop_padding 4 --crop_scale 0.5 1", "exclude each other"),
]


@pytest.mark.parametrize("launched", ["FSDP", "DEEPSPEED"])
def test_one_perturbation_for_all_devices_has_no_m(
    launched: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = parse_options([])[2]
    monkeypatch.setenv(f"ACCELERATE_USE_{launched}", "true")
    with pytest.raises(ValueError, match="`m` must be left out under FSDP and DeepSpeed, got 16"):
        BatchOptions(m=16).apply(args)


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[o for o, _ in REFUSED])
def test_what_cannot_be_meant_is_refused(options: str, message: str) -> None:
    assert message in message_of(options.split())


@pytest.mark.parametrize(
    ("lines", "typed", "is_taken"),
    [
        ("m: 16\nbatch_size: 64", "--per-device-train-batch-size 8", False),
        ("m: 16", "--batch_size 64 --per_device_train_batch_size=8", False),
        ("m: 16\nbatch_size: 64\nper_device_train_batch_size: 8", "", False),
        ("batch_size: 64\nper_device_train_batch_size: 8", "--m 16", True),
        ("per_device_train_batch_size: 8", "--m 16 --batch_size 64", True),
    ],
)
def test_what_is_typed_may_leave_a_file_s_micro_batch_without_effect(
    lines: str, typed: str, is_taken: bool, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(lines)
    words = ["--config", str(tmp_path / "c.yaml"), *typed.split()]
    if is_taken:
        assert parse_options(words)[2].per_device_train_batch_size == 16
    else:
        assert "`per_device_train_batch_size` has no effect beside" in message_of(words)
