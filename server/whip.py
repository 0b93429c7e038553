"""WHIP (RFC 9725): publish. And beside it the publisher's own settings and figures."""

import json
import re
from collections.abc import Mapping

from aiohttp import web

from toonstream.errors import SettingError
from toonstream.server.http import Gate, created, ice_links, preflight, problem, read_body, read_valid_offer
from toonstream.server.live import Change, parse_change
from toonstream.server.peers import Peer
from toonstream.server.registry import Registry
from toonstream.server.sdp import parse_fragment
from toonstream.server.sessions import Session
from toonstream.server.settings import ServerSettings
from toonstream.stream.clock import monotonic

__all__ = ["Whip", "trickled"]

FRAGMENT = "application/trickle-ice-sdpfrag"
_NUMBERS = ("steps", "window", "seed")
_SWITCH = {"true": True, "false": False}


class Whip:
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
            web.post("/whip", self.publish),
            web.options("/whip", self.options),
            web.patch("/sessions/{key}", self.trickle),
            web.delete("/sessions/{key}", self.end),
            web.options("/sessions/{key}", self.session_options),
            web.get("/sessions/{key}/statistics", self.statistics, allow_head=False),
            web.patch("/sessions/{key}/settings", self.change),
            web.options("/sessions/{key}/settings", self.session_options),
            web.options("/sessions/{key}/statistics", self.session_options),
        ]

    async def publish(self, request: web.Request) -> web.Response:
        """Take a publisher.

        The query may hold first settings, a name of its own for the watch link, and the key of a session that
        it had before and comes back to.
        """
        offer = await read_valid_offer(request, self._settings)
        query = dict(request.query)
        resume = query.pop("resume", None)
        name, change = _query(query)
        session, answer = await self._registry.publish(offer, change, watch_key=name, resume=resume)
        links = [
            *ice_links(self._settings.ice_servers),
            ("Link", f'</whep/{session.watch_key}>; rel="urn:toonstream:whep"'),
            ("Link", f'</sessions/{session.key}/settings>; rel="urn:toonstream:settings"'),
            ("Link", f'</sessions/{session.key}/statistics>; rel="urn:toonstream:statistics"'),
        ]
        return created(answer, f"/sessions/{session.key}", session.peer.etag, links)

    async def options(self, request: web.Request) -> web.Response:
        """Say what can be done here, and to those who may, which ICE servers there are."""
        links = ice_links(self._settings.ice_servers) if self._gate.authorised(request) else []
        return preflight("POST, OPTIONS", links)

    async def trickle(self, request: web.Request) -> web.Response:
        """Take further candidates."""
        return await trickled(request, self._session(request).peer, self._settings)

    async def end(self, request: web.Request) -> web.Response:
        """The publisher goes; what is in flight is still shown to those who watch."""
        session = self._session(request)
        flush = self._settings.grace * 0.6 if session.watchers else 0.0
        await self._registry.end(session, "the publisher ended it", flush=flush)
        return web.Response(status=200)

    async def session_options(self, request: web.Request) -> web.Response:
        """Say what can be done with a session."""
        return preflight("PATCH, DELETE, OPTIONS, GET")

    async def statistics(self, request: web.Request) -> web.Response:
        """The figures of the last seconds; 410 with the reason once the session is over.

        It has a Retry-After where the publisher was cut off: with the key it may come back, see `publish`.
        """
        asked_at = monotonic()
        session = self._session(request)
        await session.refresh()
        figures = session.statistics()
        return web.json_response({**figures, "clock": session.clock(asked_at)})

    async def change(self, request: web.Request) -> web.Response:
        """Take other settings."""
        session = self._session(request)
        text = await read_body(request, self._settings, "application/json")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SettingError("the body is not JSON") from error
        await session.change(parse_change(values))
        return web.json_response(session.statistics()["settings"])

    def _session(self, request: web.Request) -> Session:
        key = request.match_info["key"]
        session = self._registry.session(key)
        if session is None:
            ended = self._registry.ended(key)
            if ended is None:
                raise web.HTTPNotFound
            headers = {"Retry-After": "1"} if ended.cut_off else None
            raise web.HTTPGone(reason=ended.reason, headers=headers)
        return session


async def trickled(
    request: web.Request, peer: Peer, settings: ServerSettings, *, tagged: bool = True
) -> web.Response:
    """Take a trickled fragment for a peer, as WHIP and WHEP have it.

    Args:
        request: what came.
        peer: whom it is for.
        settings: of the server.
        tagged: whether it has to name the ICE session by its ETag; else a user fragment is as good.
    """
    match = request.headers.get("If-Match")
    if match is None and tagged:
        return problem(428, "send the ETag of the answer as If-Match")
    if match not in (None, "*", peer.etag):
        return problem(412, "the ETag is of another ICE session")
    fragment = parse_fragment(await read_body(request, settings, FRAGMENT))
    if match is None and fragment.ice_user is None:
        return problem(428, "send the ETag of the answer as If-Match, or a=ice-ufrag in the fragment")
    try:
        await peer.trickle(fragment)
    except LookupError:
        return problem(422, "ICE restarts are not supported: publish anew", ETag=peer.etag)
    return web.Response(status=204, headers={"ETag": peer.etag})


def _query(query: Mapping[str, str]) -> tuple[str | None, Change]:
    """The name for watchers and the first settings of a WHIP URL.

    Raises:
        SettingError: they make no sense.
    """
    values: dict[str, object] = dict(query)
    name = values.pop("watch", None)
    if name is not None and not re.fullmatch(r"[\w-]{3,64}", str(name), re.ASCII):
        raise SettingError("watch: take a name of 3 to 64 letters, digits, - and _")
    try:
        for number in _NUMBERS:
            if number in values:
                values[number] = int(str(values[number]))
        if "latency" in values:
            values["latency"] = float(str(values["latency"]))
        if "deflicker" in values:
            values["deflicker"] = _SWITCH.get(str(values["deflicker"]), values["deflicker"])
    except ValueError as error:
        raise SettingError(f"{', '.join(_NUMBERS)} and latency are numbers") from error
    return None if name is None else str(name), parse_change(values)
