"""A full disk, by the errors that it shows itself in, and one message for all of them."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's quota, a limit on files
# Of safetensors, which gives the number only as text; and of PyTorch, which gives none.
IN_WORDS = re.compile(
    rf"os error ({'|'.join(map(str, FULL))})\b|PytorchStreamWriter failed|unexpected pos \d+ vs"
)


class DiskFullError(Exception):
    """What was to be written had no room; the message is to be followed by how to go on."""

    def __init__(self, folder: Path, reason: str) -> None:
        """Say where and why."""
        super().__init__(f"the disk of {str(folder)!r} is full ({reason}): make room there")
        self.folder = folder


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn what a full disk raises into one error, whichever library was writing.

    Args:
        folder: What is written to.

    Raises:
        DiskFullError: If the disk is full, or the user may write no more.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        raise DiskFullError(folder, reason) from error


def _reason(error: BaseException | None) -> str | None:
    """Return what says in an error, or in those it came from, that there is no room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.strerror
        if IN_WORDS.search(text := str(error)):
            return " ".join(text.split())
        error = error.__cause__ or error.__context__
    return None
