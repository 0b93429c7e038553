"""Toons and sound go out in order, in step, and without end."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.stream.frame import Frame
from toonstream.stream.playout import Playout
from toonstream.stream.sources.sound import Sound
from toonstream.stream.sources.timeline import TICK

IMAGE = np.zeros((2, 2, 3), np.uint8)


def frame(time):
    return Frame(index=0, pts=round(Fraction(time) / TICK), time_base=TICK, image=IMAGE)


def sound(time):
    return Sound(data=b"x", begin=Fraction(time), length=Fraction(0), format=None)


def time_of(item):
    return item.begin if isinstance(item, Sound) else item.pts * item.time_base


def run(events, *, until, step=0.01, keep_alive=False):
    """Feed (when, what, captured_at) events; gives (when, item) as they go out."""
    playout, out, now, events = Playout(), [], 0.0, sorted(events, key=lambda event: event[0])
    while now <= until:
        while events and events[0][0] <= now:
            _, item, captured = events.pop(0)
            if isinstance(item, Sound):
                playout.hear(item)
            else:
                playout.show(item, captured, now)
        out += [(now, item) for item in playout.due(now, keep_alive=keep_alive)]
        now += step
    return playout, out


def test_bursts_go_out_evenly():
    """Two frames at a time, as strides of the rolling window make them."""
    events = []
    for pair in range(50):
        made = pair * 0.08 + 0.3
        events += [(made, frame(Fraction(2 * pair + one, 25)), pair * 0.08 + one * 0.04) for one in (0, 1)]
    _, out = run(events, until=5.0)
    assert len(out) == 100
    gaps = [later - earlier for (earlier, _), (later, _) in pairwise(out[4:])]
    assert max(gaps) <= 0.05 + 1e-9
    assert min(gaps) >= 0.03 - 1e-9


@settings(max_examples=15)
@given(st.floats(0.05, 1.5), st.floats(0.0, 0.2), st.randoms(use_true_random=False))
def test_sound_goes_out_with_its_picture(latency, jitter, random):
    """Lips in sync: the sound that goes out is within 40 ms of the picture that does.

    Where a picture is later than any before it, sound has gone ahead by as much, once.
    """
    events = [
        (index / 25 + latency + jitter * random.random(), frame(Fraction(index, 25)), index / 25)
        for index in range(150)
    ]
    events += [(index * 0.02, sound(Fraction(index, 50)), None) for index in range(300)]
    _, out = run(events, until=9.0)
    picture, apart = None, []
    for _when, item in out:
        if isinstance(item, Frame):
            picture = time_of(item)
        elif picture is not None and 1 < picture < Fraction(149, 25):
            apart.append(float(abs(time_of(item) - picture)))
    step = 0.011  # of this test
    assert len(apart) > 100
    assert max(apart) <= 0.04 + jitter + step
    assert np.quantile(apart, 0.97) <= 0.04 + step


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 5.0), st.integers(0, 500), st.booleans(), st.floats(0.0, 3.0)), max_size=80
    ),
    st.booleans(),
)
def test_pictures_never_go_back_and_none_is_forgotten(arrivals, keep_alive):
    events = [
        (when, sound(Fraction(at, 100)), None)
        if heard
        else (when, frame(Fraction(at, 100)), max(0.0, when - ago))
        for when, at, heard, ago in arrivals
    ]
    playout, out = run(events, until=20.0, step=0.05, keep_alive=keep_alive)
    out += [(20.0, item) for item in playout.due(20.0, everything=True)]
    times = [time_of(item) for _, item in out if isinstance(item, Frame)]
    assert all(later > earlier for earlier, later in pairwise(times))
    frames = sum(isinstance(event[1], Frame) for event in events)
    assert len(times) == frames - playout.late + playout.repeated
    assert playout.waiting == 0


def test_the_last_toon_is_repeated_while_none_comes_and_new_ones_fit_behind():
    events = [(index / 25 + 0.2, frame(Fraction(index, 25)), index / 25) for index in range(25)]
    events += [(index / 25 + 0.2, frame(Fraction(index, 25)), index / 25) for index in range(125, 150)]
    playout, out = run(events, until=6.3, keep_alive=True)
    assert playout.repeated == pytest.approx((5.2 - 1.16 - 1.0) / 0.2, abs=2)
    assert playout.late <= 1
    times = [float(time_of(item)) for _, item in out]
    assert all(0 < later - earlier < 1.1 for earlier, later in pairwise(times))


def test_a_source_that_stays_behind_is_not_late_forever_and_keeps_its_sound():
    """It stands still for three seconds and goes on as if nothing had been."""
    events = []
    for index in range(300):
        stall = 3.0 if index >= 50 else 0.0
        captured = index / 25 + stall
        events.append((captured + 0.2, frame(Fraction(index, 25)), captured))
        events.append((captured + 0.01, sound(Fraction(index, 25)), None))
    playout, out = run(events, until=16.0, keep_alive=True)
    assert playout.repeated > 0
    assert 20 <= playout.late <= 80
    times = [float(time_of(item)) for _, item in out if isinstance(item, Frame)]
    assert all(0 < later - earlier < 1.1 for earlier, later in pairwise(times))
    assert times[-1] == pytest.approx(12.0 + 3.0, abs=0.3)
    picture = None
    for when, item in out:
        if isinstance(item, Frame):
            picture = time_of(item)
        elif when > 8.0 and picture is not None:
            assert abs(time_of(item) - picture) <= Fraction(51, 1000)


def test_a_source_that_catches_up_is_not_moved():
    events = []
    for index in range(300):
        captured = index / 25
        arrives = max(captured, 5.0) if 50 <= index < 126 else captured
        events.append((arrives + 0.2, frame(Fraction(index, 25)), captured))
    playout, out = run(events, until=13.0, keep_alive=True)
    assert playout.shift == 0
    assert playout.late > 0
    times = [float(time_of(item)) for _, item in out]
    assert all(0 < later - earlier < 1.1 for earlier, later in pairwise(times))


def test_waiting_is_bounded():
    playout = Playout()
    playout.show(frame(0), 0.0, 10.0)  # everything is shown ten seconds late
    for index in range(1, 500):
        playout.show(frame(Fraction(index, 100)), 9.9, 10.0)
        playout.hear(sound(Fraction(index, 100)))
        playout.due(10.0)
        assert playout.waiting <= 64 + 1024
    for index in range(3000):
        playout.hear(sound(100 + index))
    assert playout.waiting <= 64 + 1024
    assert playout.lost > 0


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 2.0)), min_size=1, max_size=40))
def test_whoever_waits_until_told_misses_nothing(events):
    """Between `due` and `wake_at` there is nothing to send."""
    playout, now = Playout(), 0.0
    for index, (pause, ago) in enumerate(events):
        now += pause
        playout.show(frame(Fraction(index, 25)), now - ago, now)
        playout.due(now)
        wake = playout.wake_at(now)
        assert wake >= now
        before = now + (wake - now) * 0.9
        assert playout.due(before) == [] or wake - now < 1e-9  # as near as floats come
        now = before
