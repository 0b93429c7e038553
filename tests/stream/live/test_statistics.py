import json

from hypothesis import given
from hypothesis import strategies as st

from toonstream.stream.live.statistics import Drop, Event, LiveStatistics, Meter, Percentiles


@given(st.lists(st.floats(0, 1e3), min_size=1))
def test_percentiles_are_values_that_so_many_are_not_above(values):
    found = Percentiles.of(values)
    for part, value in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        assert value in values
        assert sum(each <= value for each in values) >= part * len(values)
        assert sum(each < value for each in values) < part * len(values)
    assert found.count == len(values)


def test_of_nothing_there_are_no_percentiles():
    assert Percentiles.of([]) == Percentiles(count=0, p50=None, p95=None, p99=None)


def test_figures_look_back_some_seconds_and_counts_look_back_to_the_start():
    meter = Meter()
    for frame in range(600):
        at = frame / 30
        meter.count("in", at=at)
        if frame % 2:
            meter.count("out", at=at)
            meter.add("latency", "", 0.1 if frame < 300 else 0.2, at=at)
            meter.add("stage", "unet", 0.01, at=at)
            meter.add("wait", "input", 0.001, at=at)
    meter.drop("input", "late", 3)
    meter.drop("input", "late")
    meter.drop("flight", "closed")
    meter.note(Event(at=1.0, kind="plan", message="draws"))
    figures = meter.read(at=20.0, promise=0.4)
    assert (figures.frames_in, figures.frames_out) == (600, 300)
    assert round(figures.fps_in) == 30
    assert round(figures.fps_out) == 15
    assert figures.latency.p50 == 0.2
    assert 140 <= figures.latency.count <= 151
    assert figures.stages["unet"].p99 == 0.01
    assert set(figures.waits) == {"input"}
    assert figures.shown == Percentiles()
    assert figures.drops == (
        Drop(place="flight", reason="closed", count=1),
        Drop(place="input", reason="late", count=4),
    )
    assert figures.dropped == 5
    assert json.loads(json.dumps(figures.facts()))["events"][0]["message"] == "draws"
    later = meter.read(at=100.0)
    assert (later.fps_in, later.latency, later.frames_in) == (0.0, Percentiles(), 600)


def test_memory_is_bounded():
    meter = Meter()
    for frame in range(5000):
        meter.count("in", at=frame / 1000)
        meter.add("latency", "", 0.1, at=frame / 1000)
        meter.note(Event(at=0.0, kind="plan", message=str(frame)))
    figures = meter.read(at=5.0)
    assert figures.latency.count == 1200
    assert len(figures.events) == 50
    assert round(figures.fps_in, -1) == 1000


def test_of_a_new_session_all_is_nothing():
    assert Meter().read(at=0.0) == LiveStatistics()
