"""WHIP and WHEP to the letter, and what else is said over HTTP. The clients are aiortc's."""

import asyncio
import json
import logging
import random
import re
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from stand_in import SDP, Camera, Client, Running, connect, running, until

from toonstream.server import app
from toonstream.server.live import Change
from toonstream.server.settings import IceServer, Limits, ServerSettings
from toonstream.stream.clock import monotonic

TOKEN = "a token of some length"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
FRAGMENT = {"Content-Type": "application/trickle-ice-sdpfrag"}


@pytest.fixture
async def service() -> AsyncIterator[Running]:
    async with running() as service:
        yield service


@pytest.fixture
async def published(service: Running) -> AsyncIterator[tuple[Running, Client]]:
    client = await connect(service.http, "/whip", Camera())
    yield service, client
    await client.close()


async def an_offer(*kinds: str, direction: str = "sendrecv") -> str:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    for kind in kinds or ("video",):
        connection.addTransceiver(kind, direction=direction)
    await connection.setLocalDescription(await connection.createOffer())
    sdp = connection.localDescription.sdp
    await connection.close()
    return sdp


async def reason(response: Any) -> str:
    assert response.content_type == "application/problem+json"
    return json.loads(await response.text())["detail"]


async def test_publishing_is_answered_as_the_standard_has_it(published: tuple[Running, Client]) -> None:
    service, client = published
    assert client.answer.startswith("v=0")
    assert client.location.startswith("/sessions/")
    assert re.fullmatch(r'"[0-9a-f]+"', client.etag)
    assert "a=sendrecv" in client.answer
    for method in ("GET", "HEAD", "PUT"):
        for place in ("/whip", client.location):
            response = await service.http.request(method, place)
            assert response.status == 405
            assert "PATCH" in response.headers["Allow"] or "POST" in response.headers["Allow"]
    response = await service.http.delete(client.location)
    assert response.status == 200
    response = await service.http.delete(client.location)
    assert response.status == 410
    assert await reason(response) == "the publisher ended it"
    assert service.cores[0].closed


async def test_watching_is_answered_as_the_draft_has_it(published: tuple[Running, Client]) -> None:
    service, client = published
    link = client.links["urn:toonstream:whep"]
    watcher = await connect(service.http, link)
    assert watcher.location.startswith("/watchers/")
    assert "a=sendonly" in watcher.answer
    assert "a=sendrecv" not in watcher.answer
    for method in ("GET", "HEAD", "PUT"):
        assert (await service.http.request(method, link)).status == 405
        assert (await service.http.request(method, watcher.location)).status == 405
    fragment = "a=candidate:1 1 udp 1 192.0.2.9 9 typ host\r\n"
    user = re.search(r"a=ice-ufrag:\S+\r\n", watcher.connection.localDescription.sdp)
    assert user
    for body, headers, status in (
        (user[0] + fragment, {}, 204),  # as npm's whip-whep sends it
        (fragment, {}, 428),
        ("a=ice-ufrag:wxyz\r\n" + fragment, {}, 422),
        (user[0] + fragment, {"If-Match": '"other"'}, 412),
    ):
        response = await service.http.patch(watcher.location, data=body, headers={**FRAGMENT, **headers})
        assert response.status == status
    assert (await service.http.delete(watcher.location)).status == 200
    assert (await service.http.delete(watcher.location)).status == 404
    response = await service.http.post("/whep/nobody", data=await an_offer(direction="recvonly"), headers=SDP)
    assert response.status == 404
    assert await reason(response) == "nobody publishes here now"
    await watcher.close()


async def test_a_link_of_the_publishers_own_choice(service: Running) -> None:
    client = await connect(service.http, "/whip?watch=stage&style=ink&steps=2&deflicker=false", Camera())
    assert client.links["urn:toonstream:whep"] == "/whep/stage"
    asked = service.cores[0].changes[0]
    assert (asked.style, asked.steps, asked.deflicker) == ("ink", 2, False)
    offer = await an_offer()
    for query, why in {
        "watch=stage": "take another name",
        "watch=..": "3 to 64",
        "source=http://192.0.2.1": "no setting 'source'",
        "steps=many": "are numbers",
        "deflicker=perhaps": "deflicker should be true or false",
    }.items():
        response = await service.http.post(f"/whip?{query}", data=offer, headers=SDP)
        assert response.status == 400
        assert why in await reason(response)
    await client.close()


