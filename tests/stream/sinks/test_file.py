"""What is written is the source's in time, shape, sound and subtitles; no failure costs anybody a file."""

import os
import signal
import subprocess
import sys
import textwrap
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from toonstream.errors import OutputError
from toonstream.stream.frame import Frame
from toonstream.stream.sinks.file import FileSink
from toonstream.stream.sources.file import FileSource

FAITHFUL = 28  # dB, after two lossy encodings


def copy(path, target, *, stop=None, complete=True, **options):
    """Write the frames of a clip as they are; returns the sink and the clip's frames."""
    with FileSource(path, **options) as source:
        sink = FileSink(target, source=source, width=source.info.width, height=source.info.height, crf=8)
        frames = []
        for frame in source:
            if frame.index == stop:
                break
            sink.write(frame)
            frames.append(frame)
        sink.close(complete=complete)
    return sink, frames


def read(path):
    with FileSource(path) as source:
        return source.info, list(source)


def packets(path, number=0, kind="audio"):
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[number]
        return [
            (packet.pts * packet.time_base, bytes(packet))
            for packet in container.demux(stream)
            if packet.size
        ]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def seconds(frames, shift=0):
    return [frame.pts * frame.time_base - shift for frame in frames]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_frames_and_times_are_kept(film, tmp_path, psnr, suffix):
    path = film(frames=50, sounds=["aac"])
    sink, frames = copy(path, tmp_path / f"toon{suffix}")
    info, written = read(sink.path)
    rounding = Fraction(1, 1000) if suffix in (".mkv", ".webm") else 0
    assert len(written) == len(frames) == sink.frames == 50
    assert all(abs(a - b) <= rounding for a, b in zip(seconds(written), seconds(frames), strict=True))
    assert min(psnr(a.image, b.image) for a, b in zip(written, frames, strict=True)) > FAITHFUL
    assert (info.width, info.height, info.sample_aspect_ratio) == (64, 48, 1)
    assert names(tmp_path) == ["odd.mp4", f"toon{suffix}"]


@pytest.mark.parametrize("count", [1, 2, 3, 26, 51])
def test_variable_frame_rate_is_kept_to_the_unit(film, tmp_path, count):
    steps = np.random.default_rng(count).integers(1, 4000, count - 1).tolist()
    pts = [0, *accumulate(steps)]
    path = film("vfr.mp4", pts=pts, frames=len(pts), time_base=Fraction(1, 30_000), rate=Fraction(30))
    sink, frames = copy(path, tmp_path / "toon.mp4")
    assert seconds(read(sink.path)[1]) == seconds(frames) == [Fraction(time, 30_000) for time in pts]


