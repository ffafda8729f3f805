"""Memory for cached images: an estimate of what they need, and of what is available."""

from pathlib import Path

import psutil  # type: ignore[import-untyped]  # accelerate's

from .dataset import ImageDataset

BYTES_PER_PIXEL = 4  # of RGB in Pillow
CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
NO_LIMIT = 1 << 60  # larger values mean no limit in version 1; version 2 has "max"


def require_memory(images: ImageDataset, *, copies: int) -> str:
    """Estimate the memory for caching all images, and raise if it is not available.

    Args:
        images: A sample of them is decoded.
        copies: Number of processes that cache them.

    Returns:
        A message with the estimate.

    Raises:
        ValueError: If it needs more memory than is available.
    """
    needed, left = copies * bytes_to_keep(images), memory_left()
    said = f"{len(images)} images in {copies} {'processes' if copies > 1 else 'process'}"
    said = f"`cache_images` takes about {readable(needed)} for {said}"
    if needed > left:
        raise ValueError(
            f"{said}, and {readable(left)} of memory are left: leave it out, lower "
            "`dataloader_num_workers`, or make the image files smaller."
        )
    return f"{said}; {readable(left)} of memory are left"


def bytes_to_keep(images: ImageDataset, *, sample: int = 64) -> int:
    """Estimate the memory for all images from an evenly spaced sample; takes about a second."""
    chosen = range(0, len(images), max(1, len(images) // sample))
    sizes = [images.decoded_image(index).size for index in chosen]
    pixels = sum(width * height for width, height in sizes)
    return round(BYTES_PER_PIXEL * pixels * len(images) / len(sizes))


def memory_left() -> int:
    """Return the available memory of the machine or container, in bytes."""
    return min(psutil.virtual_memory().available, *left_in_cgroups())


def readable(count: int) -> str:
    """Format a number of bytes in MB or GB."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"


def left_in_cgroups(root: Path = CGROUPS, own: Path = OWN) -> list[int]:
    """Return the bytes that each cgroup limit leaves; the page cache counts as available."""
    left = [NO_LIMIT]
    for folder, limit, used, cache in _cgroup_files(root, own):
        try:
            most = (folder / limit).read_text().strip()
            now = int((folder / used).read_text())
            kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no limit, or not readable
            continue
        if most != "max":
            left.append(int(most) - now + int(kept.get(cache, 0)))
    return left


def _cgroup_files(root: Path, own: Path) -> list[tuple[Path, str, str, str]]:
    """Return the folders with this process's limits, and the names of the files in them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    found: list[tuple[Path, str, str, str]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            names = ("memory.max", "memory.current", "inactive_file")
            base = root
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = root / "memory"
        else:
            continue
        inner = base / path.lstrip("/")
        found += [
            (folder, *names) for folder in (inner, *inner.parents) if folder.is_relative_to(base)
        ]
    return found
