"""Live toons are deflickered on their way out, while there is time for it."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from toonstream.config import Size
from toonstream.stream.frame import Frame
from toonstream.stream.live.core import LiveCore
from toonstream.stream.live.settings import LiveSettings
from toonstream.stream.live.steadier import Steadier
from toonstream.stream.stylizer import Toon

STEADY = LiveSettings(size=Size(exact=(64, 48)), deflicker="causal")


class Flickering:
    """Feeds still frames, whose toons have another brightness every time, and takes each through."""

    def __init__(self, live, settings, **machine):
        self.live = live
        self.machine = live.Machine(slowness=lambda now: 0.02, unevenness=0.0, **machine)
        self.toons, self.sent = [], 0
        self.drawn = np.random.default_rng(1).integers(100, 141, 600).tolist()
        self.core = LiveCore(self.machine, settings, deliver=self.toons.append, clock=self.machine.clock)
        start = self.machine.segment

        def segment(plan, words, **more):
            made = start(plan, words, **more)
            push, finish = made.push, made.finish
            made.push = lambda each: map(self.tinted, push(each))
            made.finish = lambda: map(self.tinted, finish())
            return made

        self.machine.segment = segment

    def tinted(self, toon):
        level = self.drawn[toon.toon.pts]
        return replace(toon, toon=replace(toon.toon, image=np.full((48, 64, 3), level, np.uint8)))

    def feed(self, frames, image):
        for _ in range(frames):
            self.machine.now = max(self.machine.now, self.sent / 30)
            frame = Frame(index=0, pts=self.sent, time_base=self.live.time_base, image=image)
            self.core.offer(frame, self.machine.now)
            self.core.take(self.core.inbox.take(wait=False))
            self.sent += 1

    @property
    def levels(self):
        return [int(toon.toon.image[24, 32, 0]) for toon in self.toons]


def pattern(seed):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)


def test_toons_are_steadied_by_what_was_sent_and_no_frame_waits_longer(live):
    plain, steady = (
        Flickering(live, replace(STEADY, deflicker=deflicker)) for deflicker in ("off", "causal")
    )
    for stream in (plain, steady):
        stream.feed(39, pattern(1))
    assert len(steady.toons) == len(plain.toons) < 39
    for stream in (plain, steady):
        stream.feed(1, pattern(1))
        stream.core.finish()
        assert [toon.toon.pts for toon in stream.toons] == list(range(40))
    assert plain.levels == plain.drawn[:40]
    for (before, after), drawn in zip(pairwise(steady.levels), steady.drawn[1:], strict=False):
        assert after == pytest.approx(0.6 * before + 0.4 * drawn, abs=1)
    assert {toon.plan.steady for toon in steady.toons} == {True}
    assert {toon.plan.steady for toon in plain.toons} == {False}
    stages = steady.core.statistics().stages
    assert stages["steadying"].count >= 39
    assert "steadying" not in plain.core.statistics().stages


@pytest.mark.parametrize("length", [2, 9])  # of the second scene: shorter than a stride, and longer
def test_nothing_crosses_a_cut_even_where_windows_do(live, length):
    stream = Flickering(live, STEADY)
    stream.drawn[:10] = [40] * 10
    stream.drawn[10 : 10 + length] = [200] * length
    stream.drawn[10 + length :] = [90] * 200
    for seed, frames in ((1, 10), (2, length), (3, 9)):
        stream.feed(frames, pattern(seed))
    stream.core.finish()
    assert stream.levels == stream.drawn[: stream.sent]


def test_it_can_be_turned_off_and_on_in_mid_stream_without_a_new_window(live):
    stream = Flickering(live, STEADY)
    stream.feed(12, pattern(1))
    stream.core.change(replace(STEADY, deflicker="off"))
    stream.feed(12, pattern(1))
    stream.core.change(STEADY)
    stream.feed(12, pattern(1))
    stream.core.finish()
    assert [toon.toon.pts for toon in stream.toons] == list(range(36))
    steady = [toon.plan.steady for toon in stream.toons]
    assert [on for on, after in zip(steady, [*steady[1:], None], strict=True) if on != after] == [
        True,
        False,
        True,
    ]
    off = [number for number, on in enumerate(steady) if not on]
    assert [stream.levels[number] for number in off] == [stream.drawn[number] for number in off]
    first = off[-1] + 1  # what was sent while it was off is no neighbour
    assert stream.levels[first] == stream.drawn[first]
    assert stream.levels[first + 1] != stream.drawn[first + 1]


def test_where_it_takes_too_long_it_is_given_up_and_nothing_else_is(live, monkeypatch):
    stream = Flickering(live, replace(STEADY, latency=0.4))
    costs = 0.05

    class Slow:
        def cut(self, index):
            pass

        def __call__(self, toon):
            stream.machine.work(costs)
            return toon

    monkeypatch.setattr("toonstream.stream.live.steadier.Steadying", Slow)
    stream.feed(20, pattern(1))
    wish = stream.core.plan
    assert (wish.size, wish.window, wish.stride, wish.every) == ((64, 48), 4, 3, 1)
    assert not wish.steady


def test_what_it_takes_is_known_before_there_is_a_toon():
    now, took = 0.0, []

    def clock():
        nonlocal now
        now += 0.001
        return now

    steadier = Steadier(clock, took.append)
    steadier.try_out((40, 30), (32, 24))
    assert took == pytest.approx([0.001] * 3)
    assert not steadier.on
    toon = Toon(
        source=Frame(index=0, pts=0, time_base=1, image=np.zeros((30, 40, 3), np.uint8)),
        toon=Frame(index=0, pts=0, time_base=1, image=np.zeros((24, 32, 3), np.uint8)),
    )
    assert steadier(toon) is toon
    assert len(took) == 3
