"""A comparison names the file in a run's folder that was cut, edited or put there, and a remedy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from images import TINY, write_parquet

from hf_sam.comparing import compare
from hf_sam.comparing.comparison import Comparison


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data"))


def words(data: Path, out: Path) -> list[str]:
    options = "--num_train_epochs 2 --max_steps=-1 --save_strategy=epoch --arms sam --seeds 1"
    options += " --max_train_samples 8 --max_eval_samples 6"
    return [*TINY, "--data_dir", str(data), "--output_dir", str(out), *options.split()]


@pytest.fixture(scope="module")
def ended(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ended") / "out"
    compare.main(words(data, folder))
    return folder


@pytest.fixture
def out(ended: Path, tmp_path: Path) -> Path:
    return shutil.copytree(ended, tmp_path / "out")


def refusal(argv: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        compare.main(argv)
    said = str(stop.value.code)
    assert "\n" not in said and len(said) < 1000
    return said


def without(*names: str) -> Callable[[str], str]:
    return lambda text: json.dumps({n: v for n, v in json.loads(text).items() if n not in names})


def changed(**values: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | values)


DAMAGES: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[1]",
    "nothing": lambda text: "null",
    "nested": lambda text: '{"a":' * 100_000,
    "not text": lambda text: "\udcff" + text,
}
RECORDS = {
    "without metrics": without("metrics"),
    "without seconds": without("seconds"),
    "with more": changed(more=1),
    "metrics of another kind": changed(metrics=[1, 2]),
    "metrics without the error": changed(metrics={"eval_loss": 1.0}),
    "an error in words": changed(metrics={"eval_top1_error": "ten"}),
    "seconds in words": changed(seconds="1 min"),
    "settings of another kind": changed(hyperparameters=None),
    "sam of another kind": changed(sam=[0.1]),
}


@pytest.mark.parametrize("name", ["options.json", "run.json"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file(name: str, damage: Any, data: Path, out: Path) -> None:
    path = out / "sam-seed0" / name
    path.write_bytes(damage(path.read_text()).encode(errors="surrogateescape"))
    said = refusal(words(data, out))
    assert f"'{path}' " in said
    assert "restore it, or remove the folder it is in and train anew" in said


@pytest.mark.parametrize("damage", RECORDS.values(), ids=RECORDS)
def test_an_edited_record(damage: Any, data: Path, out: Path) -> None:
    path = out / "sam-seed0" / "run.json"
    path.write_text(damage(path.read_text()))
    said = refusal(words(data, out))
    assert f"'{path}' does not hold what it must" in said
    assert "restore it, or remove the folder it is in and train anew" in said


def test_the_remedy_works(data: Path, out: Path, ended: Path) -> None:
    (out / "sam-seed0" / "run.json").write_text("{")
    refusal(words(data, out))
    shutil.rmtree(out / "sam-seed0")
    compare.main(words(data, out))
    one, other = (folder / "sam-seed0" / "model.safetensors" for folder in (out, ended))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", ["checkpoint-2", "model.safetensors", "notes", "gone"])
@pytest.mark.parametrize("is_ended", [True, False])
def test_a_link_in_a_runs_folder(
    name: str, is_ended: bool, data: Path, out: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine")
    link = out / "sam-seed0" / name
    link.unlink(missing_ok=True)
    link.symlink_to(elsewhere / "none" if name == "gone" else elsewhere)
    if not is_ended:
        (out / "sam-seed0" / "run.json").unlink()
    assert f"'{link}' is a link" in refusal(words(data, out))
    assert (elsewhere / "precious").read_text() == "mine"
    link.unlink()


def test_a_runs_folder_may_lie_elsewhere(data: Path, out: Path, tmp_path: Path) -> None:
    (out / "sam-seed0").rename(tmp_path / "elsewhere")
    (out / "sam-seed0").symlink_to(tmp_path / "elsewhere")
    compare.main(words(data, out))


STATES = {name: DAMAGES[name] for name in ("empty", "cut", "a list", "nested")}


@pytest.mark.parametrize("damage", STATES.values(), ids=STATES)
def test_a_damaged_state_is_passed_over(damage: Any, data: Path, out: Path, ended: Path) -> None:
    """As that of a killed run: it begins anew, or goes on from an older checkpoint."""
    folder = out / "sam-seed0"
    (folder / "run.json").unlink()
    (folder / "checkpoint-2").mkdir()
    shutil.copy(folder / "trainer_state.json", folder / "checkpoint-2")
    state = folder / "checkpoint-2" / "trainer_state.json"
    state.write_bytes(damage(state.read_text()).encode())
    compare.main(words(data, out))
    assert not list(folder.glob("checkpoint-*"))
    one, other = (at / "sam-seed0" / "model.safetensors" for at in (out, ended))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_comparison_is_written_anew(damage: Any, data: Path, out: Path) -> None:
    path = out / "comparison.json"
    path.write_bytes(damage(path.read_text()).encode(errors="surrogateescape"))
    compare.main(words(data, out))
    assert Comparison.read(path).arms == ["sam"]


@pytest.mark.parametrize("damage", [*DAMAGES.values(), without("results"), changed(trials=3)])
def test_a_damaged_comparison_is_named_where_it_is_read(damage: Any, out: Path) -> None:
    path = out / "comparison.json"
    path.write_bytes(damage(path.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(
        ValueError, match="comparison.json' .* type the command of its hf-sam compare again"
    ):
        Comparison.read(path)
