"""What is pushed by the real client, pulled back, and said when it fails."""

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import patience
import pytest
from hub_server import TOKEN, HubServer, Repo, serve
from huggingface_hub import HfApi, ModelCard
from images import TINY, message_of, write_parquet
from places import ROOT

from hf_sam.finetuning.arguments import without_options
from hf_sam.finetuning.folder import run_options
from hf_sam.finetuning.hub import OF_THE_HUB, HubError, push
from hf_sam.finetuning.options import parse_options
from hf_sam.finetuning.record import command_of

SESSION = str(ROOT / "tests" / "support" / "hub_session.py")
PUBLISHED = {"README.md", "config.json", "model.safetensors", "run.json", "all_results.json"}
PUBLISHED |= {".gitattributes"}  # the Hub's own


@dataclass
class Hub:
    """A server, and processes that take it for the Hub."""

    server: HubServer
    folder: Path  # of all that is written, the client's caches too
    said: list[str] = field(default_factory=list)  # by all processes, on both streams

    def python(self, *words: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE"))}
        env |= {
            "HF_ENDPOINT": self.server.url,
            "HF_HOME": str(self.folder / "home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("", "tests/support")),
        }
        command = [sys.executable, *map(str, words)]
        done = patience.run(command, env=env | environ, check=False)
        self.said += [done.stdout, done.stderr]
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    def files(self, name: str) -> dict[str, bytes]:
        return self.server.repos[name].files


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with serve() as server:
        yield Hub(server, tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def data(hub: Hub) -> Path:
    return write_parquet(hub.folder / "my <b>data")


@pytest.fixture(scope="module")
def model(hub: Hub, data: Path) -> Path:
    """The folder of a run that has been pushed to user/model."""
    folder = hub.folder / "model"
    argv = [*TINY, "--data_dir", data, "--output_dir", folder, "--save_strategy", "epoch"]
    done = hub.python(ROOT / "recipes" / "finetune.py", *argv, "--push_to_hub")
    assert f"pushed to {hub.server.url}/user/model" in done.stdout
    return folder


@pytest.fixture(scope="module")
def pushes(hub: Hub, data: Path) -> subprocess.CompletedProcess[str]:
    """What the session `pushes` says; two repositories are there before it."""
    there = {"config.json": b"{}", "notes.md": b"mine"}
    hub.server.repos["user/again"] = Repo(private=False, files=dict(there))
    hub.server.repos["someone/theirs"] = Repo(private=False, files=dict(there))
    return hub.python(SESSION, "pushes", data, hub.folder)


def test_results_are_pushed_and_nothing_else(hub: Hub, model: Path) -> None:
    files = hub.files("user/model")
    assert {"training_args.bin", "checkpoint-2"} <= {path.name for path in model.iterdir()}
    assert set(files) == PUBLISHED
    for name in PUBLISHED - {".gitattributes"}:
        assert files[name] == (model / name).read_bytes()
    assert b"foret2021" in files["README.md"]  # our card, not the Trainer's
    assert b"push_to_hub" not in files["README.md"]
    assert str(hub.folder).encode() not in b"".join(files.values()), "a path of this machine"
    card = files["README.md"].decode()
    assert "<b>" not in card and "trained on my &lt;b&gt;data with" in card
    assert "| `image_size` | 32 |" in card and "| `mean` | [0.5, 0.5, 0.5] |" in card


def test_both_libraries_pull_back_the_same_bits(hub: Hub, model: Path) -> None:
    hub.python(SESSION, "pulls", "user/model", model)


def test_a_missing_token_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    said = message_of(["--push_to_hub", "--output_dir", str(tmp_path / "out")])
    assert "needs a token of the Hub, and there is none: log in with `hf auth login`" in said
    assert not (tmp_path / "out").exists()


def test_a_repository_that_exists_is_updated(
    hub: Hub, pushes: subprocess.CompletedProcess[str]
) -> None:
    assert "user/again holds a model already: the push will replace its files" in pushes.stderr
    files = hub.files("user/again")
    assert files["notes.md"] == b"mine"
    assert files["config.json"] == (hub.folder / "again" / "config.json").read_bytes()
    assert "user/compared holds" not in pushes.stderr


def test_someone_elses_repository_is_refused_before_training(
    hub: Hub, pushes: subprocess.CompletedProcess[str]
) -> None:
    said = next(line for line in pushes.stdout.splitlines() if "'someone/theirs'" in line)
    assert said.startswith(
        "hf-sam finetune: `push_to_hub` cannot write 'someone/theirs' on the Hub"
    )
    assert "(403 Forbidden: It is not yours). Nothing was trained." in said
    assert not (hub.folder / "theirs").exists()


def test_a_connection_lost_in_mid_upload_loses_nothing(
    hub: Hub, pushes: subprocess.CompletedProcess[str]
) -> None:
    said = next(line for line in pushes.stdout.splitlines() if "hf upload user/lost" in line)
    assert said.startswith("hf-sam finetune: the run has ended")
    assert "(Error while uploading 'model.safetensors' to the Hub. RemoteProtocolError" in said
    assert set(hub.files("user/lost")) == {".gitattributes"}
    hub.server.is_losing = False
    command = shlex.split(re.search(r"`(hf upload .*)`", said)[1])
    hub.python(Path(sys.executable).parent / command[0], *command[1:])
    files = hub.files("user/lost")
    assert {"trainer_state.json", "options.json"} <= {
        p.name for p in (hub.folder / "lost").iterdir()
    }
    assert set(files) == PUBLISHED, "what the push itself would have sent"
    for name in PUBLISHED - {".gitattributes"}:
        assert files[name] == (hub.folder / "lost" / name).read_bytes()


def test_each_failure_is_said_in_one_line(hub: Hub, model: Path) -> None:
    said = hub.python(SESSION, "fails", model).stdout.splitlines()
    before = "`push_to_hub` cannot write 'model' on the Hub"
    expected = [
        "could not be pushed to user/frozen (403 Forbidden: You may not write here)",
        "`hub_private_repo` must go with a private repository, and user/model is public",
        f"{before} (401 Unauthorized: Invalid username or password)",
        f"{before} (UnicodeEncodeError: ",
    ]
    assert len(said) == len(expected)
    for line, part in zip(said, expected, strict=True):
        assert part in line
    with socket.socket() as closed:  # bound, so that nobody else can listen there
        closed.bind(("127.0.0.1", 0))
        at = f"http://127.0.0.1:{closed.getsockname()[1]}"
        (line,) = hub.python(SESSION, "reaches", model, HF_ENDPOINT=at).stdout.splitlines()
    assert f"{before} (ConnectError: " in line
    assert "without a network leave `--push_to_hub` out" in line
    assert "--private`" in line


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(f"b'Bearer {TOKEN}'")])
def test_whatever_stops_the_push_is_said_without_a_token(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(HfApi, "upload_folder", stop)
    with pytest.raises(HubError, match=rf"to user/model \({type(error).__name__}") as caught:
        push(tmp_path, "user/model")
    assert TOKEN not in str(caught.value)


def test_the_trainers_own_push_carries_sams_card(
    hub: Hub, pushes: subprocess.CompletedProcess[str]
) -> None:
    files = hub.files("user/notebook")
    assert "model.safetensors" in files
    card = ModelCard(files["README.md"].decode())
    assert {"sharpness-aware-minimization", "hf_sam"} <= set(card.data.tags)
    assert "| `rho` | 0.1 |" in card.text


def test_a_comparison_pushes_the_published_run_once(
    hub: Hub, pushes: subprocess.CompletedProcess[str]
) -> None:
    repo, folder = hub.server.repos["user/compared"], hub.folder / "compared"
    assert (repo.private, repo.commits) == (True, 2)  # the first is the creation
    assert set(repo.files) == PUBLISHED | {"comparison.json", "comparison.png"}
    assert repo.files["model.safetensors"] == (folder / "sam-seed0/model.safetensors").read_bytes()
    for name in ("comparison.json", "comparison.png"):
        assert repo.files[name] == (folder / name).read_bytes()
    assert repo.files["README.md"] == (folder / "sam-seed0" / "README.md").read_bytes()
    assert "user/sam-seed0" not in hub.server.repos


def test_where_a_run_is_pushed_is_no_part_of_it() -> None:
    words = ["--rho", "0.1", "--push_to_hub", "--hub_model_id=a/b", "--crop_scale", "0.3", "1"]
    words += ["--hub-token", "secret", "--push-to-hub", "true", "--adaptive"]
    told = ["--rho", "0.1", "--crop_scale", "0.3", "1", "--adaptive"]
    assert without_options(words, *OF_THE_HUB) == told
    assert command_of("compare", words) == f"hf-sam compare {' '.join(told)}"
    local = ["--data_dir", "images", "--max_steps", "9"]
    runs = [
        run_options(*parse_options([*local, *more])) for more in ([], ["--hub_model_id", "a/b"])
    ]
    assert runs[0] == runs[1] != run_options(*parse_options([*local, "--rho", "0.3"]))


def test_no_token_is_written_anywhere(
    hub: Hub, model: Path, pushes: subprocess.CompletedProcess[str]
) -> None:
    written = {str(p): p.read_bytes() for p in hub.folder.rglob("*") if p.is_file()}
    for name, repo in hub.server.repos.items():
        written |= {f"{name}/{file}": content for file, content in repo.files.items()}
    written |= {f"output {i}": text.encode() for i, text in enumerate(hub.said)}
    assert any(name.endswith("training_args.bin") for name in written)
    assert [name for name, content in written.items() if TOKEN.encode() in content] == []
