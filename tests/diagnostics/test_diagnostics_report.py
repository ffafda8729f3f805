"""The command, its report in JSON and HTML, the pictures, and the model card's section."""

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from hf_sam.diagnostics import __main__ as command
from hf_sam.diagnostics import plots
from hf_sam.diagnostics.html import verdict, write_html
from hf_sam.diagnostics.progress import Progress
from hf_sam.diagnostics.report import Report
from hf_sam.reporting.codec import decode, encode
from hf_sam.vision import ModelSource, load_classifier

SMALL = ["--examples", "16", "--batch_size", "8", "--max_eval_samples", "20", "--points", "3"]
SMALL += ["--trace_probes", "3", "--density_steps", "4", "--directions", "2", "--steps", "1"]
SMALL += ["--m", "4", "8", "--top_k", "5"]


def save(folder: Path, *, seed: int, model: str = "test_resnet", classes: int = 10) -> Path:
    torch.manual_seed(seed)
    source = ModelSource(model, init_scratch=True, image_size=32)
    load_classifier(source, [str(i) for i in range(classes)]).model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n\nText.\n")
    (folder / "run.json").write_text(
        json.dumps({"command": f"train {seed} <b>", "hyperparameters": {"optim": "sgd"},
                    "sam": {"rho": 0.1} if seed else None})
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(save(folder / "sam", seed=1)), str(save(folder / "base", seed=0))


@pytest.fixture(scope="module")
def finished(models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    command.main([models[0], "--compare", models[1], "--out", str(out), "--card", *SMALL])
    return out


def test_json_holds_all_that_was_measured(finished: Path) -> None:
    report = Report.read(finished / "report.json")
    assert [portrait.name for portrait in report.portraits] == ["sam", "base"]
    assert report.eval_examples == 20 and report.portraits[0].sharpness.setup.examples == 16
    assert report.portraits[0].run["command"] == "train 1 <b>"
    again = encode(report)
    assert json.loads((finished / "report.json").read_text()) == json.loads(json.dumps(again))
    assert report.between is not None and report.between.x[0] == -0.25


def test_numbers_are_those_of_the_functions(finished: Path, models: tuple[str, str]) -> None:
    """Of the first model, on the images that the command draws."""
    from hf_sam.diagnostics import sharpness
    from hf_sam.diagnostics.images import batches_of, load_images, load_trained, sample

    splits = load_images("digits", split="train", eval_split=None)
    trained = load_trained(models[0], splits.label_names)
    rows = sample(splits.train, 16, 0)
    found = sharpness(
        trained.classifier.model, batches_of(rows, trained, 8, split="train"), m=(4, 8), steps=1,
        directions=2, progress=False,
    )  # fmt: skip
    assert Report.read(finished / "report.json").portraits[0].sharpness == found


def test_rho_is_scanned_on_images_that_were_not_trained_on(
    finished: Path, models: tuple[str, str]
) -> None:
    from hf_sam.diagnostics import rho_scan
    from hf_sam.diagnostics.images import batches_of, load_images, load_trained, sample

    splits = load_images("digits", split="train", eval_split=None)
    trained = load_trained(models[0], splits.label_names)
    unseen = batches_of(sample(splits.eval, 16, 0), trained, 8, split="test")
    expected = rho_scan(trained.classifier.model, unseen, progress=False)
    found = Report.read(finished / "report.json").portraits[0].rho_scan
    assert found is not None and encode(found) == encode(expected)


def test_page_needs_no_network_and_escapes(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert all(link.startswith(("data:", "https://arxiv.org/")) for link in links)
    assert "<script" not in page and "url(" not in page and "<link" not in page
    assert "train 1 &lt;b&gt;" in page and "<b>" not in page
    pictures = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert len(pictures) == 7
    for picture in pictures:
        drawn = base64.b64decode(picture).decode()
        assert drawn.startswith("<?xml") and "http-equiv" not in drawn
    for name in ("lambda_max", "m-sharpness", "top-1 error", "adaptive"):
        assert name in page


def test_page_is_reproducible(finished: Path, tmp_path: Path) -> None:
    write_html(tmp_path / "again.html", Report.read(finished / "report.json"))
    assert (tmp_path / "again.html").read_bytes() == (finished / "report.html").read_bytes()


def test_card_gets_one_section(finished: Path, models: tuple[str, str]) -> None:
    assert finished.is_dir()
    for folder in models:
        card = ModelCard.load(Path(folder) / "README.md")
        assert card.text.count("## How sharp") == 1 and card.data.license == "mit"
        assert "# A model" in card.text and "lambda_max" in card.text
    before = (Path(models[0]) / "README.md").read_text()
    command.main([models[0], "--compare", models[1], "--out", str(finished), "--card", *SMALL])
    assert (Path(models[0]) / "README.md").read_text() == before


def test_an_interrupted_run_goes_on_after_the_last_whole_model(
    finished: Path, models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    portray = command.portray

    def interrupted(*args: Any, name: str, **kwargs: Any) -> Any:
        measured.append(name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return portray(*args, name=name, **kwargs)

    monkeypatch.setattr(command, "portray", interrupted)
    words = [models[0], "--compare", models[1], "--out", str(tmp_path), *SMALL]
    with pytest.raises(SystemExit, match="interrupted"):
        command.main(words)
    command.main(words)
    assert measured == ["sam", "base", "base"]
    one, other = (Report.read(f / "report.json") for f in (tmp_path, finished))
    assert encode(one.portraits) == encode(other.portraits)


def test_other_weights_in_the_folder_are_measured_anew(tmp_path: Path) -> None:
    words = [str(tmp_path / "model"), "--out", str(tmp_path / "out"), *SMALL]
    save(tmp_path / "model", seed=3)
    one = command.main(words)
    save(tmp_path / "model", seed=4)
    other = command.main(words)
    assert one.portraits[0].hessian.lambda_max != other.portraits[0].hessian.lambda_max
    assert "--compare" in verdict(other)


def every_kind(report: Report) -> dict[str, Any]:
    by_name = {p.name: p for p in report.portraits}
    history = [{"step": 1, "loss": 2.0, "sharpness": 0.1}, {"step": 2, "loss": 1.0}]
    return {
        "spectrum": plots.plot_spectrum({n: p.hessian for n, p in by_name.items()}),
        "profile": plots.plot_profile({n: p.line for n, p in by_name.items() if p.line}),
        "contours": plots.plot_contours({n: p.surface for n, p in by_name.items() if p.surface}),
        "surfaces": plots.plot_surfaces({n: p.surface for n, p in by_name.items() if p.surface}),
        "m": plots.plot_m_sharpness({n: p.sharpness for n, p in by_name.items()}),
        "rho": plots.plot_rho_scan({n: p.rho_scan for n, p in by_name.items() if p.rho_scan}),
        "training": plots.plot_training({"sam": history, "base": history[1:]}),
    }


def test_pictures_are_labelled_and_reproducible(finished: Path, tmp_path: Path) -> None:
    report = Report.read(finished / "report.json")
    for folder in ("one", "again"):
        (tmp_path / folder).mkdir()
        for name, figure in every_kind(report).items():
            assert figure.axes[-1].get_xlabel() and figure.axes[0].get_ylabel(), name
            plots.save(figure, tmp_path / folder / name)
    for path in (tmp_path / "one").iterdir():
        assert path.stat().st_size > 3000
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_model_without_a_record_is_reported(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", seed=0)
    (folder / "run.json").unlink()
    command.main([str(folder), "--out", str(tmp_path / "out"), *SMALL])
    assert "no record of its training" in (tmp_path / "out" / "report.html").read_text()


def test_what_was_kept_is_only_for_the_same_images(
    finished: Path, models: tuple[str, str], tmp_path: Path
) -> None:
    """And a file that is cut short counts as none; names and records are those of now."""
    shutil.copytree(finished / "portraits", tmp_path / "portraits")
    measured: list[str] = []
    portray = command.portray

    def count(*args: Any, name: str, **kwargs: Any) -> Any:
        measured.append(name)
        return portray(*args, name=name, **kwargs)

    command.portray = count
    try:
        words = [models[0], "--compare", models[1], "--out", str(tmp_path), *SMALL]
        renamed = command.main([*words, "--names", "one", "other"])
        assert [p.name for p in renamed.portraits] == ["one", "other"] and not measured
        kept = tmp_path / "portraits" / "0.json"
        kept.write_text(kept.read_text()[:100])
        command.main(words)
        assert measured == ["sam"]
        command.main([*words, "--train_split", "test"])
        assert measured == ["sam", "sam", "base"]
    finally:
        command.portray = portray


def test_matplotlib_is_asked_for_in_words(models: tuple[str, str]) -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from hf_sam.diagnostics import __main__"
    code += f" as m; m.main([{models[0]!r}])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'hf-sam[plots]'" in out.stderr and "Traceback" not in out.stderr


def test_pictures_refuse_what_they_cannot_show(finished: Path) -> None:
    portrait = Report.read(finished / "report.json").portraits[0]
    assert portrait.line and portrait.surface
    with pytest.raises(ValueError, match="dimensions=1"):
        plots.plot_profile({"sam": portrait.surface})
    for draw in (plots.plot_contours, plots.plot_surfaces):
        with pytest.raises(ValueError, match="dimensions=2"):
            draw({"sam": portrait.line})


def test_codec_keeps_what_is_not_finite() -> None:
    from hf_sam.reporting.interval import Interval

    found = decode(Interval, {"mean": 1.0, "half_width": None, "n": 1})
    assert np.isnan(found.half_width)


def message_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    return str(ended.value.code)


def test_bad_input_gets_one_message(
    models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(save(tmp_path / "other", seed=0, model="wide_resnet10_2_no_norm"))
    few = str(save(tmp_path / "few", seed=0, classes=3))
    (tmp_path / "few" / "README.md").unlink()
    out = ["--out", str(tmp_path / "out"), *SMALL]
    cases = {
        "must be a folder": [str(tmp_path / "none")],
        "of one architecture": [models[0], "--compare", other],
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
        "`top_k` must be": [models[0], "--top_k", "0"],
        "odd": [models[0], "--points", "4"],
        "`seed` must be": [models[0], "--seed", "-1"],
        "`--names` must be of letters": [models[0], "--names", "../evil"],
        "must be 1 different ones": [models[0], "--names", "a", "b"],
        "`--card` needs": [str(tmp_path / "few"), "--card"],
        "`--device` must be": [models[0], "--device", "banana"],
        "must be a folder that a classifier": ["no_such_model"],
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
        ("run.json", "[1, 2]", "all of it must be an object, and is a list: restore it"),
        ("run.json", '{"hyperparameters": [1]}', "hyperparameters must be an object"),
        ("run.json", '{"sam": "yes"}', "sam must be an object, and is text"),
        ("run.json", '{"command": 3}', "command must be text, and is a whole number"),
        ("run.json", nowhere, r"cannot be read \(No such file or directory\): restore it"),
        ("run.json", loop, "cannot be read .*: restore it, or remove it"),
        ("run.json", tmp_path, r"cannot be read \(Is a directory\): restore it"),
        ("config.json", '{"architecture": ', "is no whole JSON .*: save the model to that folder"),
        ("config.json", "7", "all of it must be an object, and is a whole number: save the model"),
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


def test_progress_is_of_all_measurements(
    finished: Path, models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And one that has been measured before does not count for what is left."""
    (tmp_path / "portraits").mkdir()
    shutil.copy(finished / "portraits" / "0.json", tmp_path / "portraits")
    command.main([models[0], "--compare", models[1], "--out", str(tmp_path), *SMALL])
    said = re.findall(r"^\[(\d+)/(\d+)\] (.*?)(?:; about (\d+) (?:s|min) left)?$",
                      capsys.readouterr().out, flags=re.MULTILINE)  # fmt: skip
    assert [f"{i}/{n}" for i, n, _, _ in said] == ["1/13", *(f"{i}/13" for i in range(8, 14))]
    names = ["top-1 error", "loss along a direction", "loss landscape", "sharpness", "Hessian"]
    expected = [f"base: {name}" for name in [*names, "choosing rho"]]
    assert [name for _, _, name, _ in said] == ["on the line between the two", *expected]
    assert all(left for *_, left in said[1:])


def test_what_is_left_follows_from_what_was_spent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 30.0, 30.0, 90.0, 90.0])
    monkeypatch.setattr("hf_sam.diagnostics.progress.time.monotonic", lambda: next(now))
    progress = Progress({"a": 1.0, "b": 2.0, "x: old": 9.0, "c": 4.0})
    progress.begin("a")
    progress.skip("x: ")
    progress.begin("b")
    progress.begin("c")
    assert capsys.readouterr().out.splitlines() == [
        "[1/4] a",
        "[2/4] b; about 3 min left",
        "[4/4] c; about 2 min left",
    ]


def test_command_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "hf_sam.diagnostics", "--help"]
    out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "--compare" in out
