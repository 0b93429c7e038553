"""What belongs to a clip besides pictures and sound: subtitles of other kinds, chapters, attachments."""

from fractions import Fraction
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
from av.packet import Packet
from hypothesis import given
from hypothesis import strategies as st

from toonstream.stream.sinks.file import FileSink
from toonstream.stream.sinks.text import ConvertedText
from toonstream.stream.sinks.track import Span
from toonstream.stream.sources.file import FileSource

MILLISECOND = Fraction(1, 1000)
COVER = cv2.imencode(".jpg", np.full((32, 32, 3), 90, np.uint8))[1].tobytes()
FONT = b"not really a font"
_STYLES = (
    b"[Script Info]\nScriptType: v4.00+\n[V4+ Styles]\n"
    b"Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, "
    b"Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, "
    b"MarginL, MarginR, MarginV, Encoding\n"
    b"Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0\n"
    b"[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)


def write(path, *, codec=None, lines=(), chapters=(), attachments=(), tags=None):
    """Two seconds at 25 fps. `lines` are (begin, end, bytes) and `chapters` (begin, end, title), in ms."""
    with av.open(str(path), "w") as clip:
        video = clip.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        texts = None
        if codec == "ass":
            texts = clip.add_stream("ass")
            texts.codec_context.subtitle_header = _STYLES
            texts.codec_context.time_base = texts.time_base = MILLISECOND
        elif codec:
            texts = clip.add_mux_stream(codec, time_base=MILLISECOND)
        if texts is not None:
            texts.metadata["language"] = "eng"
        for name, kind, content in attachments:
            clip.add_attachment(name, kind, content)
        clip.set_chapters(
            [
                {
                    "id": number,
                    "start": begin,
                    "end": end,
                    "time_base": MILLISECOND,
                    "metadata": {"title": title},
                }
                for number, (begin, end, title) in enumerate(chapters, 1)
            ]
        )
        clip.start_encoding()
        if codec == "ass":
            texts.codec_context.open(strict=False)
        for begin, end, line in lines:
            packet = Packet(line)
            packet.pts = packet.dts = begin
            packet.duration, packet.time_base, packet.stream = end - begin, MILLISECOND, texts
            clip.mux(packet)
        for index in range(50):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * index, np.uint8), format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, 25)
            clip.mux(video.encode(picture))
        clip.mux(video.encode(None))
    return path


def copy(path, target, *, stop=None, **part):
    with (
        FileSource(path, **part) as source,
        FileSink(target, source=source, width=64, height=48) as sink,
    ):
        for frame in source:
            if frame.index == stop:
                raise KeyboardInterrupt
            sink.write(frame)
    return sink


def shown(path):
    """(begin, end, text) of all subtitles, in seconds, as a decoder reads them."""
    with av.open(str(path)) as clip:
        stream = clip.streams.subtitles[0]
        decoder, found = stream.codec_context, []
        for packet in clip.demux(stream):
            for part in (packet.size and decoder.decode2(packet)) or ():
                begin = packet.pts * packet.time_base
                text = part.ass.split(b",", 8)[-1].decode()
                found.append((float(begin), float(begin + packet.duration * packet.time_base), text))
        return found


def chapters(path):
    with av.open(str(path)) as clip:
        return [
            (
                float(chapter["start"] * chapter["time_base"]),
                float(chapter["end"] * chapter["time_base"]),
                chapter["metadata"]["title"],
            )
            for chapter in clip.chapters()
        ]


def attachments(path):
    """Files within a file, and pictures that stand for it, by name."""
    with av.open(str(path)) as clip:
        found = {stream.name: stream.data for stream in clip.streams.attachments}
        covers = [
            stream for stream in clip.streams.video if stream.disposition & av.stream.Disposition.attached_pic
        ]
        for packet in clip.demux(covers) if covers else ():
            if packet.size:
                found[packet.stream.metadata.get("filename", "cover")] = bytes(packet)
        return found


