"""The seven places where aiortc's public interface does not reach, and nothing else.

Four are about pictures lost on the way. Without them the stream still heals, at the next key frame that
the encoders send anyway, if enough packets come; should a version of aiortc rename what is used here, that
is what is left. The fifth lets in peers that aiortc would turn away. The sixth looks at pictures before they
are decoded; what it keeps out is then kept out afterwards. The seventh is for the page's figures, which then
are estimates.
"""

from collections.abc import Callable
from queue import Queue
from typing import Any

from aiortc import RTCCertificate, RTCPeerConnection, RTCRtpReceiver, RTCRtpSender

__all__ = [
    "ask_for_missing",
    "ask_for_picture",
    "before_decoding",
    "go_on_without_missing",
    "on_lost_picture",
    "sent_timestamp",
    "trust_any_key",
]

# Each is for keys of elliptic curves, as browsers have them, and for RSA, as GStreamer has it.
_SUITES = ("AES128-GCM-SHA256", "CHACHA20-POLY1305", "AES128-SHA", "AES256-SHA")
_CIPHERS = ":".join(f"ECDHE-{key}-{suite}" for key in ("ECDSA", "RSA") for suite in _SUITES)
_CERTIFICATES = "_RTCPeerConnection__certificates"
_DECODER_QUEUE = "_RTCRtpReceiver__decoder_queue"


class _Certificate(RTCCertificate):
    def _create_ssl_context(self, *words: Any, **named: Any) -> Any:
        make = getattr(super(), "_create_ssl_context")  # noqa: B009 not part of aiortc's types
        context = make(*words, **named)
        context.set_cipher_list(_CIPHERS.encode())
        return context


def trust_any_key(connection: RTCPeerConnection) -> None:
    """Take peers whose certificate is of an RSA key. Call it before anything is negotiated.

    aiortc knows ciphers for other keys only, and fails in the handshake. Who a peer is, is said by the
    fingerprint in its offer either way.
    """
    if hasattr(connection, _CERTIFICATES) and hasattr(RTCCertificate, "_create_ssl_context"):
        setattr(connection, _CERTIFICATES, [_Certificate.generateCertificate()])


async def ask_for_picture(receiver: RTCRtpReceiver) -> None:
    """Ask the sending side for a key frame (RTCP PLI), if anything came from it yet."""
    ask = getattr(receiver, "_send_rtcp_pli", None)
    if ask is not None:
        for source in receiver.getSynchronizationSources():
            await ask(source.source)


async def ask_for_missing(receiver: RTCRtpReceiver) -> None:
    """Ask the sending side once more for packets that are missing (RTCP NACK), if there are any.

    aiortc asks once. Where the question or the answer is lost, too, it waits for 128 packets more, which of
    small pictures is half a minute.
    """
    ask = getattr(receiver, "_send_rtcp_nack", None)
    missing = getattr(getattr(receiver, "_RTCRtpReceiver__nack_generator", None), "missing", ())
    if ask is not None and missing:
        for source in receiver.getSynchronizationSources():
            await ask(source.source, sorted(missing))


async def go_on_without_missing(receiver: RTCRtpReceiver) -> None:
    """Wait no longer for packets that are missing, and ask for a key frame instead.

    aiortc waits for them until 512 packets more are in, whether the sending side still has them or not, and
    of small pictures that is longer than anybody waits.
    """
    buffer: Any = getattr(receiver, "_RTCRtpReceiver__jitter_buffer", None)
    if hasattr(buffer, "remove") and getattr(buffer, "_origin", None) is not None:
        buffer.remove(buffer.capacity)
        setattr(buffer, "_origin", None)  # noqa: B010 not part of aiortc's types
    await ask_for_picture(receiver)


def on_lost_picture(sender: RTCRtpSender, tell: Callable[[], None]) -> None:
    """Have `tell` called when the receiving side asks for a key frame (RTCP PLI or FIR).

    aiortc passes that on to its own encoder, which a track of packets does not use.
    """
    if hasattr(sender, "_send_keyframe"):
        setattr(sender, "_send_keyframe", tell)  # noqa: B010 not part of aiortc's types


def sent_timestamp(sender: RTCRtpSender) -> int | None:
    """The RTP timestamp of the packet that was sent last, whose zero aiortc chooses at random."""
    timestamp: int | None = getattr(sender, "_RTCRtpSender__rtp_timestamp", None)
    return timestamp


class _Gate(Queue[Any]):
    """aiortc's way from the network to its decoder, where `fits` is asked about every frame."""

    def __init__(self, fits: Callable[[str, bytes], bool]) -> None:
        super().__init__()
        self._fits = fits

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Take a codec and a frame, or None for the end."""
        if item is None or self._fits(item[0].name.lower(), item[1].data):
            super().put(item, block, timeout)


def before_decoding(receiver: RTCRtpReceiver, fits: Callable[[str, bytes], bool]) -> None:
    """Have `fits` say of each frame's codec and data whether it may be decoded. Call it before any came."""
    if hasattr(receiver, _DECODER_QUEUE):
        setattr(receiver, _DECODER_QUEUE, _Gate(fits))
