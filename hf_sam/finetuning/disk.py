"""Detection of a full disk from the errors of several libraries, with one message for all."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's quota, a limit on files
# Messages of safetensors, which has the number as text, and of PyTorch, which has none.
IN_WORDS = re.compile(
    rf"os error ({'|'.join(map(str, FULL))})\b|PytorchStreamWriter failed|unexpected pos \d+ vs"
)


class DiskFullError(Exception):
    """The disk is full; the caller adds to the message how to continue."""

    def __init__(self, folder: Path, reason: str) -> None:
        """Build the message from the folder and the reason."""
        super().__init__(f"the disk of {str(folder)!r} is full ({reason}): make room there")
        self.folder = folder


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Context manager that turns any library's error on a full disk into a `DiskFullError`.

    Args:
        folder: The folder that is written to.

    Raises:
        DiskFullError: If the disk is full, or the user's quota is used up.
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
    """Return the message that the disk is full, from an error or its causes, or None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.strerror
        if IN_WORDS.search(text := str(error)):
            return " ".join(text.split())
        error = error.__cause__ or error.__context__
    return None