def pictures(path):
    with av.open(str(path)) as clip:
        return sum(1 for _ in clip.decode(video=0))


TEXTS = {
    "subrip": ("c.mkv", b"<i>eins</i>\nzwei \xc3\xbc", b"drei"),
    "webvtt": ("c.mkv", b"<i>eins</i>\nzwei \xc3\xbc", b"drei"),
    "mov_text": ("c.mp4", b"\0\x0ceins\nzwei \xc3\xbc", b"\0\x04drei"),
}


@pytest.mark.parametrize(
    ("codec", "target"),
    [
        ("subrip", "toon.mp4"),
        ("subrip", "toon.mov"),
        ("subrip", "toon.webm"),
        ("webvtt", "toon.mp4"),
        ("mov_text", "toon.mkv"),
        ("mov_text", "toon.webm"),
    ],
)
def test_text_becomes_the_text_that_a_container_holds(codec, target, tmp_path):
    name, *texts = TEXTS[codec]
    path = write(
        tmp_path / name,
        codec=codec,
        lines=[(200, 500, texts[0]), (600, 900, texts[1])],
    )
    sink = copy(path, tmp_path / target)
    assert sink.notes == ()
    first, second = shown(sink.path)
    assert (first[:2], second[:2]) == ((0.2, 0.5), (0.6, 0.9))
    assert "eins" in first[2]
    assert "\\Nzwei ü" in first[2]
    assert "drei" in second[2]
    if codec != "mov_text":
        assert "{\\i1}eins" in first[2]
    with av.open(str(sink.path)) as clip:
        assert clip.streams.subtitles[0].language == "eng"
    assert pictures(sink.path) == 50


def test_styled_text_keeps_its_words_in_an_mp4_and_it_is_said_what_it_loses(tmp_path):
    lines = [
        (200, 700, b"0,0,Default,,0,0,0,,{\\pos(10,10)}A sign"),
        (500, 900, b"1,0,Default,,0,0,0,,Speech"),
    ]
    path = write(tmp_path / "c.mkv", codec="ass", lines=lines)
    sink = copy(path, tmp_path / "toon.mp4")
    assert sink.notes == (
        "subtitle track 1 (ass) is plain text now: .mp4 cannot hold its fonts and places, .mkv may",
    )
    # An mp4 shows one text at a time.
    assert shown(sink.path) == [(0.2, 0.5, "A sign"), (0.5, 0.7, "A sign\\NSpeech"), (0.7, 0.9, "Speech")]
    assert copy(path, tmp_path / "toon.mkv").notes == ()
    assert shown(tmp_path / "toon.mkv") == [(0.2, 0.7, "{\\pos(10,10)}A sign"), (0.5, 0.9, "Speech")]


def test_a_part_takes_what_is_shown_in_it_along(tmp_path):
    path = write(tmp_path / "c.mkv", codec="subrip", lines=[(200, 700, b"eins"), (1500, 1900, b"zwei")])
    assert shown(copy(path, tmp_path / "a.mp4", start=0.6).path) == [(0.0, 0.1, "eins"), (0.9, 1.3, "zwei")]
    assert shown(copy(path, tmp_path / "b.mp4", duration=1.0).path) == [(0.2, 0.7, "eins")]


def test_pictures_of_text_are_copied_or_missed_aloud(tmp_path):
    nothing = bytes.fromhex("800000")  # the end of a display set
    path = write(tmp_path / "c.mkv", codec="hdmv_pgs_subtitle", lines=[(200, 500, nothing)])
    sink = copy(path, tmp_path / "toon.mkv")
    assert sink.notes == ()
    with av.open(str(sink.path)) as clip:
        assert [bytes(packet) for packet in clip.demux(subtitles=0) if packet.size] == [nothing]
    assert copy(path, tmp_path / "toon.mp4").notes == (
        "subtitle track 1 (hdmv_pgs_subtitle) was left out: .mp4 cannot hold it, .mkv may",
    )