def test_the_last_frame_stays_as_long_as_in_the_source(film, tmp_path):
    sink, _frames = copy(
        film(frames=30, rate=Fraction(30_000, 1001), time_base=Fraction(1, 30_000)), tmp_path / "t.mp4"
    )
    with av.open(str(sink.path)) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == 30 * Fraction(1001, 30_000)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (33, 17), (64, 47), (2, 2)])
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_odd_sizes_are_filled_up(film, tmp_path, psnr, width, height, suffix):
    path = film("odd.mkv", width=width, height=height, pix_fmt="yuv444p", frames=3)
    sink, frames = copy(path, tmp_path / f"toon{suffix}")
    info, written = read(sink.path)
    assert (info.width, info.height) == (width + width % 2, height + height % 2)
    if min(width, height) > 2:  # below, there is one chroma sample for everything
        assert psnr(written[2].image[:height, :width], frames[2].image) > 24
    assert info.sample_aspect_ratio == 1


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_the_shape_on_the_screen_is_kept(film, tmp_path, suffix):
    path = film(sample_aspect_ratio=Fraction(16, 11), frames=3)
    target = tmp_path / f"toon{suffix}"
    with FileSource(path) as source, FileSink(target, source=source, width=96, height=48) as sink:
        for frame in source:
            sink.write(
                Frame(
                    index=0, pts=frame.pts, time_base=frame.time_base, image=np.zeros((48, 96, 3), np.uint8)
                )
            )
    info, _ = read(target)
    square = suffix == ".webm"  # which has no place for the shape of a pixel
    assert (info.width, info.height) == (94 if square else 96, 48)
    assert info.sample_aspect_ratio == (1 if square else Fraction(16, 11) * Fraction(64, 96))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_colours_are_bt709_and_say_so(tmp_path, suffix):
    image = np.full((48, 64, 3), (255, 0, 0), np.uint8)
    target = tmp_path / f"red{suffix}"
    with FileSink(target, source=None, width=64, height=48) as sink:
        for index in range(3):
            sink.write(Frame(index=index, pts=index, time_base=Fraction(1, 25), image=image))
    with av.open(str(target)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc) == (1, 1, 1, 1)
        assert abs(int(frame.to_ndarray()[8, 8]) - 63) <= 1  # 16 + 219 · 0.2126
    assert np.abs(read(target)[1][1].image.astype(int) - image).max() <= 4


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_all_sound_is_copied_byte_by_byte(film, tmp_path, suffix):
    path = film(frames=50, sounds=["aac", "aac", "libmp3lame"])
    sink, _ = copy(path, tmp_path / f"toon{suffix}")
    assert sink.notes == ()
    for number in range(3):
        source, written = packets(path, number), packets(sink.path, number)
        heard = [packet for packet in source if packet[0] >= 0] if suffix == ".mkv" else source
        assert [content for _, content in written] == [content for _, content in heard]
        assert all(abs(a[0] - b[0]) <= Fraction(1, 1000) for a, b in zip(written, heard, strict=True))
    with av.open(str(sink.path)) as container:
        # QuickTime's own list of languages calls German by another code, which FFmpeg does not look up.
        expected = ["eng", None if suffix == ".mov" else "deu", "fra"]
        assert [track.language for track in container.streams.audio] == expected
        assert [track.codec_context.codec.canonical_name for track in container.streams.audio] == [
            "aac",
            "aac",
            "mp3",
        ]


def test_sound_times_of_a_matroska_clip_are_unrounded_for_mp4(film, tmp_path):
    path = film("coarse.mkv", frames=50, sounds=["aac"])
    sink, _ = copy(path, tmp_path / "toon.mp4")
    times = [time for time, _ in packets(sink.path)]
    steps = {later - earlier for earlier, later in pairwise(times)}
    assert steps == {Fraction(1024, 48_000)}
    assert [content for _, content in packets(sink.path)] == [content for _, content in packets(path)]


def test_opus_keeps_its_run_in(film, tmp_path):
    path = film("clip.mkv", frames=50, sounds=["libopus"])
    sink, frames = copy(path, tmp_path / "toon.mkv")
    assert packets(sink.path) == packets(path)
    assert seconds(read(sink.path)[1]) == seconds(frames)


def test_sound_that_a_container_cannot_hold_is_encoded_again(film, tmp_path):
    path = film(frames=50, sounds=["aac"])
    sink, _frames = copy(path, tmp_path / "toon.webm")
    assert sink.notes == ("audio track 1 (aac) was encoded again: .webm cannot hold it",)
    assert abs(tone_onset(sink.path) - tone_onset(path)) < 0.03
    with av.open(str(sink.path)) as container:
        assert container.streams.audio[0].codec_context.name in ("opus", "libopus")
        assert container.streams.audio[0].language == "eng"
        samples = sum(frame.samples for frame in container.decode(audio=0))
    assert samples / 48_000 == pytest.approx(2.0, abs=0.06)


