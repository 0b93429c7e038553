"""The three places where aiortc's public interface does not reach, and nothing else.

All are about pictures lost on the way. Without them the stream still heals, at the next key frame that
the encoders send anyway; should a version of aiortc rename what is used here, that is what is left.
"""

from collections.abc import Callable

from aiortc import RTCRtpReceiver, RTCRtpSender

__all__ = ["ask_for_missing", "ask_for_picture", "on_lost_picture"]


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


def on_lost_picture(sender: RTCRtpSender, tell: Callable[[], None]) -> None:
    """Have `tell` called when the receiving side asks for a key frame (RTCP PLI or FIR).

    aiortc passes that on to its own encoder, which a track of packets does not use.
    """
    if hasattr(sender, "_send_keyframe"):
        setattr(sender, "_send_keyframe", tell)  # noqa: B010 not part of aiortc's types
