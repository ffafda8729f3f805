"""Run as a process of its own: a notebook is executed in a folder, and saved with what it shows."""

import sys
from pathlib import Path

import nbformat
import offline  # noqa: F401  # no network
from nbclient import NotebookClient

if __name__ == "__main__":
    source, folder = map(Path, sys.argv[1:])
    notebook = nbformat.read(source, as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(folder)}}).execute()
    nbformat.write(notebook, folder / source.name)
