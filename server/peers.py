"""One peer connection: negotiated, trickled to, watched over, and closed in any case."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCIceServer,
    RTCIceTransport,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError
from aiortc.rtcrtpparameters import RTCRtpCodecCapability

from toonstream.errors import InputError
from toonstream.server.sdp import Fragment, Offer, sending_codecs
from toonstream.server.seams import before_decoding, on_lost_picture, sent_timestamp, trust_any_key
from toonstream.server.settings import Codec, IceServer
from toonstream.server.tracks import LaneTrack
from toonstream.stream.sources.coded import H264_ALIGNMENT, claimed_size

__all__ = ["Peer", "too_large"]

_log = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0  # after which a peer that does not close is left alone

# What aiortc's parser is known to raise on nonsense; it has no exception of its own for it.
_PARSE_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,  # a StopIteration that has left a coroutine
    InternalError,
    InvalidAccessError,
    InvalidStateError,
    OperationError,
)


class Peer:
    """A connection to one browser, publisher or player.

    Args:
        ice_servers: for our own candidates.
        codec: put first where the client knows it.
        frame_side: pixels that the longer side of a received picture may have.
        lost: told once, with a reason, when the connection fails, ends, never comes about, or brings
            pictures that are too large.

    Attributes:
        etag: of the ICE session.
        received: the peer's tracks, by kind.
        codecs: of what is sent, by kind.
        cut_off: whether the network between is gone, as opposed to a peer that has said goodbye.
    """

    def __init__(
        self,
        *,
        ice_servers: Sequence[IceServer],
        codec: Codec,
        frame_side: int,
        lost: Callable[[str], None],
    ) -> None:
        servers = [
            RTCIceServer(urls=server.url, username=server.username, credential=server.credential)
            for server in ice_servers
        ]
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        trust_any_key(self._connection)
        self._codec = codec
        self._frame_side = frame_side
        self._lost = lost
        self._ice_user = ""
        self._candidates_left = 0
        self._closing: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.etag = f'"{secrets.token_hex(8)}"'
        self.received: dict[str, MediaStreamTrack] = {}
        self.codecs: dict[str, str] = {}
        self.cut_off = False

    @property
    def state(self) -> str:
        """As aiortc has it: new, connecting, connected, failed, closed."""
        return self._connection.connectionState

    def receiver(self, kind: str) -> RTCRtpReceiver | None:
        """What receives tracks of this kind."""
        return next(
            (each for each in self._connection.getReceivers() if each.track and each.track.kind == kind), None
        )

    async def answer(
        self,
        offer: Offer,
        sending: Sequence[LaneTrack],
        *,
        receiving: bool,
        candidates: int,
        connect_seconds: float,
    ) -> str:
        """Answer an offer.

        Args:
            offer: of the client.
            sending: what we would send, where the client wants it; a kind it does not offer is left out.
            receiving: whether to take what the client sends, too.
            candidates: how many more the client may name.
            connect_seconds: after which a connection that has not come about is given up.

        Raises:
            InputError: the offer makes no sense, or has no codec that we have.
        """
        self._ice_user = offer.ice_user
        self._candidates_left = candidates
        connection = self._connection
        connection.on("connectionstatechange", self._state_changed)
        connection.on("track", lambda track: self.received.setdefault(track.kind, track))
        direction = "sendrecv" if receiving else "sendonly"
        for track in sending:
            if track.kind in offer.kinds:
                transceiver = connection.addTransceiver(track, direction=direction)
                if track.kind == "video":
                    transceiver.setCodecPreferences(_preferred(self._codec))
                    before_decoding(transceiver.receiver, self._fits)
                on_lost_picture(transceiver.sender, track.want_key)
                track.timestamp = partial(sent_timestamp, transceiver.sender)
        try:
            await connection.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
            answer = await connection.createAnswer()
            await connection.setLocalDescription(answer)
        except OperationError as error:
            raise InputError("the offer has no codec that the server has: offer VP8 or H.264") from error
        except _PARSE_ERRORS as error:
            _log.debug("an offer was refused", exc_info=True)
            raise InputError("the offer is not one that can be answered: check its media sections") from error
        text = connection.localDescription.sdp
        self.codecs = sending_codecs(text)
        for transceiver in connection.getTransceivers():
            network = transceiver.receiver.transport.transport
            network.on("statechange", partial(self._network_changed, network))
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(connect_seconds, self._give_up)
        return text

    async def trickle(self, fragment: Fragment) -> None:
        """Take candidates that the client found later.

        Raises:
            InputError: there are too many, or they make no sense.
            LookupError: they belong to another ICE session: a restart, which aiortc does not do.
        """
        if fragment.ice_user not in (None, self._ice_user):
            raise LookupError(fragment.ice_user)
        self._candidates_left -= sum(candidate is not None for candidate in fragment.candidates)
        if self._candidates_left < 0:
            raise InputError("too many ICE candidates")
        for candidate in fragment.candidates:
            with suppress(ConnectionError):
                try:
                    await self._connection.addIceCandidate(candidate)
                except _PARSE_ERRORS as error:
                    raise InputError("an ICE candidate that makes no sense") from error

    async def close(self) -> None:
        """Say goodbye and let go of everything; more than one may call."""
        if self._closing is None:
            if self._deadline is not None:
                self._deadline.cancel()
            self._closing = asyncio.create_task(self._close(), name="peer close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._connection.close()
        except TimeoutError:
            _log.warning("a peer did not close within %g s and is left alone", CLOSE_SECONDS)

    def _fits(self, codec: str, data: bytes) -> bool:
        """Whether a frame may be decoded: pictures of the size that it claims are not too large."""
        try:
            size = claimed_size(codec, data)
        except ValueError:  # what we cannot read, a decoder may read as anything
            return False
        if size is None or max(size) <= -(-self._frame_side // H264_ALIGNMENT) * H264_ALIGNMENT:
            return True
        if self._closing is None:
            self._lost(too_large(*size, self._frame_side))
        return False

    def _state_changed(self) -> None:
        state = self.state
        if state == "connected" and self._deadline is not None:
            self._deadline.cancel()
        elif state in ("failed", "closed") and self._closing is None:
            self._lost("the connection failed" if state == "failed" else "the peer went away")

    def _network_changed(self, network: RTCIceTransport) -> None:
        # The connection as a whole is said to be closed then, as after a goodbye.
        self.cut_off = self.cut_off or network.state == "failed"

    def _give_up(self) -> None:
        if self.state != "connected" and self._closing is None:
            self._lost("no connection came about in time")


def too_large(width: int, height: int, frame_side: int) -> str:
    """The reason why pictures are not taken."""
    return f"pictures of {width}x{height} are too large: send at most {frame_side} pixels a side"


def _preferred(first: Codec) -> list[RTCRtpCodecCapability]:
    """All that aiortc can send, `first` in front."""
    codecs = RTCRtpSender.getCapabilities("video").codecs
    return sorted(codecs, key=lambda codec: codec.mimeType.lower() != f"video/{first}")
