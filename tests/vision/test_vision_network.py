"""Without a network: said at once, unless the data are in the cache."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants
from images import message_of, write_parquet

import hf_sam.vision.data
from hf_sam.vision import load_hub, network


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user's machine is set, whom no variable tells that there is no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and has not said anything yet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_a_slow_hub_is_there_and_a_closed_one_is_not(
    online: None, silent: str, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, is_there in ((silent, True), (closed, False)):
        monkeypatch.setattr(constants, "ENDPOINT", f"http://{address}")
        assert network.hub_is_reachable() == is_there
    monkeypatch.setenv("http_proxy", f"http://{silent}")  # the way is by the proxy
    assert network.hub_is_reachable()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert not network.hub_is_reachable()


@pytest.mark.parametrize("stuck", ["getaddrinfo", "create_connection"])
def test_a_network_that_says_nothing_is_given_up(
    stuck: str, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, ended = threading.Event(), threading.Event()

    def wait(*args: Any, **kwargs: Any) -> None:
        released.wait(600)
        ended.set()
        raise OSError("given up")

    monkeypatch.setattr(socket, stuck, wait)
    assert not network.hub_is_reachable(0.2)
    assert not ended.is_set(), "it has waited for an answer"
    released.set()


def test_no_network_is_said_at_once(
    online: None, closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{closed}")
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    said = message_of(["--dataset", "oxford_pets", "--output_dir", str(tmp_path / "out")])
    assert sum(slept) < 5  # between the client's own tries it is more than a minute
    assert f"http://{closed} cannot be reached, and it is not in the cache" in said
    assert "`--data_dir DIR`" in said
    assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (False, False)


def test_what_is_in_the_cache_loads_without_a_network(
    online: None, closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{closed}")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = write_parquet(tmp_path / "data")
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "test")}
    datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "made"))
    (made,) = (tmp_path / "made" / "parquet").glob("*/*/*/")
    cached = tmp_path / "cache" / "owner___birds" / "default" / "0.0.0" / made.name
    shutil.copytree(made, cached)
    for file in cached.glob("parquet-*.arrow"):
        file.rename(cached / file.name.replace("parquet-", "birds-"))
    found = load_hub("owner/birds")
    assert {split: len(rows) for split, rows in found.items()} == {"train": 12, "test": 12}


def test_a_reachable_hub_is_asked(
    online: None, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def load(*args: Any, **kwargs: Any) -> str:
        asked.append(constants.is_offline_mode())
        return "data"

    monkeypatch.setattr(constants, "ENDPOINT", f"http://{silent}")
    monkeypatch.setattr(hf_sam.vision.data.datasets, "load_dataset", load)
    assert load_hub("owner/name") == "data"
    assert asked == [False]


def test_a_folder_of_the_name_is_not_taken_for_the_hubs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "timm" / "oxford-iiit-pet")
    monkeypatch.chdir(tmp_path)
    said = message_of(["--dataset", "oxford_pets", "--output_dir", str(tmp_path / "out")])
    assert "`timm/oxford-iiit-pet` of the Hub must not be the name of a file here" in said