async def test_candidates_are_trickled_under_their_etag(published: tuple[Running, Client]) -> None:
    service, client = published
    user = re.search(r"a=ice-ufrag:(\S+)", client.connection.localDescription.sdp)
    assert user
    fragment = f"a=ice-ufrag:{user[1]}\r\na=mid:0\r\na=candidate:1 1 udp 1 192.0.2.9 9 typ host\r\n"

    async def patch(body: str, **headers: str) -> Any:
        return await service.http.patch(client.location, data=body, headers={**FRAGMENT, **headers})

    assert (await patch(fragment)).status == 428
    assert (await patch(fragment, **{"If-Match": '"other"'})).status == 412
    assert (await patch(fragment, **{"If-Match": client.etag})).status == 204
    assert (await patch("nonsense", **{"If-Match": client.etag})).status == 400
    response = await patch(fragment, **{"If-Match": client.etag, "Content-Type": "text/plain"})
    assert response.status == 415
    restart = "a=ice-ufrag:wxyz\r\na=ice-pwd:0123456789012345678901\r\n"
    assert (await patch(restart, **{"If-Match": "*"})).status == 422
    many = "".join(f"a=candidate:1 1 udp 1 192.0.2.9 {port} typ host\r\n" for port in range(1000, 1065))
    assert (await patch(f"a=mid:0\r\n{many}", **{"If-Match": client.etag})).status == 400


async def test_settings_and_figures_are_the_publishers(published: tuple[Running, Client]) -> None:
    service, client = published
    place = client.links["urn:toonstream:settings"]
    response = await service.http.patch(place, json={"prompt": "rain", "steps": 3})
    assert (response.status, await response.json()) == (200, {"prompt": "rain", "steps": 3})
    response = await service.http.patch(place, json={"style": "flat"})
    assert await response.json() == {"prompt": "rain", "steps": 3, "style": "flat"}
    assert service.cores[0].changes[-1].style == "flat"
    for wrong in ('{"steps": "x"}', "{", "[" * 10_000, "3"):
        headers = {"Content-Type": "application/json"}
        assert (await service.http.patch(place, data=wrong, headers=headers)).status == 400
    await client.picture()
    figures = await (await service.http.get(client.links["urn:toonstream:statistics"])).json()
    assert (figures["state"], figures["codec"], figures["watchers"]) == ("connected", "vp8", 0)
    metrics = await (await service.http.get("/metrics")).text()
    assert "toonstream_sessions 1.0" in metrics
    assert 'toonstream_offers_total{endpoint="whip",outcome="accepted"} 1.0' in metrics
    assert 'toonstream_frames_dropped_total{place="input",reason="late"} 3.0' in metrics
    for line in (
        'toonstream_stage_seconds{quantile="0.95",session="1",stage="unet"} 0.02',
        'toonstream_queue_age_seconds{quantile="0.5",queue="window",session="1"} 0.01',
        'toonstream_promise_seconds{session="1"} 0.1',
        'toonstream_promise_kept{session="1"} 1.0',
    ):
        assert line in metrics.splitlines()
    # What the server itself does is told in the same way, and a queue where nothing waited is left out.
    for stage in ("intake", "encode"):
        assert figures["stages_ms"][stage]["p99"] >= figures["stages_ms"][stage]["p50"] > 0
        assert f'toonstream_stage_seconds{{quantile="0.99",session="1",stage="{stage}"}}' in metrics
    assert {"intake", "encode", "playout", "window"} == {*figures["waits_ms"]}
    assert 'toonstream_session_latency_seconds{quantile="0.99",session="1"}' in metrics
    assert not re.search(client.location.rpartition("/")[2], metrics)


