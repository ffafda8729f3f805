"""The command, its report in JSON and HTML, the pictures, and the model card's section."""

import base64
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import patience
import pytest
from classifiers import SMALL, save
from huggingface_hub import ModelCard

from hf_sam.diagnostics import __main__ as command
from hf_sam.diagnostics import plots
from hf_sam.diagnostics.html import verdict, write_html
from hf_sam.diagnostics.progress import Progress
from hf_sam.diagnostics.report import Report
from hf_sam.reporting.codec import decode, encode


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
    from hf_sam.diagnostics.images import batches_of, load_images, sample
    from hf_sam.diagnostics.trained import load_trained

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
    from hf_sam.diagnostics.images import batches_of, load_images, sample
    from hf_sam.diagnostics.trained import load_trained

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
    assert "--compare" in patience.run(words).stdout
