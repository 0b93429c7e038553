"""WHEP (draft-ietf-wish-whep): watch a session's toon.

A link whose key nobody guesses is the permission; under a name that somebody chose, the token is.
"""

from aiohttp import web

from toonstream.server.http import Gate, created, ice_links, preflight, read_valid_offer, unauthorised
from toonstream.server.registry import Registry
from toonstream.server.settings import ServerSettings
from toonstream.server.stage import Watcher, is_name
from toonstream.server.whip import trickled

__all__ = ["Whep"]


class Whep:
    """The handlers.

    Args:
        settings: of the server.
        registry: the sessions.
        gate: knows who is authorised.
    """

    def __init__(self, settings: ServerSettings, registry: Registry, gate: Gate) -> None:
        self._settings = settings
        self._registry = registry
        self._gate = gate

    def routes(self) -> list[web.RouteDef]:
        """Where the handlers are."""
        return [
            web.post("/whep/{key}", self.watch),
            web.options("/whep/{key}", self.options),
            web.patch("/watchers/{key}", self.trickle),
            web.delete("/watchers/{key}", self.leave),
            web.options("/watchers/{key}", self.watcher_options),
        ]

    async def watch(self, request: web.Request) -> web.Response:
        """Take a watcher."""
        if not self._may_watch(request):
            return unauthorised()
        stage = self._registry.watched(request.match_info["key"])
        if stage is None:
            raise web.HTTPNotFound(reason="nobody publishes here now")
        offer = await read_valid_offer(request, self._settings)
        watcher, answer = await self._registry.watch(stage, offer)
        links = ice_links(self._settings.ice_servers)
        return created(answer, f"/watchers/{watcher.key}", watcher.peer.etag, links)

    async def options(self, request: web.Request) -> web.Response:
        """Say what can be done here, and to those with a good link which ICE servers there are."""
        watched = self._registry.watched(request.match_info["key"])
        known = watched is not None and self._may_watch(request)
        return preflight("POST, OPTIONS", ice_links(self._settings.ice_servers) if known else [])

    async def trickle(self, request: web.Request) -> web.Response:
        """Take further candidates; players that others wrote leave the ETag out."""
        return await trickled(request, self._watcher(request).peer, self._settings, tagged=False)

    async def leave(self, request: web.Request) -> web.Response:
        """A watcher goes."""
        await self._registry.leave(self._watcher(request).key)
        return web.Response(status=200)

    async def watcher_options(self, request: web.Request) -> web.Response:
        """Say what can be done with a watcher."""
        return preflight("PATCH, DELETE, OPTIONS")

    def _may_watch(self, request: web.Request) -> bool:
        return not is_name(request.match_info["key"]) or self._gate.authorised(request)

    def _watcher(self, request: web.Request) -> Watcher:
        watcher = self._registry.watcher(request.match_info["key"])
        if watcher is None:
            raise web.HTTPNotFound
        return watcher
