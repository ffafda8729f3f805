"""A folder is one process's, whichever path leads to it, and nothing of a failed start stays."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock
from images import TINY, finetune_on, message_of, write_parquet

from hf_sam.finetuning import finetune, folder
from hf_sam.finetuning.folder import LOCK, claimed, has_ended


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data"))


def aliases(path: Path) -> dict[str, Path]:
    """Other paths to a folder."""
    above = path.parent
    (above / "by_link").symlink_to(path)
    (above / "above").symlink_to(above)
    (above / "relative").symlink_to(path.name)
    return {
        "link": above / "by_link",
        "link above": above / "above" / path.name,
        "relative link": above / "relative",
        "dots": path / ".." / path.name,
        "dots of what is not there": above / "nowhere" / ".." / path.name,
        "relative": Path(os.path.relpath(path)),
        "slashes": Path(f"{path}//."),
    }


def test_no_path_leads_past_the_lock(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with claimed(out):
        for name, path in aliases(out).items():
            with pytest.raises(ValueError, match="another process is training in"), claimed(path):
                pytest.fail(name)
    assert not (tmp_path / "nowhere").exists()
    for path in (tmp_path / "by_link", tmp_path / "nowhere" / ".." / "new"):
        with claimed(path):
            pass
    assert not (tmp_path / "nowhere").exists(), "by the way that `..` takes back"


def test_a_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    code = "from hf_sam.finetuning.folder import claimed; from pathlib import Path; import time\n"
    code += f"with claimed(Path({str(tmp_path / 'out')!r})): print('held', flush=True); input()"
    path = os.pathsep.join(sys.path)
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(ValueError, match="another process"), claimed(tmp_path / "link"):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "out" / LOCK).exists(), "nobody has tidied up"
    assert not has_ended(tmp_path / "out", {})
    with claimed(tmp_path / "link"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_no_lock_stays_anywhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    finetune_on(data, tmp_path / "out")
    assert not [path for path in tmp_path.rglob("*") if "lock" in path.name]


def test_a_lock_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", denied)
    message = r"\.lock' cannot be locked \(Permission denied\): remove it if nobody is"
    with pytest.raises(ValueError, match=message), claimed(tmp_path / "out"):
        pass


BAD_STARTS = ["--data_dir nowhere", "--model resnet999", "--weights none.safetensors"]
BAD_STARTS += [
    "--per_device_train_batch_size 999",
    "--perturb bn",
    "--method msam --optim_args momentum=0",
]


@pytest.mark.parametrize("options", BAD_STARTS)
def test_a_failed_start_leaves_no_folder(options: str, data: Path, tmp_path: Path) -> None:
    argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "runs" / "out")]
    message_of([*argv, *options.split()])
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_stays(data: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "out").mkdir(parents=True)
    (tmp_path / "runs" / "notes.txt").write_text("mine")
    for name in ("out", "new"):
        argv = [*TINY, "--data_dir", "nowhere", "--output_dir", str(tmp_path / "runs" / name)]
        message_of(argv)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["notes.txt", "out"]


def test_what_was_written_meanwhile_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), claimed(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "checkpoint-1").mkdir()
        raise RuntimeError
    assert (tmp_path / "a" / "b" / "checkpoint-1").is_dir()
    with pytest.raises(RuntimeError), claimed(tmp_path / "c" / "d"):
        folder.write_options(tmp_path / "c" / "d", {}, resumed=False)
        raise RuntimeError
    assert not (tmp_path / "c").exists()


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    argv = ["--output_dir", str(tmp_path / "a" / "out")]
    assert "`output_dir` must be a folder that can be written" in message_of(argv)


def test_two_runs_into_one_folder(data: Path, tmp_path: Path) -> None:
    """By the recipe itself: the second is refused, and the first one's folder is left alone."""
    with claimed(tmp_path / "out"):
        (tmp_path / "out" / "options.json").write_text("{}")
        (tmp_path / "alias").symlink_to(tmp_path / "out")
        argv = [*TINY, "--data_dir", str(data), "--output_dir", str(tmp_path / "alias")]
        assert "another process is training in" in message_of(argv)
        assert (tmp_path / "out" / "options.json").read_text() == "{}"
    assert finetune.main(argv)["eval_top1_error"] >= 0