def tone_onset(path):
    """When the sound is first loud, in seconds of the file."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray().astype(float)).max(axis=0) > 0.05)
            if len(loud):
                return frame.time + loud[0] / frame.sample_rate
    raise AssertionError("the sound is silent")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(("start", "duration"), [(0.5, None), (0.7, 0.8), (0.0, 0.6)])
def test_a_part_takes_its_own_sound_along(film, tmp_path, suffix, start, duration):
    path = film(frames=50, sounds=["aac"])
    sink, frames = copy(path, tmp_path / f"toon{suffix}", start=start, duration=duration)
    first = frames[0].pts * frames[0].time_base
    rounding = Fraction(1, 1000) if suffix == ".mkv" else 0
    written = read(sink.path)[1]
    assert all(abs(a - b) <= rounding for a, b in zip(seconds(written), seconds(frames, first), strict=True))
    end = 2.0 if duration is None else start + duration
    begin = first if start or suffix == ".mkv" else -1
    expected = [(time - first, content) for time, content in packets(path) if begin <= time < end]
    got = packets(sink.path)
    assert [content for _, content in got] == [content for _, content in expected]
    assert all(abs(a[0] - b[0]) <= Fraction(1, 1000) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "codec", "target"),
    [
        ("s.mkv", "subrip", "toon.mkv"),
        ("s.mp4", "mov_text", "toon.mp4"),
        ("s.mp4", "mov_text", "toon.mov"),
    ],
)
def test_subtitles_are_copied(film, tmp_path, name, codec, target):
    path = film(name, frames=50, subtitles=codec)
    sink, frames = copy(path, tmp_path / target)
    assert len(read(sink.path)[1]) == len(frames) == 50
    lines = [packet for packet in packets(path, kind="subtitles") if packet[1] != b"\0\0"]
    written = packets(sink.path, kind="subtitles")
    assert [packet for packet in written if packet[1] != b"\0\0"] == lines
    assert len(lines) == 2
    assert len(written) <= len(packets(path, kind="subtitles")) + 1  # the end of the last line
    assert sink.notes == ()


def test_a_subtitle_shown_at_the_start_is_kept_for_its_rest(film, tmp_path):
    path = film("s.mkv", frames=50, subtitles="subrip")
    sink, _ = copy(path, tmp_path / "toon.mkv", start=0.32)
    with av.open(str(sink.path)) as container:
        lines = [(p.pts, p.duration, bytes(p)) for p in container.demux(subtitles=0) if p.size]
    assert lines == [(0, 180, b"first line"), (280, 300, b"second line")]


def test_tags_are_kept(film, tmp_path):
    sink, _ = copy(film(frames=3, tags={"title": "A day", "artist": "Somebody"}), tmp_path / "toon.mp4")
    with av.open(str(sink.path)) as container:
        assert container.metadata["title"] == "A day"
        assert container.metadata["artist"] == "Somebody"


def test_a_turned_clip_is_written_upright_and_not_turned_again(film, tmp_path, psnr):
    sink, frames = copy(film(turn=(90, False, False), frames=3), tmp_path / "toon.mp4")
    info, written = read(sink.path)
    assert (info.width, info.height) == (48, 64)
    assert psnr(written[0].image, frames[0].image) > FAITHFUL


def test_memory_does_not_hold_the_sound(film, tmp_path):
    """The other tracks are read one packet ahead of the pictures."""
    path = film(frames=100, sounds=["aac"])
    with FileSource(path) as source, FileSink(tmp_path / "t.mp4", source=source, width=64, height=48) as sink:
        for frame in source:
            sink.write(frame)
            ahead = sink._tracks._next[1].begin - frame.pts * frame.time_base
            assert ahead <= Fraction(1, 20)


def write_until(sink, source, number, error):
    """Write that many frames, then fail in the middle of the run."""
    with sink:
        for frame in source:
            if frame.index == number:
                raise error
            sink.write(frame)


def test_an_interrupted_run_ends_with_its_last_frame(film, tmp_path):
    target = tmp_path / "toon.mp4"
    with FileSource(film(frames=50, sounds=["aac"])) as source:
        sink = FileSink(target, source=source, width=64, height=48)
        with pytest.raises(KeyboardInterrupt):
            write_until(sink, source, 20, KeyboardInterrupt)
    assert len(read(target)[1]) == 20
    assert max(time for time, _ in packets(target)) < 0.8
    assert sink.partial is None
    assert names(tmp_path) == ["odd.mp4", "toon.mp4"]


@pytest.mark.parametrize(("rate", "kept"), [(22_254, 24_000), (5_512, 7_350), (192_000, 96_000)])
def test_sound_of_a_rate_that_the_encoder_does_not_have_gets_the_nearest(film, tmp_path, rate, kept):
    clip = film(name="odd.avi", frames=25, encoder="mpeg4", options={}, sounds=["pcm_s16le"], sound_rate=rate)
    sink, _ = copy(clip, tmp_path / "toon.mp4")
    assert "encoded again" in sink.notes[0]
    with av.open(str(tmp_path / "toon.mp4")) as container:
        (sound,) = container.streams.audio
        assert sound.codec_context.sample_rate == kept
        assert float(sound.duration * sound.time_base) == pytest.approx(1.0, abs=2 * 1024 / kept)
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(sound)])
    spectrum = np.abs(np.fft.rfft(samples[: kept // 2]))
    assert np.argmax(spectrum) * 2 == pytest.approx(220, abs=4)


def test_an_interrupted_run_does_not_replace_what_was_whole(film, tmp_path):
    target = tmp_path / "toon.mp4"
    target.write_text("yesterday's")
    with FileSource(film(frames=50, sounds=["aac"])) as source:
        sink = FileSink(target, source=source, width=64, height=48)
        with pytest.raises(KeyboardInterrupt):
            write_until(sink, source, 20, KeyboardInterrupt)
    assert target.read_text() == "yesterday's"
    assert sink.partial == tmp_path / "toon.partial.mp4"
    assert len(read(sink.partial)[1]) == 20


def test_an_interruption_before_the_first_frame_leaves_nothing(film, tmp_path):
    with FileSource(film()) as source:
        sink = FileSink(tmp_path / "toon.mp4", source=source, width=64, height=48)
        sink.close(complete=False)
        sink.close()
    assert names(tmp_path) == ["odd.mp4"]


def test_no_frame_at_all_is_an_error(film, tmp_path):
    with FileSource(film()) as source:
        sink = FileSink(tmp_path / "toon.mp4", source=source, width=64, height=48)
        with pytest.raises(OutputError, match="no frame"):
            sink.close()
    assert names(tmp_path) == ["odd.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_failing_run_keeps_its_frames_beside_an_untouched_target(film, tmp_path, suffix):
    target = tmp_path / f"toon{suffix}"
    target.write_text("yesterday's")
    for name in (f"toon.partial{suffix}", f"toon.partial2{suffix}"):
        with FileSource(film(frames=50, sounds=["aac"])) as source:
            sink = FileSink(target, source=source, width=64, height=48)
            with pytest.raises(RuntimeError):
                write_until(sink, source, 20, RuntimeError("a network fell over"))
        assert sink.partial == tmp_path / name
        assert len(read(sink.partial)[1]) == 20
        assert target.read_text() == "yesterday's"


def test_a_run_that_fails_at_once_leaves_nothing(film, tmp_path):
    target = tmp_path / "toon.mp4"
    target.write_text("yesterday's")
    with FileSource(film()) as source:
        sink = FileSink(target, source=source, width=64, height=48)
        with pytest.raises(RuntimeError):
            write_until(sink, source, 0, RuntimeError("before the first frame"))
    assert sink.partial is None
    assert target.read_text() == "yesterday's"
    assert names(tmp_path) == ["odd.mp4", "toon.mp4"]


def test_a_finished_run_replaces_the_target(film, tmp_path):
    target = tmp_path / "toon.mp4"
    target.write_text("yesterday's")
    copy(film(frames=3), target)
    assert len(read(target)[1]) == 3
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_link_is_written_through(film, tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "toon.mp4"
    link.symlink_to(tmp_path / "there" / "real.mp4")
    copy(film(frames=3), link)
    assert link.is_symlink()
    assert len(read(tmp_path / "there" / "real.mp4")[1]) == 3


def run(tmp_path, script, *arguments):
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from toonstream.errors import OutputError
        from toonstream.stream.sources.file import FileSource
        from toonstream.stream.sinks.file import FileSink
        source = FileSource(Path(sys.argv[1]))
        sink = FileSink(Path(sys.argv[2]), source=source, width=64, height=48)
        """
    ) + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_a_killed_run_leaves_what_plays(film, tmp_path, suffix):
    target = tmp_path / f"toon{suffix}"
    target.write_text("yesterday's")
    path = film(frames=150, sounds=["aac"], subtitles="mov_text")
    process = run(
        tmp_path,
        """
        for frame in source:
            sink.write(frame)
        print("written", flush=True)
        sys.stdin.read()
        import signal
        signal.pause()
        """,
        path,
        target,
    )
    assert process.stdout.readline() == "written\n"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert target.read_text() == "yesterday's"
    (left,) = tmp_path.glob(f".toon.*.partial{suffix}")
    _, frames = read(left)
    assert len(frames) >= 50
    assert seconds(frames)[:50] == [Fraction(index, 25) for index in range(50)]
    assert packets(left)


