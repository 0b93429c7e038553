"""The words of `toonstream SRC DST…`; what it does is in tests/e2e/test_rtmp.py."""

import io
import json
import subprocess
import sys

import pytest

from toonstream.cli import main
from toonstream.commands.live import _bit_rate, _Lines, _MachineReadable, _make_reporter, _retry
from toonstream.errors import SettingError
from toonstream.stream.live.statistics import LiveStatistics, Percentiles
from toonstream.stream.relay import RelayNews
from toonstream.stream.retry import FOREVER
from toonstream.stream.sinks.tee import OutletStatistics
from toonstream.stream.sources.live import SourceStatistics

HEAVY = ("torch", "av", "cv2", "numpy", "openvino", "onnxruntime", "diffusers", "transformers")


def test_help_fits_one_screen(capsys):
    with pytest.raises(SystemExit) as left:
        main(["live", "--help"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 36
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rtmp://h/live/sesame"], "arguments are required: DST; see toonstream live --help"),
        (["live"], "arguments are required: SRC, DST"),
        (["rtmp://h/live/sesame", "a.mp4", "--bogus"], "unrecognized arguments: --bogus"),
        (["clip.mp4", "rtmp://h/live"], "clip.mp4 does not exist"),
        (["clip.mp4", "out/"], "clip.mp4 does not exist"),
        (["live", "clip.mp4", "b.mp4"], "clip.mp4 does not exist"),
        (["webcam:", "toon.mp4", "--listen"], "--listen waits at rtmp://"),
        (["udp://127.0.0.1:5000", "toon.avi"], "end it in .mp4"),
        (["udp://127.0.0.1:5000", "nowhere/toon.mp4"], "nowhere does not exist"),
        (["udp://127.0.0.1:5000", "rtmp://h/sesame"], "rtmp://h/sesame names no stream"),
        (
            ["udp://127.0.0.1:5000", "toon.mp4", "--retry", "often"],
            "a number of failures in a row, or forever",
        ),
        (["udp://127.0.0.1:5000", "toon.mp4", "--bitrate", "fast"], "write 2500k or 4M"),
        (["udp://127.0.0.1:5000", "toon.mp4", "--latency", "soon"], "write 400ms or 0.4s"),
        (["udp://127.0.0.1:5000", "toon.mp4", "--style", "nonesuch"], "has no style 'nonesuch'"),
        (["rtmp://127.0.0.1:1/live/sesame", "toon.mp4"], "nobody answers at rtmp://127.0.0.1:1/live/***"),
        (["udp://127.0.0.1:5000", "rtmp://127.0.0.1:1/live/sesame"], "nobody answers at rtmp://127.0.0.1:1/"),
        (["udp://127.0.0.1:5000", "toon.mp4", "--remember", "9"], "remember 9: take 0"),
        (["udp://127.0.0.1:5000", "toon.mp4", "--reference", "no.png"], "no.png: No such file"),
        (["udp://127.0.0.1:5000", "toon.mp4", "--deflicker", "accurate"], "invalid choice: 'accurate'"),
        (["whip://0.0.0.0:8080", "toon.mp4"], "can be reached from outside: set a token"),
        (["whip://", "toon.mp4"], "write whip://HOST:PORT"),
        (["whip://127.0.0.1:0", "toon.mp4", "--tls-cert", "c.pem"], "both --tls-cert and --tls-key"),
        (
            ["whip://127.0.0.1:0", "toon.mp4", "--tls-cert", "c.pem", "--tls-key", "k.pem"],
            "cannot use c.pem and k.pem for TLS",
        ),
        (["udp://127.0.0.1:5000", "toon.mp4", "--tls-cert", "c.pem"], "are for whip:// and whep://"),
        (["udp://127.0.0.1:5000", "whep://127.0.0.1:8080"], "names no stream: write whep://HOST:PORT/NAME"),
        (["clip.mp4", "--latency", "400ms"], "for live streams: name a DST"),
        (["clip.mp4", "b.mp4"], "one clip at a time: leave out b.mp4, or write it with -o b.mp4"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.startswith("toonstream: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert "/live/sesame" not in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [["live", "--help"], ["rtmp://h/app/key"], ["live", "a", "b", "--retry", "x"]]
)
def test_nothing_heavy_is_imported_before_the_arguments_are_checked(words):
    code = (
        "import sys; from toonstream.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"sys.exit(bool(set({HEAVY!r}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=False)
    assert result.returncode == 0


def test_patience():
    assert (_retry(None).limit, _retry(None).first_limit) == (FOREVER, 0)
    assert (_retry("forever").limit, _retry("forever").first_limit) == (FOREVER, FOREVER)
    assert (_retry("0").limit, _retry("7").first_limit) == (0, 7)
    for text in ("-1", "1.5", "", "²"):
        with pytest.raises(SettingError, match="retry"):
            _retry(text)


def test_bit_rates():
    assert [_bit_rate(text) for text in ("2500k", "4M", "0.5m", "800000")] == [
        2_500_000,
        4_000_000,
        500_000,
        800_000,
    ]
    for text in ("", "k", "4G", "1k", "1000M", "nan", "inf", "4kk"):
        with pytest.raises(SettingError, match="bitrate"):
            _bit_rate(text)


def news(seconds):
    outlet = OutletStatistics(
        name="rtmp://h/app/***",
        state="open",
        frames=7,
        dropped={"slow": 1},
        sounds_dropped=0,
        opened=2,
        waiting=0,
    )
    return RelayNews(
        seconds=seconds,
        source="open",
        source_statistics=SourceStatistics(pictures=9),
        jumps=0,
        live=LiveStatistics(frames_in=9, frames_out=7, shown=Percentiles(count=7, p50=0.3, p95=0.4, p99=0.5)),
        delay=0.4,
        late=0,
        repeated=0,
        outlets=(outlet,),
    )


def test_lines_for_people_come_every_few_seconds():
    stream = io.StringIO()
    lines = _Lines(stream)
    lines.start({"source": "webcam:0", "destinations": ["a.mp4", "b/"]})
    for second in range(1, 12):
        lines.progress(news(second))
    lines.note("it hung up;\nagain in 1.0 s")
    lines.done(news(12))
    assert stream.getvalue().splitlines() == [
        "webcam:0 → a.mp4, b/; Ctrl-C ends it",
        "7 toons, 0.0 fps, 400 ms behind, 0 dropped",
        "7 toons, 0.0 fps, 400 ms behind, 0 dropped",
        "it hung up; again in 1.0 s",
        "rtmp://h/app/***: 7 frames; 0 dropped in 12.0 s",
    ]


def test_json_is_one_object_a_line():
    stream = io.StringIO()
    lines = _MachineReadable(stream)
    lines.start({"source": "webcam:0", "destinations": ["a.mp4"]})
    lines.progress(news(1))
    lines.note("it hung up")
    lines.done(news(2))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["start", "live", "note", "done"]
    assert events[1]["latency_ms"] == {"p50": 300, "p95": 400, "p99": 500}
    assert events[1]["destinations"][0]["dropped"] == {"slow": 1}


def test_quiet(capsys):
    reporter = _make_reporter(quiet=True, machine_readable=False)
    reporter.start({})
    reporter.note("x")
    reporter.progress(news(9))
    reporter.done(news(9))
    assert capsys.readouterr() == ("", "")
