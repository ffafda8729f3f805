"""Whether the Hub can be reached: its client tries for more than a minute before it says no."""

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
    """Try to connect to the Hub, or to the proxy on the way; how slow it answers does not matter.

    Args:
        seconds: How long to try. In a thread, as looking up a name has no limit of its own.
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
    """Have both libraries look into their caches only."""
    settings: tuple[Any, ...] = (
        constants,
        datasets.config,
    )  # each library has read the environment at its import
    before = [module.HF_HUB_OFFLINE for module in settings]
    try:
        for module in settings:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(settings, before, strict=True):
            module.HF_HUB_OFFLINE = value
