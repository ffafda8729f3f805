"""The notebook runs from top to bottom, offline, and shows what it says."""

import sys
from pathlib import Path

import nbformat
import patience
from places import ROOT, SUPPORT

NOTEBOOK = ROOT / "recipes" / "quickstart.ipynb"


def test_runs_from_top_to_bottom(tmp_path: Path) -> None:
    patience.run([sys.executable, SUPPORT / "run_notebook.py", NOTEBOOK, tmp_path])
    notebook = nbformat.read(tmp_path / NOTEBOOK.name, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 6
    text = "".join(output.get("text", "") for output in outputs)
    for said in ("base: top-1 error", "SAM: top-1 error", "lambda_max", "recommended: "):
        assert said in text


def test_is_committed_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
