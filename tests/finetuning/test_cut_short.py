"""A run that is killed or has no room left goes on, by what its one message says."""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import patience
import pytest
import torch
from images import TINY, finetune_on, message_of, write_parquet
from killed_in_checkpoint import SAVING
from places import SUPPORT
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import DEFAULT_CALLBACKS

from hf_sam import SAMConfig
from hf_sam.comparing import compare
from hf_sam.finetuning import finetune
from hf_sam.finetuning.checkpoints import last_complete, require_steps_left
from hf_sam.finetuning.disk import DiskFullError, full_disk_named
from hf_sam.finetuning.rotation import CheckpointRotation
from hf_sam.reporting.model_card import RunRecord

LAST = ["--resume_from_checkpoint", "last"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "out"
    finetune_on(data, folder, *SAVING)
    return folder


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(folder / "model.safetensors") for folder in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def words(data: Path, folder: Path, *more: str) -> list[str]:
    return [*TINY, "--data_dir", str(data), "--output_dir", str(folder), *more]


KILLED_AT = ["checkpoint-1", "checkpoint-1/config.json", "checkpoint-1/trainer_state.json"]
KILLED_AT += ["/options.json", "/all_results.json"]


@pytest.fixture(scope="module")
def killed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    script = str(SUPPORT / "killed_in_checkpoint.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    patience.run([sys.executable, script, data, folder, *KILLED_AT], env=env)
    return folder


@pytest.mark.parametrize("number", range(3), ids=KILLED_AT[:3])
def test_killed_in_the_first_checkpoint(
    number: int, killed: Path, straight: Path, data: Path
) -> None:
    """What the refusal of a resume says to do is what works."""
    folder = killed / str(number)
    assert (folder / "options.json").exists(), "it was killed earlier than meant"
    assert last_complete(folder) is None
    said = message_of(words(data, folder, *SAVING, *LAST))
    assert re.search("there is none.*: leave the option out, and the run begins anew", said), said
    finetune_on(data, folder, *SAVING)
    assert same_weights(folder, straight)


def test_killed_before_anything_is_written(killed: Path, straight: Path, data: Path) -> None:
    finetune_on(data, killed / "3", *SAVING)
    assert same_weights(killed / "3", straight)
    assert not list((killed / "3").glob("*.tmp"))


def test_killed_after_the_training(killed: Path, straight: Path, data: Path) -> None:
    said = message_of(words(data, killed / "4", *SAVING))
    assert "pass `--resume_from_checkpoint last` to go on with it from checkpoint-3" in said
    finetune_on(data, killed / "4", *SAVING, *LAST)
    assert same_weights(killed / "4", straight)
    assert (killed / "4" / "run.json").exists()


def test_killed_after_the_training_of_a_lengthened_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of the shorter run is none of the longer one."""
    finetune_on(data, tmp_path / "out", *SAVING)
    longer = [*SAVING, "--max_steps", "6", *LAST]

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "save", killed)
        assert "goes on from" in message_of(words(data, tmp_path / "out", *longer))
    assert last_complete(tmp_path / "out") == tmp_path / "out" / "checkpoint-6"
    finetune_on(data, tmp_path / "out", *longer)
    record = RunRecord.read(tmp_path / "out" / "run.json")
    assert record.hyperparameters["max_steps"] == 6
    assert "has ended, at step 6" in message_of(words(data, tmp_path / "out", *longer))


LEFT = [  # of 3 steps an epoch: length, steps done of how many, refusal
    ({"num_train_epochs": 2}, 5, 5, ""),  # of 1.5 epochs before
    ({"num_train_epochs": 1.5}, 5, 5, "has ended, at step 5"),
    ({"num_train_epochs": 1}, 5, 5, "must not be shorter than it was, 5 steps, got 3"),
    ({"num_train_epochs": 2}, 3, 6, ""),
    ({"num_train_epochs": 1}, 3, 6, "must not be shorter than it was, 6 steps, got 3"),
    ({"max_steps": 7}, 6, 6, ""),
    ({"max_steps": 6}, 6, 6, "has ended, at step 6"),
    ({"max_steps": 5}, 6, 6, "must not be shorter than it was, 6 steps, got 5"),
    ({"num_train_epochs": 2, "gradient_accumulation_steps": 2}, 3, 4, ""),
    ({"num_train_epochs": 2, "auto_find_batch_size": True}, 9, 12, ""),  # halved by it
]


@pytest.mark.parametrize(("options", "step", "steps", "message"), LEFT)
def test_a_run_goes_on_while_steps_are_left(
    options: dict[str, Any], step: int, steps: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text("{}")
    checkpoint = checkpoint_of(tmp_path, step, max_steps=steps, train_batch_size=2)
    args = SAMConfig(str(tmp_path), per_device_train_batch_size=4, use_cpu=True, **options)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        require_steps_left(checkpoint, args, examples=11)


def test_another_run_may_go_on_from_a_checkpoint_with_larger_batches(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    checkpoint = checkpoint_of(tmp_path / "first", 3, max_steps=6, train_batch_size=2)
    args = SAMConfig(
        str(tmp_path / "second"), per_device_train_batch_size=8, use_cpu=True, num_train_epochs=2
    )
    require_steps_left(checkpoint, args, examples=11)


class NoRoom(TrainerCallback):
    """Takes all room at the beginning of a step."""

    def __init__(self, step: int, take: Any) -> None:
        self.step, self.take = step, take

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.take()


def fill(folder: Path) -> None:
    with (folder / "ballast").open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass


def limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture(params=["a full disk", "a limit on files"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Any, Any]]:
    """A folder, what takes its room, and what gives it back."""
    if request.param == "a limit on files":
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        yield (
            tmp_path,
            partial(limit, 8192),
            partial(resource.setrlimit, resource.RLIMIT_FSIZE, unlimited),
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        return
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    try:
        yield disk, partial(fill, disk), (disk / "ballast").unlink
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("full_from", [0, 2], ids=["the first checkpoint", "the third"])
def test_a_full_disk_is_said_and_the_run_goes_on(
    full_from: int,
    disk: tuple[Path, Any, Any],
    straight: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, take, give = disk[0] / "out", disk[1], disk[2]
    callbacks = [*DEFAULT_CALLBACKS, NoRoom(full_from, take)]
    with monkeypatch.context() as patch:
        patch.setattr("transformers.trainer.DEFAULT_CALLBACKS", callbacks)
        said = message_of(words(data, folder, *SAVING))
    give()
    assert said.startswith(f"hf-sam finetune: the disk of '{folder}' is full ("), said
    if full_from:
        assert last_complete(folder) == folder / "checkpoint-2"
        assert said.endswith("`--resume_from_checkpoint last` goes on from checkpoint-2.")
        finetune_on(data, folder, *SAVING, *LAST)
    else:
        assert said.endswith("no checkpoint is whole yet, so the same command begins anew.")
        assert "leave the option out" in message_of(words(data, folder, *SAVING, *LAST))
        finetune_on(data, folder, *SAVING)
    assert same_weights(folder, straight)


def test_a_comparison_says_that_the_disk_is_full_and_goes_on(
    disk: tuple[Path, Any, Any], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, take, give = disk[0] / "out", disk[1], disk[2]
    argv = [*words(data, folder, *SAVING), "--arms", "sam", "--seeds", "1"]
    with monkeypatch.context() as patch:
        callbacks = [*DEFAULT_CALLBACKS, NoRoom(2, take)]
        patch.setattr("transformers.trainer.DEFAULT_CALLBACKS", callbacks)
        with pytest.raises(SystemExit) as stop:
            compare.main(argv)
    give()
    said = str(stop.value.code)
    assert said.startswith(f"hf-sam compare: the disk of '{folder / 'sam-seed0'}' is full ("), said
    assert said.endswith("make room there; then the same command goes on where it stopped.")
    assert compare.main(argv).arms == ["sam"]


def test_other_errors_of_files_are_left_alone(tmp_path: Path) -> None:
    damaged = tmp_path / "x.pt"
    damaged.write_bytes(b"PK\x03\x04 junk")
    for cause in (lambda: torch.load(damaged), lambda: (tmp_path / "no" / "x").open("w")):
        with pytest.raises(Exception) as raised, full_disk_named(tmp_path):  # noqa: B017, PT011
            cause()
        assert not isinstance(raised.value, DiskFullError)


def test_a_run_that_has_ended_without_a_checkpoint_is_no_circle(data: Path, tmp_path: Path) -> None:
    finetune_on(data, tmp_path / "out")
    before = (tmp_path / "out" / "run.json").read_bytes()
    for more in ([], LAST):
        assert "another `--output_dir`" in message_of(words(data, tmp_path / "out", *more))
    assert "leave the option out" not in message_of(words(data, tmp_path / "out", *LAST))
    assert (tmp_path / "out" / "run.json").read_bytes() == before


STATES = {
    "cut": '{"global_step": 2, "max_',
    "a list": "[]",
    "without a step": '{"global_step": null, "max_steps": 9, "num_train_epochs": 3}',
    "with words": '{"global_step": "two", "max_steps": 9, "num_train_epochs": 3}',
    "of another kind": '{"loss": 1}',
    "nested": "[" * 100_000,
    "not text": "\udcff",
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_state_that_was_cut_or_edited(state: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "out" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_bytes(state.encode(errors="surrogateescape"))
    (tmp_path / "out" / "options.json").write_text("{}")
    assert last_complete(tmp_path / "out") is None
    argv = ["--output_dir", str(tmp_path / "out"), "--resume_from_checkpoint"]
    assert "not written to the end, and passed over: checkpoint-2" in message_of([*argv, "last"])
    said = message_of([*argv, str(checkpoint)])
    assert "it has no trainer_state.json that can be read (" in said
    assert len(said) < 600


def checkpoint_of(folder: Path, step: int, *, whole: bool = True, **more: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    state = {"global_step": step, "max_steps": 9, "num_train_epochs": 1} | more
    (path / "trainer_state.json").write_text(json.dumps(state) if whole else "{")
    os.utime(path / "trainer_state.json", ns=(step, step))
    return path


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, {2, 4, 6, 7, 8}),
        (0, None, {2, 4, 6, 7, 8}),
        (-1, None, {2, 4, 6, 7, 8}),
        (2, None, {6, 7, 8}),
        (1, None, {7, 8}),
        (1, 4, {4, 7, 8}),
        (3, 2, {2, 6, 7, 8}),
    ],
)
def test_the_oldest_whole_checkpoints_go(
    limit: int | None, best: int | None, left: set[int], tmp_path: Path
) -> None:
    for step in (2, 4, 6, 7, 8):
        checkpoint_of(tmp_path, step, whole=step != 7)
    state = TrainerState(global_step=8)
    if best is not None:
        state.best_model_checkpoint = f"somewhere/{tmp_path.name}/checkpoint-{best}"
    CheckpointRotation(limit).on_save(
        SAMConfig(str(tmp_path), use_cpu=True), state, TrainerControl()
    )
    assert {int(path.name.split("-")[1]) for path in tmp_path.iterdir()} == left


def test_the_place_of_a_checkpoint_is_cleared_before(tmp_path: Path) -> None:
    """What an earlier life left there would be mixed with the new one, and look whole."""
    old, other = checkpoint_of(tmp_path, 4), checkpoint_of(tmp_path, 2)
    control = TrainerControl(should_save=True)
    args, state = SAMConfig(str(tmp_path), use_cpu=True), TrainerState(global_step=4)
    CheckpointRotation(2).on_step_end(args, state, TrainerControl())
    assert old.exists()
    CheckpointRotation(2).on_step_end(args, state, control)
    assert other.exists() and not old.exists()


def test_a_short_run_logs_its_losses(data: Path, tmp_path: Path) -> None:
    finetune.main(words(data, tmp_path / "out", "--max_steps", "2", "--logging_steps", "10"))
    log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log if "perturbed_loss" in entry] == [2]
