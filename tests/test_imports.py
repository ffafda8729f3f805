"""Which room may import which: the arrows run one way, a line for each room."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import patience
import pytest
from places import ROOT

PACKAGE = ROOT / "hf_sam"
# What each room may import of the package; itself and what stands before it at most.
ROOMS = {
    "ascent": "",
    "average_rule": "",
    "config": "ascent average_rule",
    "backends": "ascent config",
    "step": "ascent average_rule config backends",
    "reporting": "ascent config",
    "metrics": "",
    "averaging": "ascent average_rule config backends step",
    "trainer": "ascent averaging config backends step reporting",
    "vision": "step",  # the draws of `step/replay.py`
    "diagnostics": "ascent step reporting vision",
    "finetuning": "hf_sam metrics reporting vision",  # hf_sam: the public names
    "comparing": "hf_sam step reporting diagnostics finetuning",
    "cli": "hf_sam",
    "__main__": "cli",
    "__init__": "ascent config step trainer",
}
# Libraries that one room needs and importing `hf_sam` must not load.
OPTIONAL = {
    "timm": {"vision", "finetuning"},
    "matplotlib": {"diagnostics", "comparing"},
    "evaluate": {"metrics"},
    "deepspeed": {"backends"},
}


def imported(path: Path) -> Iterator[str]:
    """Names that a file imports: a room of the package with a dot before it, else a library."""
    package = ["hf_sam", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1]
            target = [*above, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                room = [*target, alias.name][1]
                is_room = any((PACKAGE / name).exists() for name in (room, f"{room}.py"))
                yield f".{room}" if is_room else ".hf_sam"


def files_of(room: str) -> list[Path]:
    file = PACKAGE / f"{room}.py"
    return [file] if file.is_file() else sorted((PACKAGE / room).rglob("*.py"))


def test_every_file_is_in_a_room() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")}
    assert {name.removesuffix(".py") for name in rooms} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_the_arrows_run_one_way(room: str) -> None:
    allowed = {f".{name}" for name in (room, *ROOMS[room].split())}
    for path in files_of(room):
        names = set(imported(path))
        assert {name for name in names if name.startswith(".")} <= allowed, path
        assert not {name for name in names if room not in OPTIONAL.get(name, {room})}, path


def test_no_arrow_makes_a_circle() -> None:
    order = [name for name in ROOMS if not name.startswith("__")]
    for i, room in enumerate(order):
        later = set(order[i:])
        assert not later & set(ROOMS[room].split()), room


def test_the_mathematics_needs_torch_only() -> None:
    for path in files_of("ascent"):
        libraries = {name for name in imported(path) if not name.startswith(".")}
        assert libraries <= {*sys.stdlib_module_names, "torch", "numpy"}, path


def test_one_file_of_a_room_draws() -> None:
    for room in ("diagnostics", "comparing"):
        drawing = {path.name for path in files_of(room) if "matplotlib" in set(imported(path))}
        assert drawing <= {"plots.py", "overview.py"}


def test_recipes_use_public_names_only() -> None:
    for path in (ROOT / "recipes").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_sam"):
                assert not any(alias.name.startswith("_") for alias in node.names), path


@pytest.mark.parametrize("module", ["hf_sam", "hf_sam.diagnostics", "hf_sam.cli"])
def test_importing_the_package_is_light(module: str) -> None:
    code = f"import sys, {module}; print({set(OPTIONAL)!r} & set(sys.modules))"
    out = patience.run([sys.executable, "-c", code])
    assert out.stdout.strip() == "set()"
