"""One stream from its source to its outlets, whatever happens on the way. All three are stand-ins."""

import json
import threading
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from toonstream.errors import EngineError, InputError, OutputError, SettingError
from toonstream.stream.frame import Frame
from toonstream.stream.live.core import LiveToon
from toonstream.stream.live.session import End
from toonstream.stream.live.settings import Plan
from toonstream.stream.live.statistics import Meter
from toonstream.stream.relay import Relay
from toonstream.stream.retry import FOREVER, Patience
from toonstream.stream.sinks.open import Destination
from toonstream.stream.sinks.tee import Outlet, Tee
from toonstream.stream.sources.live import Picture, SourceFormat, SourceGone, SourceStatistics
from toonstream.stream.sources.sound import Sound
from toonstream.stream.sources.timeline import TICK

RATE = 50
PLAN = Plan(size=(64, 48), steps=1, window=1, stride=1)
QUICK = Patience(first=0.001, cap=0.01, first_limit=FOREVER)
SECONDS = 20.0  # that anything here may take


class Inverter:
    """A session that turns light into dark, at once, on the offering thread."""

    def __init__(self, deliver, ended, *, fails_at=None):
        self._deliver, self._ended, self._fails_at = deliver, ended, fails_at
        self._meter, self._lock, self._over = Meter(), threading.Lock(), False
        self.offered = []

    def offer(self, frame, captured_at):
        self.offered.append(frame)
        now = time.perf_counter()
        with self._lock:
            self._meter.count("in", at=now)
            self._meter.add("stage", "unet", 0.01, at=now)
            self._meter.add("wait", "window", 0.1, at=now)
            self._meter.count("out", at=now)
        if len(self.offered) == self._fails_at:
            self._end(End(reason="failed", message="the card is on fire"))
        elif not self._over:
            toon = replace(frame, image=255 - frame.image, index=len(self.offered) - 1)
            self._deliver(
                LiveToon(source=frame, toon=toon, captured_at=captured_at, committed_at=now, plan=PLAN)
            )

    def finish(self):
        self._end(End(reason="finished", message="done"))

    def close(self):
        self._end(End(reason="closed", message="closed"))

    def wait(self, seconds=None):
        return self._over

    def note_shown(self, toon, at=None):
        with self._lock:
            self._meter.add("shown", "", at - toon.captured_at, at=at)

    def statistics(self):
        with self._lock:
            return self._meter.read(at=time.perf_counter(), plan=PLAN, promise=0.4)

    def _end(self, end):
        if not self._over:
            self._over = True
            self._ended(end)


class Script:
    """A source that plays its openings one after the other: each gives pictures and then does as it says."""

    shown = "script"
    statistics = SourceStatistics()

    def __init__(self, *openings, sound=False, width=64):
        self._openings = list(openings)
        self._sound, self._width = sound, width
        self._stop = threading.Event()
        self.opened = 0

    def read(self, timeline, opened):
        count, then = self._openings[self.opened] if self.opened < len(self._openings) else (0, None)
        self.opened += 1
        if then == "refuse":
            raise InputError("nobody answers")
        timeline.restart()
        opened(SourceFormat(width=self._width, height=48, rate=Fraction(RATE), sound=None))
        for index in range(count):
            if self._stop.wait(1 / RATE):
                return
            now = time.perf_counter()
            stamp = timeline.place(Fraction(index, RATE), now)
            image = np.full((48, self._width, 3), index % 256, np.uint8)
            if self._sound:
                yield Sound(data=b"x", begin=stamp, length=Fraction(1, RATE), format=None)
            frame = Frame(index=index, pts=round(stamp / TICK), time_base=TICK, image=image)
            yield Picture(frame=frame, captured_at=now)
        if then == "hang":
            threading.Event().wait(SECONDS)
        if then == "wait":
            self._stop.wait(SECONDS)
        if isinstance(then, Exception):
            raise then

    def interrupt(self):
        self._stop.set()


class Kept:
    """A destination that keeps what it is given."""

    def __init__(self, *, fails=False):
        self.destination = Destination(shown="kept", open=self._open, retries=not fails)
        self.frames, self.sounds, self.formats, self.closed = [], [], [], 0
        self.changed = threading.Condition()
        self._fails = fails

    def _open(self, format_):
        if self._fails:
            raise OutputError("nobody takes it")
        self.formats.append(format_)
        return self

    def write(self, frame):
        with self.changed:
            self.frames.append(frame)
            self.changed.notify_all()

    def hear(self, sound):
        self.sounds.append(sound)

    def close(self):
        self.closed += 1

    def abandon(self):
        pass

    def abort(self):
        pass

    @property
    def times(self):
        return [frame.pts * frame.time_base for frame in self.frames]


def relay(
    source, *places, patience=QUICK, session=Inverter, size=lambda width, height: (width, height), **options
):
    lines = []
    tee = Tee([Outlet(place.destination, QUICK, note=lines.append) for place in places])
    made = Relay(source, session, tee, size=size, patience=patience, note=lines.append, **options)
    made.lines = lines
    return made


def test_pictures_arrive_inverted_in_order_with_their_times_and_sound():
    kept = Kept()
    news = relay(Script((25, None), sound=True), kept).run()
    assert [int(frame.image[0, 0, 0]) for frame in kept.frames] == [255 - index for index in range(25)]
    steps = [later - earlier for earlier, later in pairwise(kept.times)]
    assert steps == [Fraction(1, RATE)] * 24
    assert len(kept.sounds) == 25
    assert kept.closed == 1
    (format_,) = kept.formats
    assert (format_.width, format_.height, format_.rate) == (64, 48, RATE)
    assert (news.source, news.dropped, news.live.frames_out) == ("ended", 0, 25)
    assert news.latency.count == 25


