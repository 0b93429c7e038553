import io
import json
from itertools import count

import pytest

from toonstream.progress import Bar, Lines, MachineReadable, Silent, describe
from toonstream.stream.pipeline import Progress

FACTS = {"clip": "clip.mp4", "frames": 100}


def at(frames_in: int, committed: int, seconds: float) -> Progress:
    return Progress(frames_in=frames_in, frames_committed=committed, seconds=seconds, first_seconds=None)


@pytest.mark.parametrize(
    ("progress", "total", "text"),
    [
        (at(30, 20, 10.0), 100, "in 30/100  committed 20  2.0 fps  look-ahead 10  0:40 left"),
        (at(30, 20, 10.0), None, "in 30  committed 20  2.0 fps  look-ahead 10"),
        (at(1, 0, 0.0), 100, "in 1/100  committed 0  0.0 fps  look-ahead 1"),
        (at(9000, 1, 1.0), 9000, "in 9000/9000  committed 1  1.0 fps  look-ahead 8999  2:29:59 left"),
        (at(110, 110, 10.0), 100, "in 110/100  committed 110  11.0 fps  look-ahead 0  0:00 left"),
    ],
)
def test_how_far_a_run_is_in_one_line(progress: Progress, total: int | None, text: str) -> None:
    assert describe(progress, total) == text


def test_json_lines_have_events_and_figures() -> None:
    stream = io.StringIO()
    reporter = MachineReadable(stream, count().__next__)
    reporter.start(FACTS)
    reporter.progress(at(30, 20, 10.0))
    reporter.done({"fps": 2.0}, "never shown")
    start, progress, done = (json.loads(line) for line in stream.getvalue().splitlines())
    assert start == {"event": "start", **FACTS}
    assert progress == {
        "event": "progress",
        "frames_in": 30,
        "frames_committed": 20,
        "frames": 100,
        "lookahead": 10,
        "fps": 2.0,
        "seconds": 10.0,
        "seconds_left": 40.0,
    }
    assert done == {"event": "done", "fps": 2.0}


def test_json_has_null_for_what_is_not_known() -> None:
    stream = io.StringIO()
    reporter = MachineReadable(stream)
    reporter.start({"frames": None})
    reporter.progress(at(30, 20, 10.0))
    progress = json.loads(stream.getvalue().splitlines()[1])
    assert progress["frames"] is None
    assert progress["seconds_left"] is None


def test_a_log_gets_a_line_every_few_seconds_only() -> None:
    stream = io.StringIO()
    seconds = iter([0.0, 1.0, 4.9, 5.0, 6.0, 10.0])
    reporter = Lines(stream, lambda: next(seconds))
    reporter.start(FACTS)
    for frames in range(1, 7):
        reporter.progress(at(frames, 0, 1.0))
    reporter.done({}, "the end")
    lines = stream.getvalue().splitlines()
    assert [line.split("/")[0] for line in lines[:-1]] == ["in 1", "in 4", "in 6"]
    assert lines[-1] == "the end"


def test_a_bar_grows_and_gives_way_to_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    stream = io.StringIO()
    reporter = Bar(stream, count().__next__)
    reporter.start(FACTS)
    reporter.progress(at(30, 20, 10.0))
    reporter.progress(at(100, 90, 10.0))
    reporter.done({}, "the end")
    _, first, second, blank, summary = stream.getvalue().split("\r")
    assert 0 < first.count("#") < second.count("#")
    assert max(len(first), len(second)) < 100
    assert not blank.strip()
    assert summary == "the end\n"


def test_a_bar_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = io.StringIO()
    reporter = Bar(stream, count().__next__)
    reporter.start(FACTS)
    reporter.progress(at(30, 20, 10.0))
    assert len(stream.getvalue().removeprefix("\r")) < 30


def test_silence() -> None:
    reporter = Silent()
    reporter.start(FACTS)
    reporter.progress(at(1, 1, 1.0))
    assert reporter.done({}, "") is None
