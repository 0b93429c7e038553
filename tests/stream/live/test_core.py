"""One viewer's stream with the test as its worker."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.config import Size
from toonstream.errors import InputError
from toonstream.stream.frame import Frame
from toonstream.stream.live.core import LiveCore
from toonstream.stream.live.settings import LiveSettings
from toonstream.stream.window import Windows

FIXED = LiveSettings(size=Size(exact=(512, 384)))


class Viewer:
    """Feeds frames one by one, and takes each through."""

    def __init__(self, live, settings=FIXED, **machine):
        self.live = live
        self.machine = live.Machine(slowness=lambda now: 0.1, unevenness=0.0, **machine)
        self.toons, self.events = [], []
        self.core = LiveCore(
            self.machine,
            settings,
            deliver=self.toons.append,
            clock=self.machine.clock,
            notify=self.events.append,
        )
        self.frames = 0

    def feed(self, frames=1, size=(640, 480)):
        for _ in range(frames):
            self.machine.now = max(self.machine.now, self.frames / 30)
            image = self.live.picture(*size, level=self.frames % 256)
            frame = Frame(
                index=99, pts=1000 * self.frames, time_base=self.live.time_base, image=image, duration=7
            )
            self.core.offer(frame, self.machine.now)
            self.core.take(self.core.inbox.take(wait=False))
            self.frames += 1

    def finish(self):
        self.core.finish()
        assert [toon.toon.index for toon in self.toons] == list(range(self.frames))
        assert [toon.toon.pts for toon in self.toons] == [1000 * i for i in range(self.frames)]
        assert [toon.toon.image[0, 0, 0] for toon in self.toons] == [i % 256 for i in range(self.frames)]
        assert self.core.in_flight == 0

    @property
    def seeds(self):
        return [int(toon.toon.image[0, 0, 1]) for toon in self.toons]

    @property
    def plans(self):
        return [event.message for event in self.events if event.kind == "plan"]


def test_every_frame_is_delivered_with_its_own_source_pts_and_capture_time(live):
    viewer = Viewer(live)
    viewer.feed(20)
    viewer.finish()
    for frame, toon in enumerate(viewer.toons):
        assert toon.source.image.shape == (480, 640, 3)
        assert (toon.source.index, toon.toon.duration) == (frame, 7)
        assert toon.captured_at == pytest.approx(frame / 30, abs=0.05)
        assert toon.committed_at > toon.captured_at
        assert toon.plan.size == (512, 384)
    assert all(after.committed_at >= before.committed_at for before, after in pairwise(viewer.toons))


def test_a_change_of_seed_or_words_takes_effect_with_the_next_window_and_starts_nothing_anew(live):
    viewer = Viewer(live)
    viewer.feed(8)
    viewer.core.change(LiveSettings(size=FIXED.size, prompt="a longer one", seed=9))
    viewer.feed(20)
    viewer.finish()
    changed = viewer.seeds.index(9)
    assert changed == 10  # windows are full at 4, 7, 10
    assert viewer.seeds == [0] * changed + [9] * (28 - changed)
    assert len(viewer.plans) == 1
    assert [event.kind for event in viewer.events] == ["plan", "words"]


def test_words_are_blended_over_the_windows_asked_for(live):
    seen = []

    class Listening(live.PlainSegment):
        def push(self, pushed):
            seen.append(pushed.words)
            return super().push(pushed)

    viewer = Viewer(live)
    viewer.machine.segment = lambda plan, words, **_: Listening(plan)
    viewer.feed(4)
    viewer.core.change(LiveSettings(size=FIXED.size, prompt="a b c d", blend=2))
    viewer.feed(12)
    levels = [words.text[0, 0, 0].item() for words in seen[-16:]]
    assert levels[:4] == [3.0] * 4
    assert levels[4:10] == pytest.approx([3 + 4 * k / 7 for k in range(1, 7)])
    assert levels[10:] == [7.0] * 6
    assert all(words is seen[-1] for words in seen[-6:])


def test_a_change_of_steps_or_window_goes_over_without_a_gap(live):
    viewer = Viewer(live)
    viewer.feed(9)
    viewer.core.change(LiveSettings(size=FIXED.size, steps=2, window=6, stride=3))
    viewer.feed(40)
    viewer.finish()
    assert viewer.core.plan.steps == 2
    assert viewer.plans == [
        "draws 512x384, 1 steps, window 4, stride 3",
        "goes over to 512x384, 2 steps, window 6, stride 3",
    ]


def test_a_plan_that_has_to_be_built_is_waited_for(live):
    viewer = Viewer(live, builds=0.5)
    viewer.feed(9)
    viewer.core.change(LiveSettings(size=FIXED.size, window=6))
    viewer.feed(9)
    assert viewer.core.plan.window == 4
    viewer.feed(40)
    viewer.finish()
    assert viewer.core.plan.window == 6
    assert len(viewer.plans) == 2


def test_a_source_that_becomes_another_picture_is_cut_and_goes_on(live):
    viewer = Viewer(live, LiveSettings(size=Size(short=384)))
    viewer.feed(9)
    viewer.feed(9, size=(480, 640))
    viewer.finish()
    assert [toon.plan.size for toon in viewer.toons[9:]] == [(384, 512)] * 9
    assert viewer.plans[-1].startswith("draws 384x512")


def test_a_source_that_becomes_wider_than_can_be_drawn_is_drawn_smaller_and_goes_on(live):
    viewer = Viewer(live, LiveSettings(size=Size(short=384)), widest=600)
    viewer.feed(9)
    viewer.feed(9, size=(1280, 480))
    viewer.finish()
    assert viewer.plans == [
        "draws 512x384, 1 steps, window 4, stride 3",
        "draws 600x225, 1 steps, window 4, stride 3",
    ]


def test_a_source_that_changes_its_shape_all_the_time_is_followed_now_and_then(live):
    viewer = Viewer(live, LiveSettings(size=Size(short=384)))
    made = []
    viewer.machine.prepare = lambda plan, *, observe: made.append(plan.size)
    for turn in range(60):  # a turn is 0.5 s
        viewer.feed(15, size=(640, 480 + 16 * turn))
    assert len(made) <= 1 + 4 + 4
    kept = [event.message for event in viewer.events if event.kind == "source"]
    assert kept[0] == "the source changes its size too often: it is fitted into 640x544"
    assert len(kept) == 1
    viewer.feed(31 * 30, size=(480, 640))
    assert made[-1] == (384, 512)  # once it is steady
    viewer.core.finish()
    assert [toon.toon.pts for toon in viewer.toons] == [1000 * index for index in range(viewer.frames)]


def test_a_source_that_grows_all_the_time_is_followed_now_and_then(live):
    viewer = Viewer(live, LiveSettings(size=Size(short=384, cap=True)))
    asked = []
    request = viewer.machine.request
    viewer.machine.request = lambda plan: (asked.append(plan.size), request(plan))[1]
    for width in range(160, 640, 8):
        viewer.feed(3, size=(width, width * 3 // 4))
    viewer.finish()
    assert len(set(asked)) <= 4


def scenes(lengths):
    """Pictures of scenes that are so long, each a pattern of its own."""
    random = np.random.default_rng(3)
    for length in lengths:
        yield from [random.integers(0, 256, (12, 16, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)] * length


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    shape=st.sampled_from([(4, 3, 1), (4, 4, 1), (6, 3, 2), (8, 4, 3), (1, 1, 1)]),
)
def test_no_window_reaches_across_a_cut_and_nothing_waits_longer(live, lengths, shape):
    machine = live.Machine(slowness=lambda now: 0.1, unevenness=0.0)
    window, stride, steps = shape
    segments = []
    start = machine.segment

    def segment(plan, words, **more):
        made = start(plan, words, **more)
        segments.append([])
        push, seen = made.push, segments[-1]
        made.push = lambda each: (seen.append(each.frame.image[0, 0].tolist()), push(each))[1]
        return made

    toons = []
    wish = LiveSettings(size=Size(exact=(64, 48)), window=window, stride=stride, steps=steps)
    core = LiveCore(machine, wish, deliver=toons.append, clock=machine.clock)
    lookahead = Windows(length=window, stride=stride).lookahead(steps=steps)
    count = 0
    machine.prepare = lambda plan, *, observe: None
    machine.segment = segment
    for count, image in enumerate(scenes(lengths), 1):
        core.offer(Frame(index=0, pts=count, time_base=live.time_base, image=image), machine.now + count)
        machine.now += 1 / 30
        core.take(core.inbox.take(wait=False))
        assert core.in_flight <= lookahead
    core.finish()
    assert [toon.toon.pts for toon in toons] == list(range(1, count + 1))
    for seen in segments:  # a segment sees one scene, after those that are too short to be ended
        changes = [index for index, (one, other) in enumerate(pairwise(seen), 1) if one != other]
        assert all(index < stride for index in changes)
    assert len(segments) == 1 or len(lengths) > 1


def test_a_source_that_shrinks_in_the_same_shape_for_a_while_changes_nothing(live):
    viewer = Viewer(live, LiveSettings(size=Size(short=384, cap=True)))
    for size in [(640, 480), (480, 360), (320, 240), (322, 241), (640, 480)]:
        viewer.feed(7, size=size)
    viewer.finish()
    assert len(viewer.plans) == 1
    assert {toon.plan.size for toon in viewer.toons} == {(512, 384)}


def test_a_source_that_grows_in_the_same_shape_is_drawn_larger_once_that_is_ready(live):
    viewer = Viewer(live, LiveSettings(size=Size(short=384, cap=True)), builds=0.5)
    for size in [(320, 240), (480, 360), (640, 480)]:
        viewer.feed(10, size=size)
    viewer.feed(40)
    viewer.finish()
    assert [toon.plan.size for toon in viewer.toons[:10]] == [(320, 240)] * 10
    assert viewer.core.plan.size == (512, 384)
    assert not any(message.startswith("draws") for message in viewer.plans[1:])


def test_a_change_that_cannot_be_met_changes_nothing(live):
    viewer = Viewer(live)
    viewer.feed(5)
    with pytest.raises(InputError, match="too long"):
        viewer.core.change(LiveSettings(prompt="too long"))
    with pytest.raises(InputError, match="no style"):
        viewer.core.change(LiveSettings(style="oil"))
    viewer.feed(10)
    viewer.finish()
    assert [event.kind for event in viewer.events] == ["plan"]


def test_a_size_that_the_source_cannot_have_is_refused_when_it_is_asked_for(live):
    viewer = Viewer(live)
    viewer.feed(1, size=(1000, 10))
    with pytest.raises(InputError, match="side"):
        viewer.core.change(LiveSettings(size=Size(short=384)))


def test_a_plan_that_cannot_be_built_is_named_and_what_runs_goes_on(live):
    viewer = Viewer(live)
    viewer.machine.request = lambda plan: "the engine refuses it"
    viewer.feed(6)
    viewer.core.change(LiveSettings(size=FIXED.size, window=6))
    viewer.feed(30)
    viewer.finish()
    assert viewer.core.plan.window == 4
    assert [event.message for event in viewer.events if event.kind == "refused"] == [
        "cannot go over to 512x384, 1 steps, window 6, stride 3: the engine refuses it"
    ]


def test_a_change_before_the_first_frame_counts_from_the_first_frame(live):
    viewer = Viewer(live)
    viewer.core.change(LiveSettings(size=FIXED.size, seed=5, window=2, stride=1))
    viewer.feed(5)
    viewer.finish()
    assert viewer.seeds == [5] * 5
    assert viewer.core.plan.window == 2


def test_the_first_frame_gives_way_when_starting_takes_long(live):
    machine = live.Machine(slowness=lambda now: 1.0)
    machine.play(FIXED, 10.0)
    drops = {(drop.place, drop.reason): drop.count for drop in machine.core.statistics().drops}
    assert drops["input", "starting"] == 1
    assert all(toon.committed_at - toon.captured_at < 0.5 for toon in machine.toons)


def test_capture_times_of_the_future_are_taken_for_now(live):
    viewer = Viewer(live)
    image = live.picture()
    viewer.core.offer(Frame(index=0, pts=0, time_base=live.time_base, image=image), 1e9)
    assert viewer.core.inbox.take(wait=False).at == viewer.machine.now


def test_a_source_whose_rate_changes_again_and_again_is_kept_up_with(live):
    machine = live.Machine(fps=lambda now: (30.0, 8.0, 60.0)[int(now / 6) % 3], slowness=lambda now: 0.4)
    machine.play(LiveSettings(size=Size(exact=(512, 384)), latency=0.5), 60.0)
    waits = sorted(toon.committed_at - toon.captured_at for toon in machine.toons)
    assert waits[int(0.99 * len(waits))] <= 1.5 * 0.5
    captured = [toon.captured_at for toon in machine.toons]
    assert captured == sorted(captured)
    assert len(captured) > 0.8 * machine.frames


def test_statistics_say_what_became_of_every_frame(live):
    machine = live.Machine(slowness=lambda now: 3.0)
    machine.play(LiveSettings(latency=0.4, size=Size(short=384)), 30.0)
    figures = machine.core.statistics()
    inside = machine.core.in_flight + machine.core.inbox.waiting
    assert figures.frames_in == figures.frames_out + figures.dropped + inside
    assert figures.fps_in == pytest.approx(30, rel=0.02)
    assert figures.latency.p99 <= 0.4
    assert figures.promise == 0.4
    assert figures.kept
    networks = {"hint_outline", "controlnet_outline", "unet", "vae_decoder"}
    assert networks | {"conditions", "deliver", "rest"} == set(figures.stages)
    assert {"input", "window", "turn"} == set(figures.waits)
    assert figures.plan == machine.core.plan
    assert figures.events == tuple(machine.events)


def test_memory_does_not_grow_with_the_stream(live):
    viewer = Viewer(live)
    held = []
    for _ in range(30):
        viewer.feed(10)
        held.append((viewer.core.in_flight, len(viewer.core._switching._recent)))
        viewer.toons.clear()
    assert max(held[5:]) <= max(held[:5])
    assert np.max(held) <= 4


PROMISED = LiveSettings(size=Size(exact=(512, 384)), latency=0.4)


def drops(core):
    return {(drop.place, drop.reason): drop.count for drop in core.statistics().drops}


def test_after_a_pause_of_the_process_nothing_old_is_drawn_and_what_is_shown_is_new(live):
    viewer = Viewer(live, PROMISED)
    viewer.feed(8)  # windows are full at 4 and 7: one frame is in flight, and the seventh
    in_flight = viewer.core.in_flight
    assert in_flight == 2
    decoded = []
    segment = viewer.machine.segment

    def watched(plan, words, **more):
        made = segment(plan, words, **more)
        work = made._work
        made._work = lambda stage, frames: (decoded.append(stage), work(stage, frames))[1]
        return made

    viewer.machine.segment = watched
    viewer.machine.now += 3.0
    paused_until = viewer.machine.now
    viewer.frames = int(30 * paused_until) + 1
    viewer.feed(8)
    assert drops(viewer.core)["window", "late"] == in_flight
    assert all(toon.committed_at - toon.captured_at < 1.25 * 0.4 for toon in viewer.toons)
    assert viewer.toons[-1].captured_at > paused_until
    assert decoded.count("vae_decoder") == len([t for t in viewer.toons if t.captured_at > paused_until])
    assert [toon.toon.index for toon in viewer.toons] == list(range(len(viewer.toons)))
    assert len(viewer.plans) == 1  # once is nothing to go by


def test_a_frame_that_is_too_old_once_it_is_final_is_not_decoded(live):
    viewer = Viewer(live, PROMISED)
    viewer.feed(6)
    viewer.machine.now += 0.5
    image = live.picture(level=200)
    # One comes just before the pause is noticed: the window is full, and what is old in it is left out.
    viewer.core.offer(Frame(index=0, pts=10**6, time_base=live.time_base, image=image), viewer.machine.now)
    viewer.core._flight._frames[-1].captured_at = viewer.machine.now
    before = len(viewer.toons)
    viewer.core.take(viewer.core.inbox.take(wait=False))
    assert drops(viewer.core) == {("window", "late"): 2}
    assert len(viewer.toons) == before + 1


def test_toons_that_go_out_late_make_the_drawing_give_way_and_it_comes_back(live):
    """As where encoders are not given the cores: nothing that is drawn takes longer."""
    viewer = Viewer(live, PROMISED)
    viewer.feed(30)
    first = viewer.core.plan
    for _ in range(10 * 30):
        viewer.core.note_age(0.5)
        viewer.feed()
    given_way = viewer.core.plan
    assert (given_way.size, given_way.window) < (first.size, first.window)
    for _ in range(40 * 30):
        viewer.core.note_age(0.2)
        viewer.feed()
    assert viewer.core.plan == first


def test_where_all_are_late_one_is_shown_now_and_then(live):
    """As where the promise was made for another machine, and nothing less can be drawn."""
    machine = live.Machine(slowness=lambda now: 100.0)
    machine.play(LiveSettings(size=Size(exact=(64, 48)), window=1, latency=0.05), 60.0)
    shown = [toon.committed_at for toon in machine.toons]
    assert max(after - before for before, after in pairwise(shown)) < 3.0


def test_without_a_promise_nothing_is_too_late(live):
    machine = live.Machine(slowness=lambda now: 3.0, share=lambda now: 0.2, turn=0.2)
    machine.play(FIXED, 20.0)
    assert set(drops(machine.core)) <= {("input", "late"), ("input", "starting")}
    assert machine.toons


class StillViewer(Viewer):
    """The source is one picture, as of a screen on which nothing happens."""

    def feed(self, frames=1, level=50):
        for _ in range(frames):
            self.machine.now = max(self.machine.now, self.frames / 30)
            image = np.full((48, 64, 3), level, np.uint8)
            frame = Frame(index=99, pts=1000 * self.frames, time_base=self.live.time_base, image=image)
            self.core.offer(frame, self.machine.now)
            self.core.take(self.core.inbox.take(wait=False))
            self.frames += 1


def test_a_still_picture_is_drawn_once_and_again_when_other_words_are_asked_for(live):
    viewer = StillViewer(live, LiveSettings(size=Size(exact=(64, 48)), skip=1.0, blend=2))
    viewer.feed(40)
    assert len(viewer.toons) == 40  # nothing waits for frames that differ
    viewer.feed(40)
    assert viewer.machine.now == 79 / 30  # when the last frame came: no network has taken any time since
    viewer.core.change(LiveSettings(size=Size(exact=(64, 48)), skip=1.0, blend=2, seed=9))
    viewer.feed(40)
    assert viewer.seeds[79] == 0
    assert viewer.seeds[-1] == 9
    viewer.feed(1, level=90)
    viewer.core.finish()
    assert [toon.toon.index for toon in viewer.toons] == list(range(121))
    assert [toon.toon.pts for toon in viewer.toons] == [1000 * index for index in range(121)]
    assert viewer.toons[-1].toon.image[0, 0, 0] == 90
