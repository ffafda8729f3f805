"""All files below a folder, each once: links are followed, what is hidden is counted and left."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


class Walk:
    """Finds files, and remembers over several folders which ones it has found and left out."""

    def __init__(self, suffixes: frozenset[str]) -> None:
        """Look for files of these kinds, such as `.png`; a name may have capitals."""
        self.suffixes = suffixes
        self.left_out: Counter[str] = Counter()  # number of files, by what is said of them
        self.found: set[tuple[int, int]] = set()  # device and number of each file

    def files(self, folder: Path, *, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
        """Yield the files of the kinds looked for in a folder and all below, in order of names.

        Args:
            folder: Where to look.
            above: The real paths of the folders it is in: a link back to one of them ends there.
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
        """Whether a file is of a kind looked for and was not found before; if not, count it."""
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
    """Return the folders directly in a folder, links to folders too, hidden ones not."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path))


def is_hidden(path: Path) -> bool:
    """Whether a name is one that programs give to what is not for the user's eyes."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def _is_text(path: str) -> bool:
    """Whether a path can be written down; Python marks the bytes that cannot."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
