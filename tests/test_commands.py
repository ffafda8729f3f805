"""Every command line of the documents: the program that it names takes it."""

import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from places import ROOT
from test_documents import DOCUMENTS
from transformers import HfArgumentParser

from hf_sam import SAMConfig, cli
from hf_sam.comparing.command_line import command_line_parser
from hf_sam.comparing.plan import parse_plan
from hf_sam.diagnostics.__main__ import command_line as report_parser
from hf_sam.finetuning.options import _command_line_parser, parse_options

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FINETUNE = ("recipes/finetune.py", "hf_sam.finetuning")
TEXTS = ("recipes/text_classification.py", "hf_sam.recipes.text_classification")
COMPARE = ("recipes/compare.py", "hf_sam.comparing")
# Programs of others, and what needs no words.
LEFT_ALONE = {"source", "export", "pre-commit", "cd", "git"}


def commands() -> Iterator[object]:
    for path in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", path.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield pytest.param(words, id=f"{path.name}: {' '.join(words)[:60]}")


@pytest.mark.parametrize("words", list(commands()))
def test_the_command_is_taken(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_TOKEN", "hf_of_no_one")
    program, *rest = words
    if program == "make":
        require_target(rest[0])
    elif program == "pip":
        require_installable(rest)
    elif program == "hf-sam":
        require_command(rest[0], rest[1:])
    elif program == "python":
        require_python(rest)
    elif program == "bash":
        assert (ROOT / rest[0]).is_file()
        require_stages(rest[1:], (ROOT / rest[0]).read_text())
    elif words[:2] == ["accelerate", "launch"]:
        options = launch_command_parser().parse_args(words[2:])
        require_python(
            ["-m"] * bool(options.module) + [options.training_script, *options.training_script_args]
        )
    else:
        assert program in LEFT_ALONE or words == ["accelerate", "config"], words


def text_parser() -> HfArgumentParser:
    spec = importlib.util.spec_from_file_location("texts", ROOT / "recipes/text_classification.py")
    texts = importlib.util.module_from_spec(spec)
    sys.modules["texts"] = texts  # for its dataclass
    spec.loader.exec_module(texts)
    return HfArgumentParser((texts.TextOptions, SAMConfig))


def require_target(name: str) -> None:
    assert f"\n{name}:" in (ROOT / "Makefile").read_text(), name


def require_installable(words: Sequence[str]) -> None:
    assert words[0] == "install"
    in_clone = words[1] == "-e"
    for word in words[1 + in_clone :]:
        package, _, extras = word.rstrip("]").partition("[")
        assert package == ("." if in_clone else PROJECT["name"]), word
        assert {extra for extra in extras.split(",") if extra} <= set(
            PROJECT["optional-dependencies"]
        )


def require_command(name: str, words: Sequence[str]) -> None:
    assert name in cli.COMMANDS
    if name == "finetune":
        parse_options([word for word in words if word != "--help"])
    elif name == "compare":
        parse_plan(words)
    else:
        report_parser().parse_args(words)


def require_python(words: Sequence[str]) -> None:
    name, *rest = [word for word in words if word != "-m"]
    if name in FINETUNE:
        require_command("finetune", rest)
    elif name in COMPARE:
        require_command("compare", rest)
    elif name == "hf_sam.diagnostics":
        require_command("report", rest)
    elif name in TEXTS:
        text_parser().parse_args(rest)
    elif "-m" in words:
        assert importlib.util.find_spec(name), name
        assert all((ROOT / word).exists() for word in rest if "/" in word), words
    else:
        assert (ROOT / name).is_file(), name


def require_stages(names: Sequence[str], script: str) -> None:
    """A script's words are its cases."""
    for name in names:
        assert re.search(rf"^\s*{name}\)", script, flags=re.MULTILINE), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_options_named_in_the_text_exist(path: Path) -> None:
    known = set()
    parsers = (_command_line_parser(), command_line_parser(), report_parser(), text_parser())
    for parser in (*parsers, launch_command_parser()):
        known |= {name for action in parser._actions for name in action.option_strings}
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for name in re.findall(r"(?<![\w-])--[a-z]\w*(?![\w-]*-)", text):
        assert name in known, f"{path.name}: {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_in_the_text_exist(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for name in re.findall(r"`((?:tests|benchmarks|hf_sam|recipes)/[\w./]+\.(?:py|sh|yaml))", text):
        assert (ROOT / name).is_file(), f"{path.name}: {name}"
    for target in re.findall(r"`make (\w+)", text):
        require_target(target)