async def test_a_change_that_takes_its_time_holds_nobody_up(
    published: tuple[Running, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, client = published
    begun, go, taken = threading.Event(), threading.Event(), []

    def change(change: Change) -> None:
        begun.set()
        assert go.wait(10.0)
        taken.append(change.steps)

    monkeypatch.setattr(service.cores[0], "change", change)
    place = client.links["urn:toonstream:settings"]
    asked = asyncio.create_task(service.http.patch(place, json={"steps": 1}))
    await until(begun.is_set)
    (session,) = service.server.registry.sessions
    more = [asyncio.create_task(session.change(Change(steps=steps))) for steps in (2, 3, 4)]
    assert (await service.http.get("/healthz")).status == 200
    assert taken == []
    go.set()
    assert (await asked).status == 200
    await asyncio.gather(*more)
    assert taken == [1, 2, 3, 4]


async def test_frames_left_out_are_counted_while_sessions_come_and_go(
    published: tuple[Running, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = published[0].server.registry
    (session,) = registry.sessions

    def core_drops() -> dict[tuple[str, str], int]:
        registry._sessions.pop("another", None) or registry._sessions.update(another=session)
        return {("input", "late"): 3}

    monkeypatch.setattr(session, "core_drops", core_drops)
    assert registry.metrics.drops()["input", "late"] == 3
    registry._sessions.pop("another", None)


async def test_why_it_ended_is_told_in_one_line(published: tuple[Running, Client]) -> None:
    service, client = published
    service.cores[0].ended("it failed:\n\tthe card is on fire\r\n")
    await until(lambda: not service.server.registry.sessions)
    response = await service.http.get(client.links["urn:toonstream:statistics"])
    assert (response.status, await reason(response)) == (410, "it failed: the card is on fire")


async def test_the_log_says_what_happens_but_not_what_was_typed(
    published: tuple[Running, Client], caplog: pytest.LogCaptureFixture
) -> None:
    service, client = published
    core = service.cores[0]
    with caplog.at_level("INFO", "toonstream"):
        core.say("plan", "draws 64x48")
        core.say("words", "goes over to 'what somebody typed' within 4 frames")
        core.say("refused", "the LoRAs stay as they were: it is damaged")
        (session,) = service.server.registry.sessions
        await until(lambda: "damaged" in caplog.text)
        assert caplog.messages.count("session 1: draws 64x48") == 1
        assert "typed" not in caplog.text
        assert "3 at input (late)" in caplog.text
    await client.picture()
    await session.refresh()
    assert re.fullmatch(
        r"[\d.]+ fps in, [\d.]+ out, \d+/\d+/\d+ ms behind \(p50/p95/p99\), "
        r"longest queue \w+ \(\d+ ms\), 0 watching",
        session.summary(),
    )


async def test_a_full_server_says_so(service: Running) -> None:
    clients = [await connect(service.http, "/whip", Camera()) for _ in range(2)]
    response = await service.http.post("/whip", data=await an_offer(), headers=SDP)
    assert response.status == 503
    assert await reason(response) == "all 2 sessions are taken: try again later"
    assert int(response.headers["Retry-After"]) > 0
    await service.http.delete(clients[0].location)
    clients.append(await connect(service.http, "/whip", Camera()))
    for client in clients:
        await client.close()


async def test_a_machine_that_cannot_keep_up_takes_nobody_more(published: tuple[Running, Client]) -> None:
    service, client = published
    service.cores[0].kept = False
    await service.server.registry.refresh()  # as it does every second
    refused = await connect(service.http, "/whip", Camera(), expect=503)
    assert "the machine cannot draw fast enough" in refused.answer
    metrics = await (await service.http.get("/metrics")).text()
    assert 'toonstream_promise_kept{session="1"} 0.0' in metrics
    assert 'toonstream_offers_total{endpoint="whip",outcome="full"} 1.0' in metrics
    service.cores[0].kept = True
    await service.server.registry.refresh()
    other = await connect(service.http, "/whip", Camera())
    for each in (client, other):
        await each.close()


async def test_who_asks_for_the_impossible_keeps_nobody_out(service: Running) -> None:
    eager = await connect(service.http, "/whip?latency=0.05", Camera())
    service.cores[0].kept = False
    await service.server.registry.refresh()
    other = await connect(service.http, "/whip", Camera())
    await service.http.delete(other.location)
    (session,) = service.server.registry.sessions
    for _ in range(1000):  # not even what the server promises
        session.stage.meter.add("shown", "", 1.0, at=monotonic())
    await service.server.registry.refresh()
    await connect(service.http, "/whip", Camera(), expect=503)
    for each in (eager, other):
        await each.close()


async def test_watchers_are_bounded_too() -> None:
    async with running(ServerSettings(port=0, max_watchers=1)) as service:
        client = await connect(service.http, "/whip", Camera())
        watcher = await connect(service.http, client.links["urn:toonstream:whep"])
        await connect(service.http, client.links["urn:toonstream:whep"], expect=503)
        await watcher.close()
        await client.close()


NONSENSE = {
    "": 400,
    "hello": 400,
    "v=0\r\n": 400,
    "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=ice-ufrag:abcd\r\n": 400,
    "v=0\r\nm=video x y\r\na=ice-ufrag:abcd\r\na=rtpmap:\r\na=fingerprint:\r\n": 400,
    "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=ice-ufrag:abcd\r\n": 400,
}


@pytest.mark.parametrize(("offer", "status"), NONSENSE.items(), ids=range(len(NONSENSE)))
async def test_nonsense_is_refused_with_a_reason(service: Running, offer: str, status: int) -> None:
    response = await service.http.post("/whip", data=offer, headers=SDP)
    assert response.status == status
    assert await reason(response)
    assert service.server.registry.sessions == ()


async def test_who_sends_nothing_cannot_publish_and_who_takes_nothing_cannot_watch(
    published: tuple[Running, Client],
) -> None:
    service, client = published
    for direction in ("recvonly", "inactive"):
        offer = await an_offer("audio", "video", direction=direction)
        response = await service.http.post("/whip", data=offer, headers=SDP)
        assert (response.status, "sends no video" in await reason(response)) == (400, True)
    rejected = re.sub(r"^m=video \d+", "m=video 0", await an_offer(), flags=re.MULTILINE)
    response = await service.http.post("/whip", data=rejected, headers=SDP)
    assert (response.status, "sends no video" in await reason(response)) == (400, True)
    link = client.links["urn:toonstream:whep"]
    response = await service.http.post(link, data=await an_offer(direction="sendonly"), headers=SDP)
    assert (response.status, "takes neither" in await reason(response)) == (400, True)
    assert len(service.server.registry.sessions) == 1


async def test_a_client_that_stops_in_the_middle_of_its_offer_is_not_waited_for() -> None:
    async with running(ServerSettings(port=0, limits=Limits(body_seconds=0.2))) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.server.port)
        writer.write(b"POST /whip HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/sdp\r\n")
        writer.write(b"Content-Length: 400\r\n\r\nv=0\r\n")
        answer = await reader.read()  # until it hangs up
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not come within 0.2 s" in answer
        writer.close()


async def test_a_damaged_offer_never_breaks_the_server() -> None:
    limits = Limits(offers_per_minute=1e6)
    async with running(ServerSettings(port=0, max_sessions=50, limits=limits)) as service:
        offer = await an_offer("video", "audio")
        chance = random.Random(1)
        lines = offer.splitlines(keepends=True)
        for _ in range(60):
            damaged = [line for line in lines if chance.random() > 0.08]
            place = chance.randrange(len(damaged))
            damaged[place] = damaged[place][: chance.randrange(len(damaged[place]) + 1)] + chance.choice(
                ["\r\n", " -1\r\n", ":x\r\n", "ä\r\n"]
            )
            response = await service.http.post("/whip", data="".join(damaged), headers=SDP)
            assert response.status in (201, 400), await response.text()
            if response.status == 201:
                await service.http.delete(response.headers["Location"])
        assert (await service.http.get("/healthz")).status == 200


async def test_a_huge_offer_and_another_kind_of_body_are_refused(service: Running) -> None:
    huge = "v=0\r\n" + "a=x\r\n" * 20_000
    assert (await service.http.post("/whip", data=huge, headers=SDP)).status == 413

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"a=x\r\n" * 1000

    assert (await service.http.post("/whip", data=chunks(), headers=SDP)).status == 413
    response = await service.http.post("/whip", data="v=0", headers={"Content-Type": "text/plain"})
    assert (response.status, response.headers["Accept-Post"]) == (415, "application/sdp")
    assert (await service.http.post("/whip", data=b"v=0\xff\xfe", headers=SDP)).status == 400


async def test_a_browser_without_our_codecs_is_told(service: Running) -> None:
    offer = re.sub(r"(VP8|H264)/90000", "AV1/90000", await an_offer())
    response = await service.http.post("/whip", data=offer, headers=SDP)
    assert response.status == 400
    assert "VP8 or H.264" in await reason(response)


@pytest.mark.parametrize(("codec", "other"), [("h264", "vp8"), ("vp8", "h264")])
async def test_a_browser_without_the_usual_codec_gets_the_other(codec: Any, other: str) -> None:
    async with running(ServerSettings(port=0, latency=0.1, codec=codec)) as service:
        client = await connect(service.http, "/whip", Camera(), codec=other)
        await client.picture()
        assert [session.peer.codecs["video"] for session in service.server.registry.sessions] == [other]
        await client.close()


async def test_a_token_opens_what_it_should() -> None:
    async with running(ServerSettings(port=0, token=TOKEN)) as service:
        for place in ("/catalogue", "/metrics"):
            response = await service.http.get(place)
            assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert (await service.http.get(place, headers=BEARER)).status == 200
        response = await service.http.post("/whip", data=await an_offer(), headers=SDP)
        assert response.status == 401
        wrong = {**SDP, "Authorization": "Bearer something else"}
        assert (await service.http.post("/whip", data="v=0", headers=wrong)).status == 401
        for place in ("/", "/healthz", "/readyz", "/static/app.js"):
            assert (await service.http.get(place)).status == 200
        client = await connect(service.http, "/whip", Camera(), headers=BEARER)
        watcher = await connect(service.http, client.links["urn:toonstream:whep"])  # the link is enough
        await watcher.close()
        await client.close()


async def test_a_name_that_can_be_guessed_takes_the_token() -> None:
    turn = IceServer(url="turn:192.0.2.1:3478", username="u", credential="p")
    async with running(ServerSettings(port=0, token=TOKEN, ice_servers=(turn,))) as service:
        client = await connect(service.http, "/whip?watch=stage", Camera(), headers=BEARER)
        service.server.registry.show("shown")
        offer = await an_offer(direction="recvonly")
        for place in ("/whep/stage", "/whep/shown", "/whep/nobody"):  # nor is it told which there are
            for headers in ({}, {"Authorization": "Bearer something else"}):
                response = await service.http.post(place, data=offer, headers={**SDP, **headers})
                assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "Link" not in (await service.http.options(place)).headers
        assert "Link" in (await service.http.options("/whep/stage", headers=BEARER)).headers
        watchers = [
            await connect(service.http, place, headers=BEARER) for place in ("/whep/stage", "/whep/shown")
        ]
        for each in (client, *watchers):
            await each.close()


async def test_ice_servers_are_told_to_those_who_may_know() -> None:
    turn = IceServer(url="turn:192.0.2.1:3478?transport=udp", username="u", credential='p"w')
    async with running(ServerSettings(port=0, token=TOKEN, ice_servers=(turn,))) as service:
        response = await service.http.options("/whip")
        assert (response.status, "Link" in response.headers) == (204, False)
        response = await service.http.options("/whip", headers=BEARER)
        assert response.headers["Link"] == (
            '<turn:192.0.2.1:3478?transport=udp>; rel="ice-server"; username="u"; credential="p\\"w"; '
            'credential-type="password"'
        )
        assert response.headers["Accept-Post"] == "application/sdp"
        assert "Link" not in (await service.http.options("/whep/unknown")).headers


async def test_other_origins_come_in_where_they_are_named() -> None:
    other = {"Origin": "https://other.example"}
    async with running() as service:
        assert (await service.http.get("/catalogue", headers=other)).status == 403
        assert (await service.http.options("/whip", headers=other)).status == 403
        own = {"Origin": service.url}
        assert (await service.http.get("/catalogue", headers=own)).status == 200
        assert (await service.http.get("/catalogue", headers={"Host": "evil.example"})).status == 421
    async with running(ServerSettings(port=0, origins=("https://other.example",))) as service:
        response = await service.http.options("/whip", headers=other)
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "https://other.example"
        assert "If-Match" in response.headers["Access-Control-Allow-Headers"]
        assert "PATCH" in response.headers["Access-Control-Allow-Methods"]
        client = await connect(service.http, "/whip", Camera(), headers=other)
        response = await service.http.delete(client.location, headers=other)
        assert "Location" in response.headers["Access-Control-Expose-Headers"]
        await client.close()


async def test_who_keeps_a_connection_and_asks_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_KEPT_ALIVE", 0.2)
    async with running() as service, asyncio.timeout(10):
        for said in (b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", service.server.port)
            writer.write(said)
            await reader.read()  # to the end
            writer.close()


async def test_too_many_requests_are_slowed_down() -> None:
    async with running(ServerSettings(port=0, limits=Limits(offers_per_minute=8))) as service:
        statuses = [(await service.http.post("/whip", data="x", headers=SDP)).status for _ in range(4)]
        assert statuses == [400, 400, 429, 429]
        response = await service.http.post("/whip", data="x", headers=SDP)
        assert int(response.headers["Retry-After"]) >= 1
        assert (await service.http.get("/healthz")).status == 200


async def test_the_page_is_whole_and_asks_nobody_else(service: Running) -> None:
    response = await service.http.get("/")
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    page = await response.text()
    names = set(re.findall(r'"/static/([\w.]+)"', page))
    for name in tuple(names):
        text = await (await service.http.get(f"/static/{name}")).text()
        names |= set(re.findall(r'from "/static/([\w.]+)"', text))
    for name in names:
        response = await service.http.get(f"/static/{name}")
        assert response.status == 200
        assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", await response.text()).replace(
            "https page", ""
        )
    assert {"app.js", "style.css", "webrtc.js", "graph.js"} <= names
    for name in ("..%2fapp.py", "none.js"):
        assert (await service.http.get(f"/static/{name}")).status == 404


async def test_secrets_are_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "toonstream")
    async with running(ServerSettings(port=0, token=TOKEN)) as service:
        client = await connect(service.http, "/whip", Camera(), headers=BEARER)
        await service.http.get(client.links["urn:toonstream:statistics"])
        await service.http.get("/metrics", headers={"Authorization": "Bearer guessed wrong"})
        await service.http.delete(client.location)
        await client.close()
    assert "session 1: began" in caplog.text
    for secret in (TOKEN, "guessed", client.location, client.links["urn:toonstream:whep"].rpartition("/")[2]):
        assert secret not in caplog.text


async def test_nobody_is_admitted_before_the_model_is_there_or_after_the_end_has_begun() -> None:
    async with running(loaded=False) as service:
        assert (await service.http.get("/healthz")).status == 200
        response = await service.http.get("/readyz")
        assert (response.status, await response.text()) == (
            503,
            "the model is being loaded: try again in a moment\n",
        )
        assert (await service.http.get("/catalogue")).status == 503
        response = await service.http.post("/whip", data=await an_offer(), headers=SDP)
        assert response.status == 503
        service.load()
        assert (await service.http.get("/readyz")).status == 200
        client = await connect(service.http, "/whip", Camera())
        await client.picture()
        closing = asyncio.create_task(service.server.registry.close(3.0))
        await until(lambda: service.server.registry.closed_because is not None)
        response = await service.http.post("/whip", data=await an_offer(), headers=SDP)
        assert (response.status, await reason(response)) == (503, "the server is about to end")
        await closing
        assert service.cores[0].finished
        assert service.cores[0].closed
        await client.close()
