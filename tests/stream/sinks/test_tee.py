"""Several outlets at once: none waits for another, what goes away comes back, all drops are counted."""

import threading
from collections import deque
from fractions import Fraction

import numpy as np

from toonstream.errors import OutputError
from toonstream.stream.frame import Frame
from toonstream.stream.retry import FOREVER, Patience
from toonstream.stream.sinks.live import OutputFormat
from toonstream.stream.sinks.open import Destination
from toonstream.stream.sinks.tee import Outlet, Tee
from toonstream.stream.sources.sound import Sound

FORMAT = OutputFormat(width=2, height=2, rate=Fraction(25))
IMAGE = np.zeros((2, 2, 3), np.uint8)
QUICK = Patience(first=0.001, cap=0.002, first_limit=FOREVER)
SECONDS = 10.0  # that anything here may take


def frame(index):
    return Frame(index=index, pts=index, time_base=Fraction(1, 25), image=IMAGE)


def sound(index):
    return Sound(data=b"x", begin=Fraction(index, 25), length=Fraction(0), format=None)


class Place:
    """A destination that notes what is written, and fails and waits as told."""

    def __init__(self, name="place", *, fails=(), retries=True):
        self.destination = Destination(shown=name, open=self._open, retries=retries)
        self.written, self.heard, self.opened, self.closed, self.abandoned = [], [], 0, 0, 0
        self.fails = deque(
            fails
        )  # of each opening: None (not at all), "open", or the number of the write that fails
        self.changed = threading.Condition()
        self.free = threading.Event()
        self.free.set()
        self.aborted = threading.Event()

    def until(self, holds):
        with self.changed:
            assert self.changed.wait_for(holds, SECONDS)

    def _open(self, format_):
        fails = self.fails.popleft() if self.fails else None
        if fails == "open":
            raise OutputError("nobody answers")
        self._note("opened")
        return _Sink(self, fails)

    def _note(self, what):
        with self.changed:
            setattr(self, what, getattr(self, what) + 1)
            self.changed.notify_all()


class _Sink:
    def __init__(self, place, fails):
        self._place, self._fails, self._writes = place, fails, 0

    def write(self, frame):
        place = self._place
        while not (place.free.wait(0.01) or place.aborted.is_set()):
            pass
        self._writes += 1
        if self._writes == self._fails or place.aborted.is_set():
            raise OutputError("it hung up")
        with place.changed:
            place.written.append(frame.index)
            place.changed.notify_all()

    def hear(self, sound):
        with self._place.changed:
            self._place.heard.append(sound.begin)

    def close(self):
        self._place._note("closed")

    def abandon(self):
        self._place._note("abandoned")

    def abort(self):
        self._place.aborted.set()


def test_everything_is_written_in_order_and_closed():
    place = Place()
    tee = Tee([Outlet(place.destination, QUICK)])
    tee.begin(FORMAT)
    for index in range(10):
        tee.offer(frame(index))
        tee.offer(sound(index))
    tee.close(SECONDS)
    assert place.written == list(range(10))
    assert place.heard == [Fraction(index, 25) for index in range(10)]
    assert (place.opened, place.closed, place.abandoned) == (1, 1, 0)
    statistics = tee.outlets[0].statistics
    assert (statistics.frames, statistics.dropped, statistics.state) == (10, {}, "closed")


def test_a_slow_outlet_drops_the_oldest_and_holds_up_nobody():
    slow, quick = Place("slow"), Place("quick")
    slow.free.clear()
    tee = Tee([Outlet(slow.destination, QUICK), Outlet(quick.destination, QUICK)])
    tee.begin(FORMAT)
    for index in range(200):
        tee.offer(frame(index))
        quick.until(lambda: len(quick.written) > index)  # noqa: B023
    statistics = tee.outlets[0].statistics
    assert statistics.waiting == 16
    assert statistics.dropped == {"slow": 183}
    assert tee.outlets[0].news() == "slow does not keep up: 183 frames dropped, 183 in all"
    assert tee.outlets[0].news() is None
    assert tee.outlets[1].news() is None
    slow.free.set()
    tee.close(SECONDS)
    assert slow.written == [0, *range(184, 200)]
    assert quick.written == list(range(200))


def test_it_is_told_what_is_written_and_not_what_only_waits():
    place, told = Place(), []
    place.free.clear()
    tee = Tee([Outlet(place.destination, QUICK)])
    tee.begin(FORMAT, lambda frame: told.append(frame.index))
    for index in range(40):
        tee.offer(frame(index))
        tee.offer(sound(index))
    assert told == []
    place.free.set()
    tee.close(SECONDS)
    assert told == place.written
    assert len(told) == tee.outlets[0].statistics.frames < 40


