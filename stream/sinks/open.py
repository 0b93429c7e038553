"""Which sink an address means: `rtmp://…`, `udp://…`, a folder for HLS, a file."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from toonstream.errors import OutputError
from toonstream.stream.address import scheme, shown
from toonstream.stream.sinks.carry import COPIED, SOUND_ENCODER
from toonstream.stream.sinks.file import FORMATS, SUFFIXES
from toonstream.stream.sinks.live import LiveSink, MuxSink, OutputFormat, Recipe
from toonstream.stream.sinks.place import OutputPlace
from toonstream.stream.sinks.rtmp import RtmpPublisher, RtmpTarget
from toonstream.stream.sinks.wire import TcpWriter, UdpWriter, Writer, host_and_port

__all__ = ["Destination", "open_destination"]

_TIMEOUT = 5.0  # seconds that the other side may take for anything
_PLAYLIST = "index.m3u8"
_SEGMENT_SECONDS = 2
_SEGMENTS = 6  # in the playlist; older ones are removed

_FLV = Recipe(
    muxer="flv",
    muxer_options={"flvflags": "no_duration_filesize", "flush_packets": "1"},
    time_base=Fraction(1, 1000),
    copied=frozenset(["aac"]),
)
_TS = Recipe(
    muxer="mpegts",
    muxer_options={"flush_packets": "1"},
    copied=frozenset(("aac", "mp2", "mp3", "ac3", "eac3")),
)


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Somewhere to write a live toon to.

    Attributes:
        shown: its name for people, without secrets.
        open: opens it, as often as it must be.
        retries: whether it makes sense to open it again.
    """

    shown: str
    open: Callable[[OutputFormat], LiveSink]
    retries: bool = True


def open_destination(address: str, *, source: Path | None = None, timeout: float = _TIMEOUT) -> Destination:
    """Read an address, and find out what is wrong with it before the work and not after it.

    Args:
        address: as the user wrote it.
        source: the file that the stream comes from, which is not to be written to.
        timeout: seconds that the other side may take for anything.

    Raises:
        OutputError: nothing can be written there.
    """
    kind, name = scheme(address), shown(address)
    if kind in ("rtmp", "rtmps"):
        RtmpTarget.parse(address)
        return _streamed(name, _FLV, lambda: RtmpPublisher(address, timeout=timeout))
    if kind == "udp":
        host_and_port(address)
        return _streamed(name, _TS, lambda: UdpWriter(address))
    if kind == "tcp":
        host_and_port(address)
        return _streamed(name, _TS, lambda: TcpWriter(address, timeout=timeout))
    if kind not in ("", "file", "hls"):
        raise OutputError(
            f"nothing is sent to {name}: take rtmp://, rtmps://, udp://, tcp://, a folder for HLS, or a file"
        )
    text = address.removeprefix("file://") if address.startswith("file://") else address
    path = Path(text.removeprefix(f"{kind}:") if kind else text).expanduser()
    if kind == "hls" or path.suffix.lower() == ".m3u8" or text.endswith("/") or path.is_dir():
        return _hls(path)
    return _file(path, source)


def _streamed(name: str, recipe: Recipe, connect: Callable[[], Writer]) -> Destination:
    return Destination(
        shown=name,
        open=lambda format_: MuxSink(name, connect(), recipe, format_),
    )


def _hls(path: Path) -> Destination:
    playlist = path if path.suffix.lower() == ".m3u8" else path / _PLAYLIST
    folder = playlist.parent
    if "%" in str(playlist):
        raise OutputError(f"{playlist}: FFmpeg takes no % in the name of a playlist: choose another folder")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror}): choose another folder") from error
    recipe = Recipe(
        muxer="hls",
        muxer_options={
            "hls_time": str(_SEGMENT_SECONDS),
            "hls_list_size": str(_SEGMENTS),
            # What a stream left here before is gone on from, with a mark between.
            "hls_flags": "delete_segments+independent_segments+temp_file+append_list",
            "hls_segment_filename": str(folder / f"{playlist.stem}-%05d.ts"),
        },
        copied=frozenset(("aac", "mp3", "ac3", "eac3")),
    )
    return Destination(
        shown=str(playlist), open=lambda format_: MuxSink(str(playlist), f"file:{playlist}", recipe, format_)
    )


def _file(path: Path, source: Path | None) -> Destination:
    suffix = path.suffix.lower()
    if suffix == ".ts":
        recipe = _TS
    elif suffix == ".flv":
        recipe = _FLV
    elif suffix in FORMATS:
        chosen = FORMATS[suffix]
        recipe = Recipe(
            muxer=chosen.muxer,
            muxer_options=chosen.muxer_options,
            copied=COPIED[suffix]["audio"],
            sound_encoder=SOUND_ENCODER.get(suffix, "aac"),
            encoder=chosen.encoder,
            crf=chosen.crf,
        )
    else:
        raise OutputError(
            f"{path} has no suffix that can be written: end it in {', '.join(SUFFIXES)}, .ts, .flv or .m3u8"
        )
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent} does not exist: make that folder first, or choose another")

    def begin(format_: OutputFormat) -> MuxSink:
        place = OutputPlace(path, source=source)
        try:
            return MuxSink(str(path), f"file:{place.temporary}", recipe, format_, place=place)
        except BaseException:
            place.discard()
            raise

    OutputPlace(path, source=source).discard()  # whoever may not write there is told now
    return Destination(shown=str(path), open=begin, retries=False)
