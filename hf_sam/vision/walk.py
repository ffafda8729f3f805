"""Search for files below a folder: follows links, skips hidden files, finds each file once."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


class Walk:
    """Finds files in one or more folders, and counts those that it leaves out."""

    def __init__(self, suffixes: frozenset[str]) -> None:
        """Set the suffixes to search for, such as `.png`; upper and lower case are the same."""
        self.suffixes = suffixes
        self.left_out: Counter[str] = Counter()  # number of files, by reason
        self.found: set[tuple[int, int]] = set()  # device and inode of each file

    def files(self, folder: Path, *, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
        """Yield the files with these suffixes in a folder and its subfolders, in order of names.

        Args:
            folder: Where to search.
            above: The real paths of its parents; a link back to one of them is not followed.
        """
        real = folder.resolve()
        if real in above:
            return
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = Path(entry.path)
            if not entry.is_dir():
                if self._is_wanted(entry):
                    yield path
            elif not is_hidden(path):
                yield from self.files(path, above=above | {real})
            elif hidden := sum(1 for _ in Walk(self.suffixes).files(path)):
                self.left_out[f"in the hidden folder {path.name}"] += hidden

    def _is_wanted(self, entry: os.DirEntry[str]) -> bool:
        """Whether a file has one of the suffixes and is new; counts it if not."""
        suffix = Path(entry.name).suffix.lower()
        reason = None
        if is_hidden(Path(entry.name)):
            reason = "hidden" if suffix in self.suffixes else None
        elif not entry.is_file():
            reason = "links to nothing"
        elif suffix not in self.suffixes:
            reason = f"of an unread kind ({suffix or 'no ending'})"
        elif not _is_text(entry.path):
            reason = "whose names are not in UTF-8"
        else:
            status = os.stat(entry.path)
            key = (status.st_dev, status.st_ino)
            if key not in self.found:
                self.found.add(key)
                return True
            reason = "found before, under another name"
        if reason is not None:
            self.left_out[reason] += 1
        return False


def folders_in(folder: Path) -> list[Path]:
    """Return the subfolders of a folder, including links to folders, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path))


def is_hidden(path: Path) -> bool:
    """Whether a file or folder is hidden, or macOS metadata in an archive."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def _is_text(path: str) -> bool:
    """Whether a path is valid UTF-8; Python marks other bytes by surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