def test_a_disk_that_fills_up(film, tmp_path):
    """A limit on the size of files stands in for the disk: the kernel refuses writes in the same place."""
    target = tmp_path / "toon.mp4"
    target.write_text("yesterday's")
    rng = np.random.default_rng(0)
    path = film(
        images=[rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(150)], sounds=["aac"]
    )
    process = run(
        tmp_path,
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))
        try:
            with sink:
                for frame in source:
                    sink.write(frame)
        except OutputError as error:
            print(error, sink.partial.name, sep="|")
        """,
        path,
        target,
    )
    message, partial = process.communicate()[0].strip().split("|")
    assert process.returncode == 0
    assert "cannot be written (File too large)" in message
    assert target.read_text() == "yesterday's"
    assert len(read(tmp_path / partial)[1]) >= 20
    assert not list(tmp_path.glob(".toon*"))


def test_a_full_disk_is_named(film, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", small], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        rng = np.random.default_rng(0)
        path = film(images=[rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(150)])
        with FileSource(path) as source:
            sink = FileSink(small / "toon.mp4", source=source, width=64, height=48)
            with pytest.raises(OutputError, match=r"the disk is full.*free some space"):
                write_until(sink, source, None, None)
        assert not (small / "toon.mp4").exists()
        assert sink.partial is not None
        assert len(read(sink.partial)[1]) >= 10
    finally:
        subprocess.run(["umount", small], check=True)


def open_sink(film, target):
    with FileSource(film()) as source:
        FileSink(target, source=source, width=64, height=48)


@pytest.mark.parametrize("name", ["toon.avi", "toon", "toon.mp3", "toon.mp4.txt"])
def test_other_suffixes(film, tmp_path, name):
    with pytest.raises(OutputError, match=r"end it in \.mp4, \.mov, \.mkv, \.webm"):
        open_sink(film, tmp_path / name)


def test_a_capital_suffix_is_as_good(film, tmp_path):
    sink, _ = copy(film(frames=3), tmp_path / "TOON.MP4")
    assert len(read(sink.path)[1]) == 3


def test_a_missing_folder(film, tmp_path):
    with pytest.raises(OutputError, match="make that folder first"):
        open_sink(film, tmp_path / "none" / "toon.mp4")


def test_a_directory(film, tmp_path):
    (tmp_path / "toon.mp4").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        open_sink(film, tmp_path / "toon.mp4")


def test_a_device(film, tmp_path):
    (tmp_path / "toon.mp4").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="not a regular file"):
        open_sink(film, tmp_path / "toon.mp4")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that even root cannot write to")
def test_an_unwritable_folder(film):
    with pytest.raises(OutputError, match="choose another"):
        open_sink(film, Path("/proc/self/toon.mp4"))


@pytest.mark.parametrize("alias", ["same", "symbolic", "hard"])
def test_the_clip_itself_is_no_target(film, tmp_path, alias):
    clip = film()
    before = clip.read_bytes()
    target = clip if alias == "same" else tmp_path / "alias.mp4"
    if alias == "symbolic":
        target.symlink_to(clip)
    if alias == "hard":
        target.hardlink_to(clip)
    with FileSource(clip) as source, pytest.raises(OutputError, match="is the clip itself"):
        FileSink(target, source=source, width=64, height=48)
    assert clip.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_frame_of_another_size_is_refused(film, tmp_path):
    with FileSink(tmp_path / "t.mp4", source=None, width=64, height=48) as sink:
        sink.write(Frame(index=0, pts=0, time_base=Fraction(1, 25), image=np.zeros((48, 64, 3), np.uint8)))
        with pytest.raises(ValueError, match="32x48"):
            sink.write(
                Frame(index=1, pts=1, time_base=Fraction(1, 25), image=np.zeros((48, 32, 3), np.uint8))
            )
