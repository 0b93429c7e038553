"""What all handlers share: problems, limits, CORS, and the way in."""

import asyncio
import json
import logging
from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from toonstream.errors import InputError, ToonstreamError
from toonstream.server.auth import RateLimiter, bearer, host_allowed, origin_allowed, token_matches
from toonstream.server.registry import Full
from toonstream.server.sdp import Offer, read_offer
from toonstream.server.settings import IceServer, ServerSettings

__all__ = [
    "Gate",
    "created",
    "ice_links",
    "preflight",
    "problem",
    "read_body",
    "read_valid_offer",
    "unauthorised",
]

_log = logging.getLogger(__name__)

SDP = "application/sdp"
RETRY_SECONDS = 10
_EXPOSED = "Location, ETag, Link, Retry-After, WWW-Authenticate, Accept-Patch, Accept-Post"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def problem(status: int, detail: str, **headers: str) -> web.Response:
    """A refusal with its reason, as RFC 9457 has it."""
    body = {"type": "about:blank", "status": status, "detail": detail}
    return web.Response(
        status=status, text=json.dumps(body), content_type="application/problem+json", headers=headers
    )


def unauthorised() -> web.Response:
    """401: the token is missing, or another one."""
    return problem(401, "a token is required", **{"WWW-Authenticate": "Bearer"})


def ice_links(servers: Iterable[IceServer]) -> list[tuple[str, str]]:
    """Link headers that tell a client of ICE servers (RFC 9725, 4.6)."""
    links = []
    for server in servers:
        link = f'<{server.url}>; rel="ice-server"'
        if server.username and server.credential:
            link += f'; username="{_quoted(server.username)}"; credential="{_quoted(server.credential)}"'
            link += '; credential-type="password"'
        links.append(("Link", link))
    return links


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


async def read_body(request: web.Request, settings: ServerSettings, content_type: str = SDP) -> str:
    """The body, where it is of the right kind and not too large.

    Raises:
        web.HTTPException: it is not.
    """
    if request.content_type != content_type:
        raise _Refused(problem(415, f"send {content_type}", **{"Accept-Post": content_type}))
    limit = settings.limits.sdp_bytes
    if (request.content_length or 0) > limit:
        raise _Refused(problem(413, f"the body is larger than {limit} bytes"))
    try:
        async with asyncio.timeout(settings.limits.body_seconds):
            body = await request.content.read(limit + 1)
            while len(body) <= limit and not request.content.at_eof():
                body += await request.content.read(limit + 1 - len(body))
        if len(body) > limit:
            raise _Refused(problem(413, f"the body is larger than {limit} bytes"))
        return body.decode()
    except TimeoutError as error:
        wait = f"the body did not come within {settings.limits.body_seconds:g} s"
        raise _Refused(problem(408, wait, Connection="close")) from error
    except UnicodeDecodeError as error:
        raise _Refused(problem(400, "the body is not UTF-8")) from error


async def read_valid_offer(request: web.Request, settings: ServerSettings) -> Offer:
    """The offer in the body."""
    return read_offer(await read_body(request, settings), candidates=settings.limits.candidates)


def created(answer: str, location: str, etag: str, links: Iterable[tuple[str, str]]) -> web.Response:
    """201, as WHIP and WHEP want it."""
    response = web.Response(status=201, text=answer, content_type=SDP)
    response.headers["Location"] = location
    response.headers["ETag"] = etag
    response.headers["Accept-Patch"] = "application/trickle-ice-sdpfrag"
    for name, value in links:
        response.headers.add(name, value)
    return response


def preflight(methods: str, links: Iterable[tuple[str, str]] = ()) -> web.Response:
    """204 for OPTIONS; the gate adds what CORS wants."""
    response = web.Response(status=204, headers={"Allow": methods, "Accept-Post": SDP})
    for name, value in links:
        response.headers.add(name, value)
    return response


class _Refused(Exception):
    def __init__(self, response: web.Response) -> None:
        self.response = response


class Gate:
    """The middleware that every request comes through.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: ServerSettings) -> None:
        limits = settings.limits
        self._settings = settings
        self._offers = RateLimiter(limits.offers_per_minute / 60.0, limits.offers_per_minute / 4.0)
        self._others = RateLimiter(limits.changes_per_second, 2.0 * limits.changes_per_second)

    def authorised(self, request: web.Request) -> bool:
        """Whether the request shows the server's token, where there is one."""
        return token_matches(bearer(request.headers.get("Authorization")), self._settings.token)

    @property
    def middleware(self) -> Middleware:
        """For `web.Application`."""

        @web.middleware
        async def pass_through(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = self._turned_away(request) or await _answered(request, handler)
            self._add_headers(request, response)
            route = request.match_info.route.resource
            _log.debug("%s %s %d", request.method, route.canonical if route else "?", response.status)
            return response

        return pass_through

    def _turned_away(self, request: web.Request) -> web.Response | None:
        settings = self._settings
        host = request.host
        if settings.loopback and not host_allowed(host, settings.host):
            return problem(421, "this server only answers to localhost")
        if not origin_allowed(request.headers.get("Origin"), host, settings.origins):
            return problem(403, "pages of this origin may not use this server: see --origin")
        if request.method == "OPTIONS" or request.path in ("/healthz", "/readyz"):
            return None
        offers = request.method == "POST"
        protected = request.path in ("/whip", "/catalogue", "/metrics")
        refused = protected and not self.authorised(request)
        wait = (self._offers if offers or refused else self._others).take(request.remote or "")
        if wait > 0.0:
            return problem(429, "too many requests: slow down", **{"Retry-After": str(int(wait) + 1)})
        if refused:
            return unauthorised()
        return None

    def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        headers = response.headers
        headers["Server"] = "toonstream"
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Referrer-Policy"] = "no-referrer"
        headers["Content-Security-Policy"] = _POLICY
        headers.setdefault("Cache-Control", "no-store")
        origin = request.headers.get("Origin")
        if origin is None or response.status == 403:
            return
        headers["Access-Control-Allow-Origin"] = origin
        headers["Vary"] = "Origin"
        headers["Access-Control-Expose-Headers"] = _EXPOSED
        if request.method == "OPTIONS":
            headers["Access-Control-Allow-Methods"] = "GET, POST, PATCH, DELETE, OPTIONS"
            headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type, If-Match"
            headers["Access-Control-Max-Age"] = "600"


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Run the handler, and say in HTTP what went wrong."""
    try:
        return await handler(request)
    except _Refused as refusal:
        return refusal.response
    except web.HTTPException as error:
        if error.status < 400:
            raise
        kept = {name: value for name, value in error.headers.items() if name in ("Allow", "Retry-After")}
        return problem(error.status, error.reason, **kept)
    except Full as error:
        return problem(503, str(error), **{"Retry-After": str(RETRY_SECONDS)})
    except InputError as error:
        return problem(400, str(error))
    except ToonstreamError as error:
        _log.error("%s", error)
        return problem(503, str(error), **{"Retry-After": str(RETRY_SECONDS)})
