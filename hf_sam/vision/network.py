"""A quick check whether the Hub can be reached: its own client retries for over a minute."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import datasets
from huggingface_hub import constants


def hub_is_reachable(seconds: float = 4.0) -> bool:
    """Try to connect to the Hub, or to the proxy in between, without waiting for an answer.

    Args:
        seconds: Time limit. The attempt runs in a thread, as name resolution has no time limit.
    """
    url = urlsplit(constants.ENDPOINT)
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(str(url.hostname)):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (str(url.hostname), url.port or (443 if url.scheme == "https" else 80))
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=seconds).close()
            connected.set()
        except OSError:
            pass

    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(seconds)
    return connected.is_set()


@contextmanager
def offline() -> Iterator[None]:
    """Context manager in which huggingface_hub and datasets use their local caches only."""
    # each library has read the environment when it was imported
    settings: list[Any] = [constants, datasets.config]
    before = [module.HF_HUB_OFFLINE for module in settings]
    try:
        for module in settings:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = value
