"""The server put together: routes, the page, health, and a beginning and an end."""

import asyncio
import itertools
import logging
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, replace
from importlib.resources import files
from typing import Self

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from toonstream.errors import OutputError
from toonstream.server.http import Gate
from toonstream.server.live import Catalogue, OpenLive
from toonstream.server.registry import Registry
from toonstream.server.settings import ServerSettings
from toonstream.server.whep import Whep
from toonstream.server.whip import Whip
from toonstream.stream.clock import monotonic

__all__ = ["Server"]

_log = logging.getLogger(__name__)

_REQUESTS = 0.2  # of the grace of a shutdown is for requests that are being answered, the rest for streams
_KEPT_ALIVE = 30.0  # seconds that a connection may be idle until we hang up
_SUMMARY = 10  # seconds between two lines for the log of how a session does
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Server:
    """The live service; an async context manager: within it, the server listens.

    Args:
        settings: what the operator asks for.
        open_live: opens the live core for a publisher.
        catalogue: what the page offers; None until the model is loaded, see `loaded`.
    """

    def __init__(
        self, settings: ServerSettings, open_live: OpenLive, catalogue: Catalogue | None = None
    ) -> None:
        self.settings = settings
        self.registry = Registry(settings, open_live)
        self._catalogue = catalogue
        if catalogue is None:
            self.registry.closed_because = "the model is being loaded: try again in a moment"
        self._page = {
            path.name: (path.read_bytes(), _KINDS[f".{path.name.rpartition('.')[2]}"])
            for path in (files("toonstream.server") / "static").iterdir()
        }
        self._port = settings.port
        self._exits = AsyncExitStack()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        return replace(self.settings, port=self._port).url

    @property
    def left_behind(self) -> bool:
        """Whether something did not end in time, and is not waited for."""
        return self.registry.left_behind

    def loaded(self, catalogue: Catalogue) -> None:
        """The model is there: sessions may begin."""
        self._catalogue = catalogue
        self.registry.closed_because = None

    def application(self) -> web.Application:
        """The routes, for a runner of one's own."""
        gate = Gate(self.settings)
        app = web.Application(
            middlewares=[gate.middleware], client_max_size=self.settings.limits.sdp_bytes, logger=_log
        )
        app.add_routes(Whip(self.settings, self.registry, gate).routes())
        app.add_routes(Whep(self.settings, self.registry, gate).routes())
        app.router.add_get("/", self._index)
        app.router.add_get("/static/{name}", self._static)
        app.router.add_get("/catalogue", self._show_catalogue)
        app.router.add_get("/healthz", self._healthy)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def __aenter__(self) -> Self:
        """Begin to listen.

        Raises:
            OutputError: the address is taken, or not ours.
            SettingError: certificate and key are no use.
        """
        context = self.settings.ssl_context()
        runner = web.AppRunner(
            self.application(),
            access_log=None,
            handle_signals=False,
            keepalive_timeout=_KEPT_ALIVE,
            shutdown_timeout=_REQUESTS * self.settings.grace,
        )
        await runner.setup()
        self._exits.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, self.settings.host, self.settings.port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            await self._exits.aclose()
            raise OutputError(
                f"cannot listen on {self.settings.host} port {self.settings.port}: "
                f"{error.strerror or error}; take another --port"
            ) from error
        self._port = runner.addresses[0][1]
        self._exits.push_async_callback(self.registry.close, (1.0 - _REQUESTS) * self.settings.grace)
        watching = asyncio.create_task(self._watch_over(), name="server statistics")
        self._exits.push_async_callback(_cancelled, watching)
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop admitting, show what is in flight, say goodbye to all, within the grace of the settings."""
        self.registry.closed_because = "the server is about to end"
        await self._exits.aclose()

    async def _index(self, request: web.Request) -> web.Response:
        return self._file("index.html")

    async def _static(self, request: web.Request) -> web.Response:
        return self._file(request.match_info["name"])

    def _file(self, name: str) -> web.Response:
        if name not in self._page:
            raise web.HTTPNotFound
        body, kind = self._page[name]
        headers = {"Cache-Control": "no-cache"}
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    async def _show_catalogue(self, request: web.Request) -> web.Response:
        if self._catalogue is None:
            raise web.HTTPServiceUnavailable(reason="the model is being loaded: try again in a moment")
        return web.json_response(asdict(self._catalogue))

    async def _healthy(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _ready(self, request: web.Request) -> web.Response:
        if self.registry.closed_because is not None:
            return web.Response(status=503, text=f"{self.registry.closed_because}\n")
        return web.Response(text="ready\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        await self.registry.refresh()
        text = await asyncio.to_thread(self.registry.metrics.expose)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _watch_over(self) -> None:
        """Once a second: how late the loop is, and for the log what was dropped and what else happened."""
        known: dict[tuple[str, str], int] = {}
        for second in itertools.count(1):
            due = monotonic() + 1.0
            await asyncio.sleep(1.0)
            self.registry.metrics.loop_lag.set(monotonic() - due)
            await self.registry.refresh()
            self._tell_of_sessions(figures=second % _SUMMARY == 0)
            drops = self.registry.metrics.drops()
            news = [
                f"{count - known.get(key, 0)} at {key[0]} ({key[1]})"
                for key, count in sorted(drops.items())
                if count > known.get(key, 0)
            ]
            if news:
                _log.info("frames dropped in the last second: %s", ", ".join(news))
            known = drops

    def _tell_of_sessions(self, *, figures: bool) -> None:
        for session in self.registry.sessions:
            for event in session.news():
                _log.info("session %d: %s", session.number, event)
            if figures:
                _log.info("session %d: %s", session.number, session.summary())


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
