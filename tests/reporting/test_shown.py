"""Texts of the user's in cards and reports: no path of the machine, no markup of theirs."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import PartialState
from huggingface_hub import ModelCard
from places import CARDS

from hf_sam.comparing import cards
from hf_sam.comparing.comparison import Comparison, Trial
from hf_sam.diagnostics.card import card_section
from hf_sam.diagnostics.html import write_html
from hf_sam.diagnostics.report import Report
from hf_sam.finetuning.record import command_of
from hf_sam.reporting.commands import last_part, shown_command, without_path
from hf_sam.reporting.markdown import Markdown, code, code_block, escaped, table
from hf_sam.reporting.model_card import RunRecord, sam_section, write_run_card

COMPARISON = Comparison.read(CARDS / "cifar10-no_norm.json")
REPORT = Report.read(CARDS / "sharpness" / "cifar10-no_norm-seed1.json")

SHOWN = [
    ("/home/me/data", "data"),
    ("/home/me/data/", "data"),
    ("--data_dir=/home/my user/old,1/data", "--data_dir=data"),
    ("/home/o'brien/data", "data"),
    ("~/secret/data", "data"),
    ("~me/data", "data"),
    ("--weights=~/w.safetensors", "--weights=w.safetensors"),
    (r"C:\Users\me\data", "data"),
    ("--data-dir=C:/Users/me/data", "--data-dir=data"),
    (r"\\server\me\data", "data"),
    (r"~\data", "data"),
    ("file:///home/me/data", "data"),
    ("../../home/me/data", "data"),
    (r"..\me\data", "data"),
    ("runs/../../me/data", "data"),
    ("train=/home/me/train", "train=train"),
    ('{"file": "/home/me/my x/w.pt", "rate": 0.1}', '{"file": "w.pt", "rate": 0.1}'),
    (r'{"file": "C:\\Users\\me\\w.pt"}', '{"file": "w.pt"}'),
    ('["~/a/b", "/home/me/c"]', '["b", "c"]'),
    ("data/cub200", "data/cub200"),
    ("owner/name", "owner/name"),
    ("https://huggingface.co/owner/name", "https://huggingface.co/owner/name"),
    (r"\bnorm\d", r"\bnorm\d"),
    ("0.1,0.2", "0.1,0.2"),
    ("name=-1", "name=-1"),
]


@pytest.mark.parametrize(("word", "shown"), SHOWN)
def test_of_a_path_only_the_end_is_shown(word: str, shown: str) -> None:
    assert without_path(word) == shown
    assert without_path(shown) == shown


def test_commands_of_both_scripts_are_shown_so() -> None:
    words = ["--data_dir", "/home/me/data", r"--weights=C:\Users\me\w.pt", "--hub-token", "secret"]
    shown = "--data_dir data --weights=w.pt"
    assert command_of("finetune", words) == f"hf-sam finetune {shown}"
    told = shown_command(["python", *words, "--x", "hf_" + "a" * 34])
    assert told == f"python {shown} --hub-token *** --x ***"


LAUNCHED = [(True, 1, "accelerate launch --num_processes 1 -m hf_sam.comparing --rho 1")]
LAUNCHED += [(True, 4, "accelerate launch --num_processes 4 -m hf_sam.comparing --rho 1")]
LAUNCHED += [(False, 2, "torchrun --nproc_per_node 2 -m hf_sam.comparing --rho 1")]


@pytest.mark.parametrize(("by_accelerate", "processes", "shown"), LAUNCHED)
def test_the_command_starts_as_many_processes(
    by_accelerate: bool, processes: int, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    PartialState()
    monkeypatch.setitem(PartialState._shared_state, "num_processes", processes)
    if by_accelerate:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert command_of("compare", ["--rho", "1"]) == shown


def test_a_folder_without_a_name_is_called_by_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flowers" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "flowers" / "train")
    assert [last_part(path) for path in (".", "./", "..", "../", "a/b/")] == [
        "train", "train", "flowers", "flowers", "b",
    ]  # fmt: skip


EVIL = "<img src=x onerror=alert(1)>|`<b>`](javascript:alert(1))\n## [x](http://x) &lt;"


def assert_harmless(text: str) -> None:
    """No tag anywhere; no link, heading or row of theirs outside of code and metadata."""
    assert "<img" not in text and "<b>" not in text
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```|(?<!\\)`[^`]*`", "", text, flags=re.DOTALL)
    for part in ("](javascript", "](http://x", "\n## [x]"):
        assert part not in text, part


def evil_record() -> RunRecord:
    record = COMPARISON.record
    assert record.sam is not None
    return replace(
        record,
        dataset=EVIL,
        dataset_id=EVIL,
        base=EVIL,
        base_model=EVIL,
        eval_split=EVIL,
        report=EVIL,
        command=EVIL,
        hardware=EVIL,
        remarks=["<img src=x> is `code`"],
        data_license=EVIL,
        weights_license=EVIL,
        hyperparameters={**record.hyperparameters, "optim_args": EVIL, EVIL: 1},
        sam={**record.sam, "method_args": EVIL},
        data_options={"auto_augment": EVIL},
        model_options={"model_kwargs": {EVIL: EVIL}},
        versions={EVIL: EVIL},
    )


def test_card_shows_texts_as_they_are(tmp_path: Path) -> None:
    write_run_card(tmp_path / "README.md", evil_record())
    text = (tmp_path / "README.md").read_text()
    assert_harmless(text)
    assert "&lt;img src=x onerror=alert(1)&gt;" in text and "&lt;img src=x&gt; is `code`" in text
    settings = [line for line in text.splitlines() if line.startswith("| `optim_args`")]
    assert len(settings) == 1 and settings[0].count("|") - settings[0].count(r"\|") == 3
    assert ModelCard.load(tmp_path / "README.md").data.pipeline_tag == "image-classification"


def test_comparison_shows_texts_as_they_are(tmp_path: Path) -> None:
    first, *rest = COMPARISON.results
    comparison = replace(
        COMPARISON,
        command=EVIL,
        record=evil_record(),
        results=[replace(first, arm=EVIL, settings={EVIL: EVIL}), *rest],
        trials=[Trial(EVIL, {EVIL: EVIL}, 1.0, 0)],
    )
    cards.write_comparison_card(tmp_path / "README.md", comparison)
    assert_harmless((tmp_path / "README.md").read_text())


def test_report_shows_texts_as_they_are(tmp_path: Path) -> None:
    record = {"command": EVIL, "hyperparameters": {EVIL: EVIL}, "model_options": {"mean": EVIL}}
    evil = replace(REPORT.portraits[0], name="a", run=record)
    report = replace(
        REPORT, data=EVIL, split=EVIL, eval_split=EVIL, command=EVIL, portraits=[evil], date=EVIL,
        versions={EVIL: EVIL}, between=None,
    )  # fmt: skip
    assert_harmless(card_section(report, evil))
    write_html(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text()
    assert "<img src=x" not in page and "<b>" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 8


def test_markdown_stays_and_all_else_is_escaped() -> None:
    assert escaped(Markdown("**bold** <b>")) == "**bold** <b>"
    assert escaped("a_b [0.5, 1.0] {'x': 1}") == "a_b [0.5, 1.0] {'x': 1}"
    assert escaped("a\\`b`") == "a\\\\\\`b\\`"
    assert code("a`b|c") == "`a_b_c`" and code_block("x\n```\ny") == "```\nx_____y\n```"
    assert table([["a|b"], [Markdown("`c`")]]) == "| a\\|b |\n| --- |\n| `c` |"
    assert "`rho`" in sam_section({"rho": 0.1})


def test_card_has_what_the_network_takes(tmp_path: Path) -> None:
    options = {"image_size": 96, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    options["model_kwargs"] = {"drop_rate": 0.2}
    record = replace(COMPARISON.record, model_options=options)
    write_run_card(tmp_path / "README.md", record)
    text = (tmp_path / "README.md").read_text()
    assert (
        "| `image_size` | 96 |\n| `mean` | [0.5, 0.4, 0.3] |\n| `std` | [0.2, 0.2, 0.1] |" in text
    )
    assert "| `model_kwargs` | {'drop_rate': 0.2} |" in text
