"""Plans that change in the middle of a stream, over the true rolling bookkeeping."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.stream.frame import Frame
from toonstream.stream.live.settings import Plan
from toonstream.stream.live.switching import Pushed, Switching, cross_fade
from toonstream.stream.temporal.skipping import Skipping
from toonstream.stream.window import Windows

SIZE = (64, 48)


def plans() -> st.SearchStrategy[Plan]:
    return st.integers(1, 8).flatmap(
        lambda window: st.builds(
            Plan,
            size=st.just(SIZE),
            steps=st.integers(1, 3),
            window=st.just(window),
            stride=st.integers(1, window),
            guidance=st.sampled_from([1.0, 2.0]),
        )
    )


class Course:
    """Runs frames through a Switching whose segments are numbered, and tinted by their number."""

    def __init__(self, live, plan: Plan) -> None:
        self.live = live
        self.segments = []
        self.came = 0
        self.toons = []
        self.switching = Switching(self.start, plan)

    def start(self, plan: Plan):
        self.segments.append(self.live.PlainSegment(plan, tint=100 * (len(self.segments) % 2)))
        return self.segments[-1]

    def push(self, frames: int = 1) -> None:
        for _ in range(frames):
            image = self.live.picture(*SIZE, level=10 + self.came % 200)
            frame = Frame(index=self.came, pts=self.came, time_base=self.live.time_base, image=image)
            self.came += 1
            self.toons += self.switching.push(Pushed(frame=frame, words=self.words()))
            assert self.switching.in_flight == self.came - len(self.toons)

    def finish(self) -> None:
        self.toons += self.switching.finish()
        assert [toon.toon.index for toon in self.toons] == list(range(self.came))
        assert [toon.toon.image[0, 0, 0] for toon in self.toons] == [10 + i % 200 for i in range(self.came)]

    def words(self):
        return WORDS

    @property
    def tints(self) -> list[int]:
        return [int(toon.toon.image[0, 0, 2]) for toon in self.toons]


class WORDS:  # what PlainSegment reads of words
    seed = 3


@given(
    plan=plans(),
    acts=st.lists(st.one_of(plans(), st.integers(1, 20), st.just("cut")), min_size=1, max_size=12),
)
@settings(max_examples=100, deadline=None)
def test_every_frame_comes_out_once_and_in_order_whatever_is_asked_for_when(live, plan, acts):
    course = Course(live, plan)
    asked = plan
    for act in acts:
        if act == "cut":
            course.toons += course.switching.cut(asked)
        elif isinstance(act, Plan):
            asked = act
            course.switching.ask(act)
        else:
            course.push(act)
    course.finish()


@given(plan=plans(), other=plans(), when=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_a_switch_is_done_soon_and_nothing_waits_longer_than_under_the_slower_plan(live, plan, other, when):
    course = Course(live, plan)
    course.push(when)
    course.switching.ask(other)
    lookahead = max(Windows(length=p.window, stride=p.stride).lookahead(steps=p.steps) for p in (plan, other))
    for _ in range(plan.window + 2 * plan.stride + 2 * lookahead + 4):
        course.push()
        assert course.switching.in_flight <= lookahead
    assert course.switching.plan == other
    assert course.switching.settled
    assert all(segment.finished for segment in course.segments[:-1])
    course.finish()


@given(plan=plans(), other=plans(), when=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_the_old_stream_ends_at_the_end_of_a_window_and_pictures_fade_evenly(live, plan, other, when):
    course = Course(live, plan)
    course.push(when)
    course.switching.ask(other)
    course.push(80)
    course.finish()
    if other == plan:
        assert len(course.segments) == 1
        return
    old, new = course.segments
    assert len(old._frames) >= plan.window
    assert (len(old._frames) - plan.window) % plan.stride == 0
    overlap = min(plan.window, other.window)
    assert [each.frame.index for each in old._frames[-overlap:]] == [
        each.frame.index for each in new._frames[:overlap]
    ]
    fading = [tint for tint in course.tints if 0 < tint < 100]
    expected = [100 * place / (overlap + 1) for place in range(1, overlap + 1)]
    assert np.abs(np.array(fading) - expected).max() <= 0.5
    assert course.tints == sorted(course.tints)


def test_the_latest_that_is_asked_for_counts():
    made = []

    class Nothing:
        def push(self, pushed):
            return ()

        def finish(self):
            return ()

    plan = Plan(size=SIZE, steps=1, window=4, stride=2)
    switching = Switching(lambda p: made.append(p) or Nothing(), plan)
    switching.ask(replace(plan, steps=2))
    switching.ask(plan)
    assert switching.settled
    switching.ask(replace(plan, steps=3))
    frame = Frame(index=0, pts=0, time_base=1, image=np.zeros((1, 1, 3), np.uint8))
    list(switching.push(Pushed(frame=frame, words=WORDS)))
    assert [each.steps for each in made] == [1, 3]


def test_a_cut_leaves_nothing_of_the_old_picture(live):
    plan = Plan(size=SIZE, steps=1, window=4, stride=2)
    course = Course(live, plan)
    course.push(9)
    course.toons += course.switching.cut(plan)
    assert len(course.toons) == 9
    course.push(9)
    course.finish()
    assert course.tints == [0] * 9 + [100] * 9


@pytest.mark.parametrize(("part", "level"), [(0.0, 10), (0.5, 110), (1.0, 210)])
def test_fades_pictures_of_other_sizes_into_the_new_ones(part, level):
    old, new = np.full((6, 8, 3), 10, np.uint8), np.full((12, 16, 3), 210, np.uint8)
    faded = cross_fade(old, new, part)
    assert faded.shape == (12, 16, 3)
    assert (faded == level).all()


def test_a_plan_asked_for_before_the_first_frame_is_the_first(live):
    course = Course(live, Plan(size=SIZE, steps=1, window=1, stride=1))
    course.switching.ask(Plan(size=SIZE, steps=2, window=2, stride=1))
    course.push(1)
    course.switching.ask(Plan(size=SIZE, steps=1, window=2, stride=1))
    course.push(10)
    course.finish()
    assert len(course.segments) == 3


class StillCourse(Course):
    """Frames come several times each, and segments draw each picture once."""

    held = 3

    def start(self, plan: Plan):
        segment = super().start(plan)
        return Skipping(segment, threshold=0.0, patience=2)

    def push(self, frames: int = 1) -> None:
        for _ in range(frames):
            level = 10 + self.came // self.held % 200
            image = np.full((6, 8, 3), level, np.uint8)
            frame = Frame(index=self.came, pts=self.came, time_base=self.live.time_base, image=image)
            self.came += 1
            self.toons += self.switching.push(Pushed(frame=frame, words=self.words()))


@pytest.mark.parametrize("held", [2, 5, 100])
@given(plan=plans(), acts=st.lists(st.one_of(st.integers(1, 12), plans()), max_size=8))
@settings(max_examples=25, deadline=None)
def test_segments_that_skip_still_frames_lose_none_and_repeat_none(live, held, plan, acts):
    course = StillCourse(live, plan)
    course.held = held
    for act in acts:
        course.push(act) if isinstance(act, int) else course.switching.ask(act)
    course.toons += course.switching.finish()
    assert [toon.toon.index for toon in course.toons] == list(range(course.came))
    assert [toon.toon.pts for toon in course.toons] == list(range(course.came))
    assert [toon.toon.image[0, 0, 0] for toon in course.toons] == [10 + i // held for i in range(course.came)]