def test_sound_alone_does_not_pile_up():
    place = Place()
    place.free.clear()
    outlet = Outlet(place.destination, QUICK)
    outlet.begin(FORMAT)
    for index in range(2000):
        outlet.offer(sound(index))
    outlet.offer(frame(0))
    for index in range(2000):
        outlet.offer(sound(index))
    place.free.set()
    outlet.finish()
    assert outlet.wait(SECONDS)
    assert len(place.heard) <= 257
    assert outlet.statistics.sounds_dropped == 4000 - len(place.heard)


def test_an_outlet_that_goes_away_comes_back():
    lines = []
    place = Place(fails=["open", 3, "open", None])
    outlet = Outlet(place.destination, QUICK, note=lines.append)
    outlet.begin(FORMAT)
    index = 0
    while len(place.written) < 10:
        outlet.offer(frame(index))
        index += 1
    outlet.finish()
    assert outlet.wait(SECONDS)
    assert place.opened == place.closed + place.abandoned == outlet.statistics.opened
    assert place.written == sorted(place.written)
    assert lines == [
        "nobody answers; again in 0.0 s",
        "it hung up; again in 0.0 s",
        "nobody answers; again in 0.0 s",
        "place is there again",
    ]
    statistics = outlet.statistics
    assert statistics.frames + sum(statistics.dropped.values()) == index


def test_an_outlet_that_never_worked_is_given_up_and_said_once():
    lines = []
    place = Place(fails=["open"] * 9)
    dead, well = Place("dead", fails=["open"] * 9), Place("well")
    tee = Tee(
        [
            Outlet(dead.destination, Patience(first=0.001), note=lines.append),
            Outlet(well.destination, Patience()),
        ]
    )
    tee.begin(FORMAT)
    for index in range(50):
        tee.offer(frame(index))
        well.until(lambda: len(well.written) > index)  # noqa: B023
    tee.close(SECONDS)
    assert well.written == list(range(50))
    assert lines == ["nobody answers; it is given up"]
    assert tee.failure is None  # one is left
    statistics = tee.outlets[0].statistics
    assert (statistics.state, statistics.frames, statistics.dropped) == ("failed", 0, {"away": 50})
    assert place.opened == 0


def test_when_all_are_given_up_so_is_the_tee():
    place = Place(fails=["open"])
    tee = Tee([Outlet(place.destination, Patience())])
    tee.begin(FORMAT)
    tee.offer(frame(0))
    assert tee.outlets[0].wait(SECONDS)
    assert isinstance(tee.failure, OutputError)


def test_a_file_is_not_tried_again():
    place = Place(fails=[2, None], retries=False)
    outlet = Outlet(place.destination, QUICK)
    outlet.begin(FORMAT)
    outlet.offer(frame(0))
    outlet.offer(frame(1))
    assert outlet.wait(SECONDS)
    assert str(outlet.failure) == "it hung up"
    assert place.opened == 1


def test_a_mistake_in_one_outlet_ends_that_one():
    class Odd(Place):
        def _open(self, format_):
            raise ZeroDivisionError("rtmp://host/app/sesame")

    outlet = Outlet(Odd("odd").destination, QUICK)
    outlet.begin(FORMAT)
    outlet.offer(frame(0))
    assert outlet.wait(SECONDS)
    assert str(outlet.failure) == "odd: ZeroDivisionError: rtmp://host/app/***"


def test_an_outlet_that_is_stuck_is_hung_up_on():
    stuck = Place()
    stuck.free.clear()
    tee = Tee([Outlet(stuck.destination, QUICK)])
    tee.begin(FORMAT)
    tee.offer(frame(0))
    tee.close(0.05)
    assert stuck.aborted.is_set()
    assert tee.outlets[0].wait(SECONDS)
    assert tee.outlets[0].failure is None
    assert stuck.abandoned == 1


def test_an_end_without_a_picture_opens_nothing():
    place = Place()
    tee = Tee([Outlet(place.destination, QUICK)])
    tee.begin(FORMAT)
    tee.offer(sound(0))
    tee.close(SECONDS)
    assert (place.opened, tee.outlets[0].statistics.sounds_dropped) == (0, 1)


def test_an_end_before_the_beginning():
    tee = Tee([Outlet(Place().destination, QUICK)])
    tee.close(SECONDS)
    assert tee.outlets[0].statistics.state == "waiting"


def test_an_end_while_away():
    place = Place(fails=["open"] * 1000)
    away = threading.Event()
    patience = Patience(first=60.0, cap=60.0, first_limit=FOREVER)
    outlet = Outlet(place.destination, patience, note=lambda line: away.set())
    outlet.begin(FORMAT)
    outlet.offer(frame(0))
    assert away.wait(SECONDS)
    outlet.finish()
    assert outlet.wait(SECONDS)
    assert outlet.statistics.dropped == {"away": 1}
