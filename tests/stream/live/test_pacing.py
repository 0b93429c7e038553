from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.stream.live.pacing import AudioDelay, Pacer

LIPS = 0.04


def test_bursts_are_shown_evenly():
    pacer = Pacer()
    shown = []
    for stride in range(60):
        captured = [(3 * stride + k) / 30 for k in range(3)]
        there = captured[-1] + 0.05
        shown += [pacer.place(at + 7.0, captured_at=at, now=there) for at in captured]
    steps = [after.at - before.at for before, after in pairwise(shown[6:])]
    assert all(step == pytest.approx(1 / 30, abs=0.002) for step in steps)
    assert pacer.delay == pytest.approx(0.05 + 2 / 30 + 0.01, abs=0.002)
    assert all(placed.late == 0.0 for placed in shown[3:])


@given(st.lists(st.tuples(st.floats(0.005, 0.1), st.floats(0, 0.4)), min_size=2, max_size=150))
@settings(deadline=None)
def test_frames_are_shown_in_order_and_never_before_they_are_there(frames):
    pacer = Pacer()
    pts = now = 0.0
    before = float("-inf")
    for interval, latency in frames:
        pts += interval
        now = max(now, pts + latency)
        placed = pacer.place(pts, captured_at=pts, now=now)
        assert placed.at >= before
        assert placed.at >= now - 1e-9
        assert placed.late == pytest.approx(0.0)
        before = placed.at


def test_a_promise_that_is_kept_makes_the_delay_stand_still():
    pacer = Pacer(least=0.4)
    for frame in range(300):
        placed = pacer.place(frame / 30, captured_at=frame / 30, now=frame / 30 + 0.1 + 0.1 * (frame % 3))
        assert placed.at == pytest.approx(frame / 30 + 0.4)
    assert pacer.delay == pytest.approx(0.4)


def test_the_delay_shrinks_slowly_when_frames_come_sooner():
    pacer = Pacer()
    delays = []
    for frame in range(900):
        latency = 0.4 if frame < 90 else 0.1
        pacer.place(frame / 30, captured_at=frame / 30, now=frame / 30 + latency)
        delays.append(pacer.delay)
    assert delays[89] == pytest.approx(0.41, abs=0.005)
    assert delays[-1] == pytest.approx(0.11, abs=0.005)
    assert min(after - before for before, after in pairwise(delays)) > -0.0011


def test_more_than_the_most_is_late():
    pacer = Pacer(most=0.5)
    pacer.place(0.0, captured_at=0.0, now=0.1)
    placed = pacer.place(0.033, captured_at=0.033, now=0.733)
    assert placed.late == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("jump", [-1000.0, 1000.0])
def test_a_source_whose_time_jumps_is_a_new_beginning(jump):
    pacer = Pacer()
    for frame in range(60):
        pts = frame / 30 + (jump if frame >= 30 else 0.0)
        placed = pacer.place(pts, captured_at=frame / 30, now=frame / 30 + 0.1)
        assert placed.at == pytest.approx(frame / 30 + 0.1, abs=0.02)


@given(st.lists(st.floats(-0.03, 0.03), min_size=1, max_size=200), st.floats(0.1, 0.6))
@settings(deadline=None)
def test_lips_stay_in_time_while_the_pictures_delay_slides(speeds, start):
    audio, video = AudioDelay(), start
    sound = audio.update(video, now=0.0)
    for tick, speed in enumerate(speeds, start=1):
        video = max(0.0, video + speed * 0.5)
        for part in range(1, 11):
            before, sound = sound, audio.update(video, now=(tick - 1) * 0.5 + part * 0.05)
            assert abs(sound - before) <= 0.1 * 0.05 + 1e-9
        assert abs(video - sound) <= LIPS
    assert audio.seconds == sound


def test_sound_hurries_after_a_picture_that_came_to_lag_and_does_not_jump():
    audio = AudioDelay()
    audio.update(0.1, now=0.0)
    delays = [audio.update(0.3, now=tick / 100) for tick in range(1, 301)]
    steps = [after - before for before, after in pairwise([0.1, *delays])]
    assert max(steps) <= 0.1 / 100 + 1e-9
    assert abs(delays[170] - 0.3) <= LIPS
    assert abs(delays[-1] - 0.3) <= 0.006


def test_little_is_left_alone_and_very_much_is_jumped():
    audio = AudioDelay()
    assert audio.seconds == 0.0
    assert audio.update(0.2, now=0.0) == 0.2
    assert audio.update(0.215, now=5.0) == 0.2
    assert audio.update(0.9, now=6.0) == 0.9


def test_paced_pictures_and_delayed_sound_are_together_under_a_plan_that_changes():
    pacer, audio = Pacer(least=0.3), AudioDelay()
    apart = []
    for frame in range(1800):
        at = frame / 30
        latency = 0.25 if frame < 300 else 0.36 if frame < 900 else 0.2
        placed = pacer.place(at, captured_at=at, now=at + latency)
        apart.append(abs(audio.update(pacer.delay, now=placed.at) - (placed.at - at)))
    assert sum(each > LIPS for each in apart) <= 30  # a second of sixty, as the delay grew by 70 ms at once
