"""A server on a thread and an event loop of its own, for pipes that have none."""

import asyncio
import os
import re
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from toonstream.errors import SettingError
from toonstream.server.app import Server
from toonstream.server.live import Catalogue, OpenLive
from toonstream.server.loop import new_event_loop
from toonstream.server.settings import TOKEN_VARIABLE, ServerSettings

__all__ = ["Background", "Place", "read_place"]

T = TypeVar("T")

_PORT = 8080
_WRITE = "write whip://HOST:PORT or whep://HOST:PORT/NAME"
_NAME = r"[\w-]{3,64}"
_NOTHING = Catalogue(model="", prompt="", styles=(), steps=1, window=1, latency=0.0)


@dataclass(frozen=True, kw_only=True)
class Place:
    """What `whip://HOST:PORT` and `whep://HOST:PORT/NAME` say.

    Attributes:
        settings: of a server there; its token is that of the environment.
        name: of the stream; empty where the address has none.
    """

    settings: ServerSettings
    name: str


def read_place(address: str, **settings: Any) -> Place:
    """Read an address.

    Args:
        address: as the user wrote it.
        settings: others of the server.

    Raises:
        SettingError: it is no address, or one that outsiders can reach, and there is no token.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingError(_WRITE) from error
    name = parts.path.strip("/")
    if not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise SettingError(f"{_WRITE}; a token goes into ${TOKEN_VARIABLE}")
    if name and not re.fullmatch(_NAME, name, re.ASCII):
        raise SettingError("take a name of 3 to 64 letters, digits, - and _")
    port = _PORT if port is None else port
    token = os.environ.get(TOKEN_VARIABLE) or None
    return Place(settings=ServerSettings(host=host, port=port, token=token, **settings), name=name)


class Background:
    """Runs a server; a context manager: within it, the server listens.

    Args:
        settings: of the server.
        open_live: opens the live core for a publisher.

    Attributes:
        server: the server; use it by `call` and `run` only.
    """

    def __init__(self, settings: ServerSettings, open_live: OpenLive) -> None:
        self.server = Server(settings, open_live, _NOTHING)
        self._begun: Future[None] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="toonstream-server", daemon=True)

    def __enter__(self) -> Self:
        """Begin to listen.

        Raises:
            OutputError: the address is taken, or not ours.
        """
        self._loop = new_event_loop()
        self._thread.start()
        self._begun.result()
        return self

    def __exit__(self, *error: object) -> None:
        """Say goodbye to all, within the grace of the settings."""
        if self._thread.is_alive():
            self.call(self._stop.set)
            self._thread.join()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function on the loop; never waits."""
        with suppress(RuntimeError):  # the loop has ended: there is nobody to call
            self._loop.call_soon_threadsafe(function, *arguments)

    def run(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """Run a coroutine on the loop, and wait for it.

        Raises:
            TimeoutError: it takes longer.
        """
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)

    def _work(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._serve())
            except BaseException as error:
                if self._begun.done():
                    raise
                self._begun.set_exception(error)

    async def _serve(self) -> None:
        async with self.server:
            self._begun.set_result(None)
            await self._stop.wait()
