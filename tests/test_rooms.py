"""How the package's files are cut: each says what it is for, and none is too long to be read."""

import ast
import re
from pathlib import Path

import pytest
from places import ROOT

FILES = sorted((ROOT / "hf_sam").rglob("*.py"))
ROOMS = [path for path in FILES if path.name == "__init__.py" and path.parent.name != "hf_sam"]
LINES, LINES_OF_A_FUNCTION = 300, 60


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "hf_sam"))


of_files = pytest.mark.parametrize("path", FILES, ids=name)
of_rooms = pytest.mark.parametrize("path", ROOMS, ids=name)


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


@of_files
def test_the_first_line_says_the_idea(path: Path) -> None:
    """A sentence, which may begin with a command in code."""
    first, *more = docstring(path).split("\n")
    assert re.fullmatch(r"[A-Za-z`].*[^.]\.", first), first
    assert not more or more[0] == "", "the sentence ends with its line"


@of_files
def test_no_file_is_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES


@of_files
def test_no_function_is_too_long(path: Path) -> None:
    lengths = {
        node.name: int(node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: n for name, n in lengths.items() if n > LINES_OF_A_FUNCTION} == {}


@of_rooms
def test_a_room_says_what_it_is_and_what_grows_there(path: Path) -> None:
    sentences = re.findall(r"[^.]\.(?=\s|$)", docstring(path))
    assert len(sentences) >= 2
