"""What the command of the diagnostics says to bad input, before it measures anything."""

import re
import shutil
import sys
from pathlib import Path

import patience
import pytest
from classifiers import SMALL, save

from hf_sam.diagnostics import __main__ as command


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(save(folder / "sam", seed=1)), str(save(folder / "base", seed=0))


def test_matplotlib_is_asked_for_in_words(models: tuple[str, str]) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from hf_sam.diagnostics import __main__"
    code += f" as m; m.main([{models[0]!r}])"
    out = patience.run([sys.executable, "-c", code], check=False)
    assert "pip install 'hf-sam[plots]'" in out.stderr and "Traceback" not in out.stderr


def message_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    return str(ended.value.code)


def test_bad_input_gets_one_message(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(save(tmp_path / "other", seed=0, model="wide_resnet10_2_no_norm"))
    config = save(tmp_path / "sizes", seed=0) / "config.json"
    config.write_text(config.read_text().replace("0.485", "0.5"))
    few = str(save(tmp_path / "few", seed=0, classes=3))
    (tmp_path / "few" / "README.md").unlink()
    out = ["--out", str(tmp_path / "out"), *SMALL]
    cases = {
        "must be a folder": [str(tmp_path / "none")],
        "of one architecture": [models[0], "--compare", other],
        "must be a model with the same preprocessing, got mean": [
            *(models[0], "--compare", str(config.parent))
        ],
        "classifier of the 10 classes": [few],
        "`--data_dir` must be a folder": [models[0], "--data", str(tmp_path / "no_data")],
        "cannot be loaded from the Hub": [models[0], "--data", "someone/images"],
        "split `nope`": [models[0], "--train_split", "nope"],
        "`--names` must be 2 different ones": [models[0], "--compare", models[0]],
        "`rho` must be > 0": [models[0], "--rho", "0"],
        "`--batch_size` must be >= 1": [models[0], "--batch_size", "0"],
        "must be >= 1, got 0": [models[0], "--examples", "0"],
        "`m` must be from 1": [models[0], "--m", "0"],
        "`--m` must be from 1 to 16": [models[0], "--m", "4", "17"],
        "the number of images, got 100000000000": [models[0], "--m", "100000000000"],
        "exclude each other": [
            *(models[0], "--data", "someone/images", "--eval-share=0.1", "--eval-split", "test")
        ],
        "`top_k` must be": [models[0], "--top_k", "0"],
        "odd": [models[0], "--points", "4"],
        "`seed` must be": [models[0], "--seed", "-1"],
        "`--names` must be of letters": [models[0], "--names", "../evil"],
        "must be 1 different ones": [models[0], "--names", "a", "b"],
        "`--card` needs": [str(tmp_path / "few"), "--card"],
        "`--device` must be": [models[0], "--device", "banana"],
        "must be a folder that a classifier": ["no_such_model"],
        "check its name on the Hub and the network": ["someone/classifier"],
    }
    for message, words in cases.items():
        said = message_of([*words[:1], *out, *words[1:]], capsys)
        assert message in said and said.startswith("hf-sam report: "), (message, said)


def test_a_damaged_run_folder_gets_one_message_before_anything_is_measured(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that names itself and the remedy; symlinks lead somewhere or are said."""
    loop, nowhere = tmp_path / "loop", tmp_path / "nowhere"
    loop.symlink_to(loop)
    nowhere.symlink_to(tmp_path / "none")
    damages: list[tuple[str, str | Path, str]] = [
        ("run.json", '{"command": "train', "is no whole JSON .*restore it, or remove it"),
        ("run.json", "[" * 100_000, "is nested more than 20 levels deep: restore it"),
        ("run.json", "[1, 2]", "the content must be an object, and is a list: restore it"),
        ("run.json", '{"hyperparameters": [1]}', "hyperparameters must be an object"),
        ("run.json", '{"sam": "yes"}', "sam must be an object, and is text"),
        ("run.json", '{"command": 3}', "command must be text, and is a whole number"),
        ("run.json", nowhere, r"cannot be read \(No such file or directory\): restore it"),
        ("run.json", loop, "cannot be read .*: restore it, or remove it"),
        ("run.json", tmp_path, r"cannot be read \(Is a directory\): restore it"),
        ("config.json", '{"architecture": ', "is no whole JSON .*: save the model to that folder"),
        (
            "config.json",
            "7",
            "the content must be an object, and is a whole number: save the model",
        ),
        ("README.md", "---\na: [\n---\n", "`--card` needs a model card with its metadata in YAML"),
        ("README.md", nowhere, "`--card` needs a model card to add to"),
    ]
    for i, (file, damage, message) in enumerate(damages):
        folder = tmp_path / f"model{i}"
        shutil.copytree(models[0], folder)
        (folder / file).unlink()
        if isinstance(damage, Path):
            (folder / file).symlink_to(damage)
        else:
            (folder / file).write_text(damage)
        words = [str(folder), "--card", "--out", str(tmp_path / "out"), *SMALL]
        said = message_of(words, capsys)
        assert re.search(message, said) and str(folder / file) in said, (file, damage, said)
        assert "\n" not in said and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_said_before(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    (tmp_path / "taken" / "report.html").mkdir(parents=True)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "portraits").write_text("")
    for name in ("file", "file/below", "nowhere", "taken", "half"):
        said = message_of([models[0], "--out", str(tmp_path / name), *SMALL], capsys)
        assert "`--out` must be a folder" in said and name in said, said


@pytest.mark.parametrize(("examples", "m", "said"), [(50, (4, 16), "4, 16"), (3, (), "left out")])
def test_fewer_images_than_the_usual_m_are_measured(
    examples: int, m: tuple[int, ...], said: str, models: tuple[str, str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    quick = [
        "--max_eval_samples",
        "8",
        "--batch_size",
        "8",
        "--trace_probes",
        "2",
        "--directions",
        "2",
        "--steps",
        "0",
    ]
    quick += ["--points", "0", "--density_probes", "0", "--top_k", "1"]
    words = [models[0], "--out", str(tmp_path), "--max_train_samples", str(examples), *quick]
    report = command.main(words)
    out = capsys.readouterr().out
    assert report.plan.m == m == tuple(report.portraits[0].sharpness.by_m)
    assert f"{said}, as there are {examples} images" in out
    assert ("m-sharpness, m = 4" in (tmp_path / "report.html").read_text()) == bool(m)
