"""Who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH_ONLY = ("perturbation", "schedule", "selection", "replay", "distributed", "step_log")
TORCH_ONLY += ("shards", "vectors", "buffers", "holders", "counted")
METHODS = tuple(f"methods/{path.stem}" for path in (ROOT / "hf_sam" / "methods").glob("*.py"))


def imports(path: Path) -> set[str]:
    """Top-level names of what a file imports; relative imports as `.module`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("module", TORCH_ONLY + METHODS)
def test_the_mathematics_needs_torch_only(module: str) -> None:
    found = imports(ROOT / "hf_sam" / f"{module}.py")
    allowed = {*sys.stdlib_module_names, *TORCH_ONLY, "torch", "numpy"}
    allowed |= {name.split("/")[-1] for name in METHODS}
    assert not {name for name in found if name.lstrip(".") not in allowed}


def test_diagnostics_know_nothing_of_training_with_sam() -> None:
    """And one file of theirs draws."""
    for path in (ROOT / "hf_sam" / "diagnostics").glob("*.py"):
        found = imports(path)
        assert not found & {"..trainer", "..config", "..ascent"}, path
        assert ("matplotlib" in found) == (path.name == "plots.py"), path


def test_recipes_use_public_modules_only() -> None:
    for path in (ROOT / "recipes").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_sam"):
                assert not any(alias.name.startswith("_") for alias in node.names), path


@pytest.mark.parametrize("module", ["hf_sam", "hf_sam.diagnostics"])
def test_importing_the_package_is_light(module: str) -> None:
    code = f"import sys, {module}; print({{'matplotlib', 'timm', 'evaluate'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