CHAPTERS = [(0, 800, "One"), (800, 1400, "Zwei ü"), (1400, 2000, "Three")]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("source", ["c.mkv", "c.mp4"])
def test_chapters(source, suffix, tmp_path):
    path = write(tmp_path / source, chapters=CHAPTERS)
    sink = copy(path, tmp_path / f"toon{suffix}")
    assert chapters(sink.path) == [(begin / 1000, end / 1000, title) for begin, end, title in CHAPTERS]
    assert (pictures(sink.path), sink.notes) == (50, ())
    sink = copy(path, tmp_path / f"part{suffix}", start=0.6, duration=0.6)
    assert chapters(sink.path) == [(0.0, 0.2, "One"), (0.2, 0.6, "Zwei ü")]


def test_an_interrupted_run_with_chapters_and_text_plays(tmp_path):
    path = write(
        tmp_path / "c.mp4", codec="mov_text", lines=[(200, 500, TEXTS["mov_text"][1])], chapters=CHAPTERS
    )
    with pytest.raises(KeyboardInterrupt):
        copy(path, tmp_path / "toon.mp4", stop=20)
    assert pictures(tmp_path / "toon.mp4") == 20
    assert chapters(tmp_path / "toon.mp4")[0] == (0.0, 0.8, "One")


def test_attachments_and_cover(tmp_path):
    files = [("a font.ttf", "font/ttf", FONT), ("cover.jpg", "image/jpeg", COVER)]
    path = write(tmp_path / "c.mkv", attachments=files)
    sink = copy(path, tmp_path / "toon.mkv")
    assert sink.notes == ()
    assert attachments(sink.path) == {name: content for name, _, content in files}
    assert pictures(sink.path) == 50
    sink = copy(path, tmp_path / "toon.mp4")
    assert sink.notes == tuple(
        f"attachment {name} was left out: .mp4 cannot hold it here, .mkv can" for name, _, _ in files
    )
    assert pictures(sink.path) == 50


def test_a_cover_is_neither_the_clip_nor_lost(tmp_path):
    plain = write(tmp_path / "plain.mp4")
    path = tmp_path / "covered.mp4"
    with av.open(str(plain)) as clip, av.open(str(path), "w") as covered:
        video = covered.add_stream_from_template(clip.streams.video[0])
        cover = covered.add_mux_stream(
            "mjpeg", width=32, height=32, disposition=av.stream.Disposition.attached_pic
        )
        packet = Packet(COVER)
        packet.pts = packet.dts = 0
        packet.time_base, packet.stream = MILLISECOND, cover
        covered.mux(packet)
        for packet in clip.demux(video=0):
            if packet.size:
                packet.stream = video
                covered.mux(packet)
    sink = copy(path, tmp_path / "toon.mkv")
    assert attachments(sink.path) == {"cover.jpg": COVER}
    assert pictures(sink.path) == 50


class Spy:
    """Stands in for a container and its encoder: keeps what a track wants written."""

    def __init__(self):
        self.subtitle_header = self.time_base = None
        self.codec_context = self

    def add_stream(self, codec):
        return self

    def open(self, strict):
        return None


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(1, 20), st.sampled_from("abc")),
        max_size=8,
    )
)
def test_joined_lines_show_at_every_moment_what_is_to_be_shown(lines):
    lines = sorted(lines, key=lambda line: line[0])
    track = ConvertedText(Spy(), Spy(), "mov_text")
    track._read = lambda packet: packet
    track._encoded = lambda line: line
    written = []
    for begin, length, text in lines:
        written += track.take(text.encode(), Span(begin=Fraction(begin), length=Fraction(length)))
    written += track.finish()
    assert all(a.span.end <= b.span.begin for a, b in pairwise(written))
    for moment in range(61):
        expected = [text for begin, length, text in lines if begin <= moment < begin + length]
        got = [
            line.text.decode().split("\\N") for line in written if line.span.begin <= moment < line.span.end
        ]
        assert got == ([expected] if expected else [])
