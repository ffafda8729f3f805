"""Images kept in memory: the same pixels, and no more of them than there is room for."""

import sys
from pathlib import Path

import patience
import psutil
import pytest
import torch
from folders import write
from images import TINY

from hf_sam.finetuning import finetune
from hf_sam.finetuning.options import parse_options
from hf_sam.vision import ImageDataset, memory, require_memory


def training_images(root: Path, *options: str) -> ImageDataset:
    argv = [*TINY, "--data_dir", str(root), "--output_dir", str(root.parent / "out"), *options]
    data, model, args = parse_options(argv)
    return finetune.build_trainer(data, args, finetune.load(data, model, args)).train_dataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve images of 20x28 pixels to train on."""
    return write(tmp_path / "data", ["{train,test}/{a,b,c}/{1,2,3,4}.png"])


@pytest.mark.parametrize("crop", ["--crop_padding 4", "--crop_scale 0.25 1", "--squash"])
def test_kept_images_give_the_same_pixels(crop: str, root: Path) -> None:
    plain, kept = (training_images(root, *crop.split(), *o) for o in ((), ("--cache_images",)))
    for epoch in range(3):
        for images in (plain, kept):
            images.epoch.fill_(epoch)
        for i in range(len(plain)):
            assert torch.equal(plain[i]["pixel_values"], kept[i]["pixel_values"])
    sizes = {image.size for image in kept.decoded.values()}
    assert sizes == ({(32, 32)} if "padding" in crop else {(20, 28)})


def test_the_estimate_is_what_the_images_take(root: Path) -> None:
    """Pillow's own count of bytes is of three a pixel; it keeps four, as its process shows."""
    images = training_images(root)
    assert (
        memory.bytes_to_keep(images) == memory.bytes_to_keep(images, sample=3) == 12 * 20 * 28 * 4
    )
    code = "import psutil; from PIL import Image; before = psutil.Process().memory_info().rss\n"
    code += "kept = [Image.new('RGB', (2000, 2000), (1, 2, 3)) for _ in range(8)]\n"
    code += "print(psutil.Process().memory_info().rss - before)"  # where no memory lies about freed
    command = [sys.executable, "-c", code]
    grown = int(patience.run(command).stdout)
    assert grown == pytest.approx(8 * 2000 * 2000 * memory.BYTES_PER_PIXEL, rel=0.1)


def test_images_beyond_the_memory_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_left", lambda: 12 * 20 * 28 * 4)
    images = training_images(root)
    assert "takes about 0 MB for 12 images in 1 process;" in require_memory(images, copies=1)
    with pytest.raises(ValueError, match=r"12 images in 2 processes, and .* are left: leave it ou"):
        require_memory(images, copies=2)
    with pytest.raises(ValueError, match="in 2 processes"):
        training_images(root, "--cache_images", "--dataloader_num_workers", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="in 3 processes"):
        training_images(root, "--cache_images")


CGROUPS = {
    "version 2": (
        {
            "a/b/memory.max": "max",
            "a/b/memory.current": "10",
            "a/b/memory.stat": "inactive_file 5",
            "a/memory.max": "100",
            "a/memory.current": "70",
            "a/memory.stat": "anon 9\ninactive_file 20",
        },
        "0::/a/b\n",
        50,
    ),
    "version 1": (
        {
            "memory/x/memory.limit_in_bytes": "90",
            "memory/x/memory.usage_in_bytes": "40",
            "memory/x/memory.stat": "total_inactive_file 1",
        },
        "5:cpu:/\n4:hugetlb,memory:/x\n0::/\n",
        51,
    ),
    "none": ({}, "0::/\n", memory.NO_LIMIT),
}


@pytest.mark.parametrize("kind", CGROUPS)
def test_the_limit_of_a_container_counts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, own, left = CGROUPS[kind]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert min(memory.left_in_cgroups(tmp_path, tmp_path / "own")) == left
    assert memory.memory_left() <= psutil.virtual_memory().total


def test_sizes_are_for_readers() -> None:
    sizes = [memory.readable(size) for size in (2.5e8, 3.24e9, 1.2e11)]
    assert sizes == ["250 MB", "3.2 GB", "120.0 GB"]
