"""From file to file: odd clips, and where something goes wrong on the way."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from toonstream.config import Settings, Size
from toonstream.errors import OutputError
from toonstream.stream.frame import Frame
from toonstream.stream.render import render_clip
from toonstream.stream.sinks.file import FileSink
from toonstream.stream.sources.file import FileSource

SMALL = Settings(engine="onnxruntime", size=Size(short=48))


def test_what_was_finished_before_a_failure_is_kept_and_named(
    make_clip: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FileSink.write

    def fills_up(self: FileSink, frame: Frame) -> None:
        if self.frames == 6:
            raise OutputError("the disk is full: make room")
        real(self, frame)

    monkeypatch.setattr(FileSink, "write", fills_up)
    (tmp_path / "toon.mp4").write_bytes(b"an older result")
    with pytest.raises(OutputError, match=r"the disk is full: make room; what was finished .*partial\.mp4"):
        render_clip(make_clip(seconds=0.5), tmp_path / "toon.mp4", SMALL)
    assert (tmp_path / "toon.mp4").read_bytes() == b"an older result"
    with av.open(str(tmp_path / "toon.partial.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6


def rendered(clip: Path, output: Path, **settings: object) -> list[tuple[float, np.ndarray]]:
    """Render with the model that ships; time in seconds and picture of every frame that comes out."""
    render_clip(clip, output, Settings(engine="onnxruntime", side_by_side=True, **settings))
    with FileSource(output) as made:
        return [(float(frame.pts * frame.time_base), frame.image) for frame in made]


def sources(clip: Path) -> list[tuple[float, np.ndarray]]:
    with FileSource(clip) as source:
        return [(float(frame.pts * frame.time_base), frame.image) for frame in source]


def test_a_clip_as_telephones_film_it(film, psnr, tmp_path):
    """Turned, at uneven times, with pixels that are not square, two sounds and subtitles."""
    clip = film(
        "phone.mp4",
        frames=8,
        width=64,
        height=48,
        turn=(90, False, False),
        pts=[0, 512, 1100, 1500, 2600, 3000, 3700, 4100],
        sample_aspect_ratio=Fraction(4, 3),
        sounds=("aac", "aac"),
        subtitles="mov_text",
    )
    before, after = sources(clip), rendered(clip, tmp_path / "toon.mp4")
    assert [time for time, _ in after] == [time for time, _ in before]
    for (_, source), (_, both) in zip(before, after, strict=True):
        assert both.shape == (64, 2 * 48, 3)  # upright
        assert psnr(np.ascontiguousarray(both[:, :48]), source) > 28
        assert both[:, 48:].std() > 5
    with av.open(str(clip)) as source, av.open(str(tmp_path / "toon.mp4")) as toon:
        assert [stream.type for stream in toon.streams] == [stream.type for stream in source.streams]
        assert [stream.metadata.get("language") for stream in toon.streams.audio] == ["eng", "deu"]
        assert toon.streams.video[0].sample_aspect_ratio == Fraction(3, 4)
        for index in range(1, 4):
            assert packets(toon, index) == packets(source, index)


def packets(clip: av.container.InputContainer, index: int) -> list[bytes]:
    """What a track holds, but for the empty lines that end others in an mp4."""
    clip.seek(0)
    return [bytes(packet) for packet in clip.demux(clip.streams[index]) if packet.size > 2]


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "bgra"])
def test_ten_bits_and_alpha_at_an_odd_size_and_without_sound(pix_fmt, film, psnr, tmp_path):
    images = [np.full((39, 51, 4), 200, np.uint8) for _ in range(5)]
    for number, image in enumerate(images):
        image[10:30, 5 * number : 5 * number + 20, :3] = (30, 90, 160)
        image[..., 3] = 255
    clip = film("deep.mkv", images=images, encoder="ffv1", pix_fmt=pix_fmt, options={})
    before, after = sources(clip), rendered(clip, tmp_path / "toon.mkv", size=Size(exact=(50, 38)))
    assert [time for time, _ in after] == pytest.approx([time for time, _ in before], abs=5e-4)
    for (_, source), (_, both) in zip(before, after, strict=True):
        resized = cv2.resize(source, (50, 38), interpolation=cv2.INTER_AREA)
        assert psnr(np.ascontiguousarray(both[:, :50]), np.asarray(resized)) > 28


def test_what_is_not_wanted_counts_where_there_is_guidance(film, tmp_path):
    clip = film("clip.mp4", frames=3)
    plain, guided, against = (
        np.stack([image for _, image in rendered(clip, tmp_path / "toon.mp4", **settings)]).astype(int)
        for settings in (
            {"style": "ink"},
            {"style": "ink", "guidance": 3.0},
            {"style": "ink", "guidance": 3.0, "negative_prompt": "night, flat style"},
        )
    )
    assert np.abs(plain - guided).mean() > 0.5
    assert np.abs(guided - against).mean() > 0.5
