"""What one viewer's stream does with each frame; no threads, so that a test can be the worker.

captured → kept, numbered, given its words → switching → stream under the plan → toon → steadied → deliver
                                                ↑ plan
costs of every run, latencies, frame rate → controller

What cannot be shown in time goes as early as that is known: before it is taken in, before it is decoded, or
before it is delivered. So nothing waits behind it, however long the process was not given the cores.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

from toonstream.config import LoraChoice, RenderSettings
from toonstream.errors import ToonstreamError
from toonstream.stream.clock import Clock
from toonstream.stream.compose import fitted
from toonstream.stream.frame import Frame
from toonstream.stream.live.controller import Controller, Decision
from toonstream.stream.live.costs import DELIVERED, STEADYING, Costs, Shape
from toonstream.stream.live.fading import Fade
from toonstream.stream.live.flight import LATEST, Flight
from toonstream.stream.live.inbox import Captured, Inbox
from toonstream.stream.live.settings import LiveSettings, Plan
from toonstream.stream.live.statistics import Event, LiveStatistics, Meter
from toonstream.stream.live.steadier import Steadier
from toonstream.stream.live.studio import LiveToon, Run, Studio
from toonstream.stream.live.switching import Pushed, Segment, Switching
from toonstream.stream.live.words import Words, WordTrack
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.cuts import CutDetector
from toonstream.stream.temporal.skipping import Skipping

__all__ = ["LiveCore", "LiveToon", "wished"]

_ASSUMED_FPS = 30.0  # until the source's rate is known
_PARDON = 3.0  # seconds that a promise may be broken before it is said: as while a plan is being built
_SAME_SHAPE = 0.02  # by how much ratios of sides may differ
_SHAPES, _SHAPE_SPAN = 4, 30.0  # so many new shapes of the source are followed within so many seconds
_STILL_PATIENCE = 2  # frames that are there twice or three times, as film in 60 frames a second has them
_LATER = 1.1  # of what is forecast where that is late already: frames that are older still are not shown
_STALE = 0.1  # seconds that starting may take without the first frame giving way to a newer one
_SETTLED = 1.0  # seconds that the same plan must be desired before it is built, where there is a promise
_AGES = 64  # of toons that went out, kept until the next is drawn
V = TypeVar("V")


class LiveCore(Generic[V]):
    """One viewer's stream.

    Args:
        studio: what draws.
        settings: what the viewer asks for.
        deliver: takes the toons, in order.
        clock: gives the time.
        notify: told what a person may want to read.

    Raises:
        InputError: the settings cannot be met.
    """

    def __init__(
        self,
        studio: Studio[V],
        settings: LiveSettings,
        *,
        deliver: Callable[[LiveToon], None],
        clock: Clock,
        notify: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._studio = studio
        self._settings = settings
        self._render = studio.check(settings)
        self._deliver = deliver
        self._clock = clock
        self._notify = notify
        self.meter = Meter()
        self.inbox = Inbox(lambda reason: self.meter.drop("input", reason), is_late=self._comes_late)
        self._asked: LiveSettings | None = None  # put by any thread
        self._costs = Costs()
        self._track: WordTrack | None = None
        self._fade = Fade(studio.plain)
        self._drawn_with: tuple[LoraChoice, ...] = ()  # or on the way there
        self._spoilt: tuple[LoraChoice, ...] | None = None  # asked for last, and cannot be had
        self._words: Words | None = None  # of the latest frame
        self._source: tuple[int, int] | None = None  # width, height
        self._output = (0, 0)
        self._controller: Controller | None = None
        self._switching: Switching | None = None
        self._aimed: Plan | None = None  # what runs, or is on its way
        self._refused: Plan | None = None  # the latest that cannot be built
        self._every = 1
        self._steadier = Steadier(clock, self._note_steadying)
        self._came = 0
        self._cuts = CutDetector()
        self._since_cut = 0  # frames
        self._reshaped: deque[float] = deque(maxlen=_SHAPES)  # when
        self._steady = True  # the source does not change more often than is followed
        self._flight = Flight()
        self._delivered = 0
        self._ahead = 0.0  # seconds that a frame takes from here on, as it was forecast last
        self._limit: float | None = None  # seconds that frames may be old when they are final
        self._timed = self._rest = 0.0  # seconds since the last boundary, that stages took and that none did
        self._rested = False  # whether they count
        self._desired: tuple[Plan, float] | None = None  # what is not ready, and since when it is desired
        self._settled_at = 0.0
        self._aged: deque[tuple[float, float]] = deque(maxlen=_AGES)  # captured at, age; put by any thread
        self._kept = True
        self._broken_at: float | None = None

    @property
    def plan(self) -> Plan | None:
        """What new frames go into."""
        if self._switching is None:
            return None
        return replace(self._switching.plan, every=self._every, steady=self._steadier.on)

    @property
    def in_flight(self) -> int:
        """Frames that are in and not out."""
        return len(self._flight)

    @property
    def _source_width(self) -> int:
        return 0 if self._source is None else self._source[0]

    def statistics(self) -> LiveStatistics:
        """How it is doing; for any thread."""
        return self.meter.read(
            at=self._clock(),
            plan=self.plan,
            promise=self._settings.latency,
            kept=self._kept,
        )

    def offer(self, frame: Frame, captured_at: float) -> None:
        """Take a frame in; from any thread, never waits."""
        now = self._clock()
        self.meter.count("in", at=now)
        self.inbox.offer(Captured(frame=frame, at=min(captured_at, now)))

    def change(self, settings: LiveSettings) -> None:
        """Ask for something else, from the next window boundary on; from any thread, never waits.

        Raises:
            InputError: it cannot be met; what is asked for stays as it was.
        """
        self._studio.check(settings)
        if self._source is not None:
            settings.size.of(*self._source)
        self._asked = settings

    def note_age(self, seconds: float) -> None:
        """Note how old a toon was when it could have gone out; from any thread."""
        self._aged.append((self._clock() - seconds, seconds))

    def take(self, captured: Captured) -> None:
        """Take one frame through."""
        began = self._clock()
        self.meter.add("wait", "input", began - captured.at, at=began)
        frame = captured.frame
        height, width = frame.image.shape[:2]
        source = width, height
        if self._source is not None and source != self._source and not self._follows(source):
            frame = replace(frame, image=fitted(frame.image, self._source))
            source = self._source
        if self._switching is None or self._source is None or not _same_shape(source, self._source):
            self._apply_change()
            self._begin(source)
            if self._clock() - began > _STALE and self.inbox.waiting:
                self.meter.drop("input", "starting")
                return
        elif self._switching.at_boundary:
            self._apply_change()
            self._restyle()
        if source[0] > self._source_width:
            self._grow(source)
        self._let_go()
        self._cut(frame)
        assert self._switching is not None
        assert self._track is not None
        frame = replace(frame, index=self._came)
        self._came += 1
        self._words = self._track.next()
        entered = self._clock()
        self._flight.enter(frame.index, captured_at=captured.at, now=entered)
        for toon in self._switching.push(Pushed(frame=frame, words=self._words)):
            self._out(toon)
        self._rest += self._clock() - entered
        if self._switching.at_boundary:
            self._note_rest()
            self._decide()

    def finish(self) -> None:
        """No more frames come: take what is in flight through to the end."""
        if self._switching is not None:
            for toon in self._switching.finish():
                self._out(toon)

    def abandon(self, reason: str) -> None:
        """Count what is in flight as dropped."""
        self.meter.drop("flight", reason, self._flight.clear())

    def say(self, kind: str, message: str) -> None:
        """Note an event."""
        event = Event(at=self._clock(), kind=kind, message=message)
        self.meter.note(event)
        self._notify(event)

    def _begin(self, source: tuple[int, int]) -> None:
        """Start with the first frame of a source, or of one that has become another picture."""
        output = self._settings.size.of(*source)
        if self._track is None:
            self._words = self._studio.words(self._render, self._fade.target)
            self._track = WordTrack(self._words)
        fresh = self._controller is None
        self._source, self._output = source, output
        self._aim()
        assert self._controller is not None
        if fresh and self._settings.latency is not None:
            # What it costs is not known yet: find out with what is asked for.
            self._studio.prepare(self._wish(), observe=self._observe)
            if self._wish().steady:
                self._steadier.try_out(source, self._output)
        plan = self._controller.decide(fps=self._fps(), now=self._clock(), ready=lambda each: True).plan
        if not self._studio.is_ready(plan):
            self._studio.prepare(plan, observe=self._observe)
        if self._switching is None:
            self._switching = Switching(self._start, _drawn(plan))
        else:
            for toon in self._switching.cut(_drawn(plan)):
                self._out(toon)
        self._since_cut = 0
        self._steadier.cut(self._came)
        self._take_up(plan, f"draws {plan}")

    def _follows(self, source: tuple[int, int]) -> bool:
        """Whether to make what a source of another size needs: not for one that changes all the time."""
        assert self._source is not None
        if source[0] <= self._source_width and _same_shape(source, self._source):
            return True  # nothing has to be made
        now = self._clock()
        steady = len(self._reshaped) < _SHAPES or now - self._reshaped[0] >= _SHAPE_SPAN
        if steady:
            self._reshaped.append(now)
        elif self._steady:
            width, height = self._source
            self.say("source", f"the source changes its size too often: it is fitted into {width}x{height}")
        self._steady = steady
        return steady

    def _cut(self, frame: Frame) -> None:
        """Where a scene begins, end what is in flight: no window reaches across.

        Nothing waits longer for it: the new scene's first window is full as soon as any other would be. Where
        scenes are shorter than a stride, flashes for one, they stay together: ending each would cost more
        windows than there is time for.
        """
        assert self._switching is not None
        assert self._aimed is not None
        self._since_cut += 1
        if not self._cuts.push(frame.image):
            return
        self._steadier.cut(self._came)
        if self._since_cut <= self._switching.plan.stride:
            return
        for toon in self._switching.cut(_drawn(self._aimed)):
            self._out(toon)
        self._since_cut = 1

    def _grow(self, source: tuple[int, int]) -> None:
        """The source has grown in the same shape: draw larger too, as soon as that is ready.

        Where it shrinks nothing changes: senders shrink pictures for a while when their network is slow.
        """
        self._source = source
        output = self._settings.size.of(*source)
        if output != self._output:
            self._output = output
            self._aim()
            self._decide()

    def _aim(self) -> None:
        """Tell the controller what is wished for."""
        wish, promise = self._wish(), self._settings.latency
        self._limit = None if promise is None else LATEST * promise
        if self._controller is None:
            self._controller = Controller(self._costs, wish, promise=promise, multiple=self._studio.multiple)
        else:
            self._controller.ask(wish, promise=promise, multiple=self._studio.multiple)

    def _wish(self) -> Plan:
        """What is asked for, as far as it can be drawn."""
        return wished(self._render, self._studio.fitted(self._output))

    def _apply_change(self) -> None:
        asked, self._asked = self._asked, None
        if asked is None or asked == self._settings:
            return
        before, output = self._render, self._output
        promise = self._settings.latency
        self._settings, self._render = asked, self._studio.check(asked)
        if self._switching is None or self._source is None:
            return
        if _said(self._render) != _said(before):
            frames = self._change_words()
            self.say("words", f"goes over to {self._render.prompt!r} within {frames} frames")
        self._output = asked.size.of(*self._source)
        if (self._output, promise, _run(before)) != (output, asked.latency, _run(self._render)):
            self._aim()
            self._decide()

    def _change_words(self) -> int:
        """Go over to the words that are asked for; gives the frames that this takes."""
        assert self._track is not None
        assert self._switching is not None
        frames = self._settings.blend * self._switching.plan.stride
        self._track.change(self._studio.words(self._render, self._fade.target), frames=frames)
        return frames

    def _restyle(self) -> None:
        """Go over to the LoRAs that are asked for, once they are ready and nothing else is coming."""
        self._fade.step()
        wanted = self._render.loras
        if not self._fade.settled or wanted in (self._drawn_with, self._spoilt):
            return
        try:
            variant = self._studio.variant(wanted)
        except ToonstreamError as error:
            self._spoilt = wanted
            self.say("refused", f"the LoRAs stay as they were: {error}")
            return
        if variant is None:
            return
        self._fade.begin(variant, windows=self._settings.blend)
        self._drawn_with, self._spoilt = wanted, None
        self._change_words()
        shown = ", ".join(f"{lora.file} at {lora.weight:g}" for lora in wanted) or "no LoRA"
        self.say("loras", f"goes over to {shown} within {self._settings.blend} windows")

    def _let_go(self) -> None:
        """Where all that is in flight is too late already, begin anew: it is not worth another window."""
        now = self._clock()
        if not self._flight.is_lost(now=now, limit=self._limit):
            return
        assert self._controller is not None
        assert self._switching is not None
        assert self._aimed is not None
        age, count = self._flight.lose(now=now)
        self.meter.drop("window", "late", count)
        self._controller.observe_loss(age, fps=self._fps(), now=now)
        self._decide(urgent=True)
        self._switching.abandon(_drawn(self._aimed))
        self._settled_at, self._since_cut = now, 0

    def _decide(self, *, urgent: bool = False) -> None:
        """Let the controller say what runs from here on."""
        assert self._controller is not None
        assert self._switching is not None
        decision = self._controller.decide(
            fps=self._fps(), now=self._clock(), ready=self._studio.is_ready, urgent=urgent
        )
        self._make_ready(decision)
        self._promise_kept(decision)
        plan = decision.plan
        self._ahead = self._controller.forecast(plan, fps=self._fps()).latency
        if self._settings.latency is not None:
            # Where not even the latest can be kept, what is thought to be possible takes its place.
            latest = LATEST * self._settings.latency
            self._limit = latest if decision.kept else max(latest, _LATER * self._ahead)
        if plan == self._aimed:
            return
        self._switching.ask(_drawn(plan))
        self._take_up(plan, f"goes over to {plan}")

    def _make_ready(self, decision: Decision) -> None:
        """Have what is desired built: at once where a plan is left for it, else once that has lasted a while.

        Building takes what all run on: nothing is built for the sake of a moment.
        """
        desired, now = decision.desired, self._clock()
        if desired == decision.plan or self._studio.is_ready(desired):
            self._desired = None
            return
        if self._desired is None or self._desired[0] != desired:
            self._desired = desired, now
        hurry = self._settings.latency is None or not decision.kept or decision.plan != self._aimed
        if not hurry and now - self._desired[1] < _SETTLED:
            return
        reason = self._studio.request(desired)
        if reason is not None and desired != self._refused:
            self._refused = desired
            assert self._controller is not None
            self._controller.bar(desired)
            self.say("refused", f"cannot go over to {desired}: {reason}")

    def _take_up(self, plan: Plan, message: str) -> None:
        self._aimed, self._every = plan, plan.every
        self._steadier.turn(plan.steady)
        # As many wait at most as come in while a window is run, and one more.
        self.inbox.set(capacity=plan.stride + 1, every=plan.every)
        self._settled_at = self._clock()
        self._rested = False
        self.say("plan", message)

    def _promise_kept(self, decision: Decision) -> None:
        """Say so when the promise cannot be kept for a while, and when it can again."""
        now = self._clock()
        if decision.kept:
            self._broken_at = None
        elif self._broken_at is None:
            self._broken_at = now
        kept = self._broken_at is None or now - self._broken_at < _PARDON
        if kept != self._kept:
            self._kept = kept
            promise = 1000 * (self._settings.latency or 0.0)
            held = "is kept again" if kept else "cannot be kept on this machine: the least is drawn"
            self.say("promise", f"the promise of {promise:.0f} ms {held}")

    def _start(self, plan: Plan) -> Segment:
        assert self._words is not None
        skip = self._render.skip
        segment: Segment = self._studio.segment(
            plan,
            self._words,
            size=self._output,
            observe=self._observe,
            fade=self._fade,
            # A toon that others are to be copies of is always drawn.
            gives_up=self._gives_up if skip is None else lambda frame: False,
        )
        if skip is None:
            return segment
        drawn_with = self._fade.target

        def alike(one: Pushed, other: Pushed) -> bool:
            """Whether nothing has changed, or is changing, but perhaps the picture."""
            nonlocal drawn_with
            before, drawn_with = drawn_with, self._fade.target
            return self._fade.settled and before == drawn_with and one.words is other.words

        return Skipping(segment, threshold=skip, patience=_STILL_PATIENCE, alike=alike)

    def _comes_late(self, captured_at: float) -> bool:
        """Whether a frame that waits could not be shown in time any more; on the worker's thread."""
        return self._limit is not None and self._clock() - captured_at + self._ahead > self._limit

    def _gives_up(self, frame: Frame) -> bool:
        return self._flight.gives_up(frame.index, now=self._clock(), limit=self._limit)

    def _observe(self, plan: Plan, run: Run) -> None:
        now = self._clock()
        self.meter.add("stage", run.stage, run.seconds, at=now)
        if run.stage not in ("conditions", "deliver", "rest"):
            self.meter.add("wait", "turn", run.waited, at=now)
        self._timed += run.waited + run.seconds
        if run.first:
            self._rested = False
        else:
            width, height = plan.size
            self._costs.observe(run.stage, Shape(width, height, run.frames), run.waited + run.seconds)

    def _note_rest(self) -> None:
        """A window is full: what all of it took, and no stage, is a frame's cost too.

        There the process was waiting for a core, or another thread held Python.
        """
        assert self._switching is not None
        if self._rested and self._switching.settled:
            plan = self._switching.plan
            rest = max(0.0, self._rest - self._timed) / plan.stride
            self._observe(plan, Run(stage="rest", frames=1, seconds=rest))
        self._rested, self._rest, self._timed = True, 0.0, 0.0

    def _note_steadying(self, seconds: float) -> None:
        now = self._clock()
        self.meter.add("stage", STEADYING, seconds, at=now)
        self._timed += seconds
        self._costs.observe(STEADYING, DELIVERED, seconds)

    def _out(self, toon: Toon) -> None:
        landed = self._flight.leave(now=self._clock(), limit=self._limit)
        if not landed.late:
            toon = self._steadier(toon)
        now = self._clock()
        assert self._switching is not None
        age = now - landed.captured_at
        self.meter.add("wait", "window", now - landed.entered_at, at=now)
        if not self._switching.settled:
            self._settled_at = now
        elif self._controller is not None and landed.captured_at >= self._settled_at:
            self._controller.observe_latency(max(age, self._way_out()), fps=self._fps(), now=now)
        if landed.late:
            self.meter.drop("window" if landed.given_up else "output", "late")
            return
        self.meter.count("out", at=now)
        self.meter.add("latency", "", age, at=now)
        plan = replace(self._switching.plan, every=self._every, steady=self._steadier.on)
        number, self._delivered = self._delivered, self._delivered + 1
        self._deliver(
            LiveToon(
                source=replace(toon.source, index=number),
                toon=replace(toon.toon, index=number),
                captured_at=landed.captured_at,
                committed_at=now,
                plan=plan,
            )
        )
        done = self._clock()
        self._observe(plan, Run(stage="deliver", frames=1, seconds=done - now))

    def _way_out(self) -> float:
        """The oldest of those that went out lately, in seconds: encoders want the cores, too."""
        oldest = 0.0
        while self._aged:
            captured_at, age = self._aged.popleft()
            if captured_at >= self._settled_at:
                oldest = max(oldest, age)
        return oldest

    def _fps(self) -> float:
        return self.inbox.fps or _ASSUMED_FPS


def wished(render: RenderSettings, size: tuple[int, int]) -> Plan:
    """The plan that is asked for, at `size`."""
    return Plan(
        size=size,
        steps=render.steps,
        window=render.window,
        stride=render.stride,
        mode=render.mode,
        guidance=render.guidance,
        shared_noise=render.shared_noise,
        fusion=render.fusion,
        steady=render.deflicker != "off",
    )


def _drawn(plan: Plan) -> Plan:
    """What the networks know of a plan: not which frames they get, nor what becomes of their toons."""
    return replace(plan, every=1, steady=False)


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have the same ratio of sides, but for rounding."""
    across, along = one[0] * other[1], one[1] * other[0]
    return abs(across - along) <= _SAME_SHAPE * max(across, along)


def _said(render: RenderSettings) -> tuple[str, str, int]:
    return render.prompt, render.negative_prompt, render.seed


def _run(render: RenderSettings) -> tuple[object, ...]:
    return render.steps, render.window, render.stride, render.mode, render.guidance, render.deflicker