def test_figures_are_json_and_one_line():
    told = []
    news = relay(Script((60, None)), Kept()).run(observe=told.append)
    assert 1 <= len(told) <= news.seconds + 1
    facts = json.loads(json.dumps(news.facts()))
    assert set(facts["latency_ms"]) == {"p50", "p95", "p99"}
    assert facts["destinations"][0]["frames"] == 60
    assert facts["promise_ms"] == 400
    assert set(facts["stages_ms"]["unet"]) == set(facts["waits_ms"]["window"]) == {"p50", "p95", "p99"}
    assert "60 toons" in news.summary()
    early = replace(news, source="open", live=replace(news.live, frames_out=0))
    assert "0 toons" in early.summary()
    assert "the networks are being made ready" in early.summary()
    assert "\n" not in news.summary()


def test_a_source_that_goes_away_is_waited_for_while_the_outlet_is_kept_alive():
    kept = Kept()
    source = Script(
        (20, InputError("it broke off")), *[(0, "refuse")] * 200, (20, SourceGone("gone")), (20, "wait")
    )
    made = relay(source, kept, patience=Patience(first=0.01, cap=0.01))

    def stopped():
        with kept.changed:
            real = [frame for frame in kept.frames if frame.index >= 0]
            return len(real) >= 55

    made.run(stopped=stopped)
    repeated = [frame for frame in kept.frames if frame.index < 0]
    assert repeated
    assert all(int(frame.image[0, 0, 0]) == 255 - 19 for frame in repeated)
    assert all(later > earlier for earlier, later in pairwise(kept.times))
    assert max(later - earlier for earlier, later in pairwise(kept.times)) < 2
    assert len(kept.formats) == 1
    assert made.lines[0].startswith("it broke off; again in 0.0")
    assert made.lines.count("script is there again") == 2


def test_a_source_that_never_opens_is_not_waited_for_unless_asked():
    kept = Kept()
    with pytest.raises(InputError, match="nobody answers"):
        relay(Script((0, "refuse")), kept, patience=Patience()).run()
    assert kept.formats == []


def test_as_often_as_asked():
    source = Script(*[(0, "refuse")] * 9)
    with pytest.raises(InputError, match="nobody answers"):
        relay(source, Kept(), patience=Patience(first=0.001, first_limit=3)).run()
    assert source.opened == 4


def test_a_source_that_says_goodbye_is_the_end_if_nobody_waits_for_it():
    kept = Kept()
    made = relay(Script((10, SourceGone("whoever published left"))), kept, patience=Patience(limit=0))
    made.run()
    assert len(kept.frames) == 10
    assert made.lines == ["whoever published left; that is the end"]


def test_a_source_that_breaks_off_is_an_error_but_what_came_is_written():
    kept = Kept()
    with pytest.raises(InputError, match="it broke off"):
        relay(Script((10, InputError("it broke off"))), kept, patience=Patience(limit=0)).run()
    assert (len(kept.frames), kept.closed) == (10, 1)


def test_a_source_without_a_picture():
    with pytest.raises(InputError, match="has not shown a single picture"):
        relay(Script((0, None)), Kept()).run()


def test_a_mistake_in_the_source_is_an_error_without_secrets():
    source = Script((3, ZeroDivisionError("rtmp://host/app/sesame")))
    with pytest.raises(InputError, match=r"script: ZeroDivisionError: rtmp://host/app/\*\*\*"):
        relay(source, Kept()).run()


def test_a_session_that_fails_ends_it():
    kept = Kept()
    with pytest.raises(EngineError, match="the card is on fire"):
        relay(Script((100, "wait")), kept, session=lambda *hooks: Inverter(*hooks, fails_at=10)).run()
    assert (len(kept.frames), kept.closed) == (9, 1)


def test_when_nothing_is_left_to_write_to():
    with pytest.raises(OutputError, match="nobody takes it"):
        relay(Script((1000, "wait")), Kept(fails=True)).run()


def test_one_of_two_outlets_is_enough():
    kept = Kept()
    made = relay(Script((10, None)), Kept(fails=True), kept)
    made.run()
    assert len(kept.frames) == 10
    assert made.lines == ["nobody takes it; it is given up"]


def test_a_picture_that_cannot_be_drawn_is_not_tried_forever():
    def size(width, height):
        raise SettingError("too few pixels")

    with pytest.raises(SettingError, match="too few pixels"):
        relay(Script((10, "wait")), Kept(), size=size).run()


def test_a_stop_flushes_and_closes():
    kept = Kept()
    made = relay(Script((10_000, None)), kept)
    news = made.run(stopped=lambda: len(kept.frames) >= 5)
    assert kept.closed == 1
    assert len(kept.frames) == news.live.frames_out
    assert made.lines == []


def test_a_stop_does_not_wait_for_a_network():
    kept = Kept()
    began = time.monotonic()
    relay(Script((5, "hang")), kept).run(stopped=lambda: len(kept.frames) >= 5)
    assert kept.closed == 1
    assert time.monotonic() - began < SECONDS / 2


def test_beside_each_other():
    kept = Kept()
    relay(Script((3, None)), kept, beside=True).run()
    assert kept.formats[0].width == 128
    image = kept.frames[2].image
    assert image.shape == (48, 128, 3)
    assert (int(image[0, 0, 0]), int(image[0, 127, 0])) == (2, 253)


def test_engines_are_built_before_the_first_picture_where_it_can_wait():
    prepared = []
    kept = Kept()
    relay(Script((3, None)), kept, prepare=prepared.append).run()
    assert prepared == [(64, 48)]
