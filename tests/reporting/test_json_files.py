"""JSON that is cut short, edited or of another type: one message with file, fault and remedy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatness
import pytest
from places import CARDS

from hf_sam.comparing import cards
from hf_sam.comparing.comparison import Comparison
from hf_sam.diagnostics.report import Report, kept_portrait
from hf_sam.reporting.json_files import MOST_LEVELS, read_json, write_json
from hf_sam.reporting.model_card import RunRecord

COMPARISON = CARDS / "cifar10-no_norm.json"
REPORT = CARDS / "sharpness" / "cifar10-no_norm-seed1.json"
READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "comparison": (Comparison.read, COMPARISON.read_text()),
    "record": (RunRecord.read, json.dumps(json.loads(COMPARISON.read_text())["record"])),
    "report": (Report.read, REPORT.read_text()),
}
DAMAGES: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "no text": lambda text: "\udcff\udcfe",
    "nested": lambda text: "[" * 100_000 + "]" * 100_000,
    "nested, but read": lambda text: '{"date": ' + "[" * 200 + "]" * 200 + "}",
    "a list": lambda text: "[]",
    "null": lambda text: "null",
    "a number": lambda text: "3",
    "no entries": lambda text: "{}",
    "an unknown entry": lambda text: '{"colour": 1, ' + text.lstrip()[1:],
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_gets_one_message(kind: str, damage: str, tmp_path: Path) -> None:
    read, text = READERS[kind]
    path = tmp_path / "x.json"
    path.write_bytes(DAMAGES[damage](text).encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"x\.json' .*: restore it, or") as said:
        read(path)
    assert "\n" not in str(said.value)
    path.write_text(text)
    assert read(path)


EDITS = [
    ("comparison", "results", []),
    ("comparison", "results.0.metrics", {}),
    ("comparison", "results.0.metrics.eval_top1_error", None),
    ("comparison", "results.0.metrics.eval_top1_error", 1e999),
    ("comparison", "results.1.settings.rho", 0.1),
    ("comparison", "trials.0.held_out_error", "low"),
    ("comparison", "record", 7),
    ("record", "metrics", {"eval_loss": 1.0}),
    ("record", "sam.rho", "0.1"),
    ("record", "sam.method", ["sam"]),
    ("record", "hyperparameters", [1]),
    ("record", "gradient_evaluations", 1.5),
    ("record", "seconds", True),
    ("record", "remarks", "one"),
    ("report", "portraits", []),
    ("report", "portraits.1.run.sam", [[1]]),
    ("report", "portraits.0.sharpness.by_m", {"4": 0.1}),
    ("report", "portraits.0.sharpness.by_m", {"four": 0.1}),
    ("report", "portraits.0.hessian.eigenvalues", []),
    ("report", "portraits.0.hessian.eigenvalues", [[1], [1, 2]]),
    ("report", "portraits.1.rho_scan.cosines", [0.5]),
    ("report", "plan.m", 3),
    ("report", "portraits.0.error", 10**400),
]


@pytest.mark.parametrize(("kind", "at", "value"), EDITS, ids=[f"{e[0]} {e[1]}" for e in EDITS])
def test_an_edited_entry_is_named(kind: str, at: str, value: Any, tmp_path: Path) -> None:
    read, text = READERS[kind]
    values = parent = json.loads(text)
    *way, last = [int(step) if step.isdigit() else step for step in at.split(".")]
    for step in way:
        parent = parent[step]
    assert last in parent or len(parent) > last
    parent[last] = value
    (tmp_path / "x.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"x\.json' does not hold what it must: ") as said:
        read(tmp_path / "x.json")
    named = [step for step in (*way, last) if isinstance(step, str)]
    assert any(step in str(said.value) for step in named[-2:])


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    for name in ("none", "loop", "dangling", "folder"):
        with pytest.raises(ValueError, match=rf"{name}' cannot be read \(.*: restore it"):
            RunRecord.read(tmp_path / name)


def test_records_of_earlier_versions_are_read() -> None:
    """Some without `model_options`, which they had not; all that is committed."""
    older = 0
    for path in [*CARDS.glob("*.json"), *CARDS.glob("records/*/*/run.json")]:
        found = Comparison.read(path).record if path.parent == CARDS else RunRecord.read(path)
        written = json.loads(path.read_text())
        options = (written["record"] if path.parent == CARDS else written).get("model_options")
        assert found.model_options == (options or {})
        older += options is None
    assert older > 5


def test_commands_end_in_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    path.write_text(COMPARISON.read_text()[:500])
    with pytest.raises(SystemExit, match=r"cards\.py: .*x\.json' is no whole JSON"):
        cards.main([str(path)])
    path.write_text(COMPARISON.read_text())
    (tmp_path / "sharpness").mkdir()
    (tmp_path / "sharpness" / "x-seed0.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"x-seed0\.json' does not hold what it must: the content"):
        cards.main([str(path)])
    with pytest.raises(SystemExit, match=r"cards\.py: .*none\.json' cannot be read"):
        cards.main([str(tmp_path / "none.json")])
    monkeypatch.setattr(flatness, "FOLDER", tmp_path / "sharpness")
    with pytest.raises(SystemExit, match=r"flatness\.py: .*x-seed0\.json'"):
        flatness.main()


def test_a_damaged_portrait_counts_as_none(tmp_path: Path) -> None:
    portrait = Report.read(REPORT).portraits[0]
    portrait.keep(tmp_path / "0.json", ["weights", 3])
    kept = kept_portrait(tmp_path / "0.json", ["weights", 3])
    assert kept is not None and kept.sharpness == portrait.sharpness
    assert kept_portrait(tmp_path / "0.json", ["others", 3]) is None
    for damage in DAMAGES.values():
        text = damage((tmp_path / "0.json").read_text())
        (tmp_path / "1.json").write_bytes(text.encode(errors="surrogateescape"))
        assert kept_portrait(tmp_path / "1.json", ["weights", 3]) is None


def test_a_failed_write_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


def test_levels_are_counted(tmp_path: Path) -> None:
    for levels in (MOST_LEVELS, MOST_LEVELS + 1):
        (tmp_path / "x.json").write_text("[" * levels + "1" + "]" * levels)
        if levels == MOST_LEVELS:
            assert read_json(tmp_path / "x.json", list[Any], remedy="") != []
        else:
            with pytest.raises(ValueError, match="more than 20 levels deep"):
                read_json(tmp_path / "x.json", list[Any], remedy="")
