"""Keeps a promised latency: picks what the machine can do in time, from what it is measured to cost.

A frame waits for the look-ahead, R_T frames, which at f frames a second is R_T / f seconds; then for the T
windows that commit it, and its decoding. By how much frames turn out to be older than that, once they are
final, is learnt, whatever the reason; where other programs want the cores too, that is most of their age.
What is asked for gives way in this order until the promise is kept: deflickering, size, steps, window and
stride, then frame rate. It comes back in the opposite order, when there has been room for it for a while;
every time that turns out too early, the while gets longer. Pure: told the time, it tells what to run.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median

from toonstream.config import Mode
from toonstream.stream.live.costs import DELIVERED, STEADYING, Costs, Shape
from toonstream.stream.live.settings import Plan
from toonstream.stream.window import Windows

__all__ = ["Controller", "Decision", "Forecast", "Forecaster", "ladder"]

_EVERY = (1, 2, 3, 4, 6, 8, 12)  # of so many frames one is kept
_SIZES = (1.0, 5 / 6, 2 / 3, 1 / 2)  # of the sides asked for
_LEAST_SIDE = 128  # pixels; sizes asked for that are smaller are left alone
_MORE_STEPS = 4  # above so many steps, they give way by a quarter at a time

_ENTER_LATENCY, _ENTER_LOAD = 0.85, 0.75  # of the promise, and of the time: what a plan may take to be picked
_STAY_LATENCY, _STAY_LOAD = 1.0, 0.93  # to be kept
_PATIENCE = 2  # decisions in a row that find the plan wanting before it is left
_HOLD = 4.0  # seconds that a better plan must have fitted before it is taken
_LONGEST_HOLD = 30.0  # seconds; what _HOLD grows to, doubling
_MOST_EXCESS = 0.8  # of the promise: unforeseen latency that is believed
_PERIOD = 1.0  # seconds over which the worst unforeseen latency is taken
_PERIODS = 3  # of which the middle one counts: what happens once is nothing to go by
_LEARN, _UNLEARN = 0.4, 0.15  # of the way to it, where it is more, and where it is less
_LOSSES = 3.0  # seconds between two losses of all that was in flight that belong together
_OVERLOAD = 0.1  # of the promise: what it counts as to need the double of the time there is
_LOOK = 0.25  # seconds between two looks for a better plan
_LOOK_AGAIN = 1.0  # the same where none kept the promise


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a plan would be like.

    Attributes:
        latency: seconds from capture to commit of the frame that waits longest.
        load: of the time between frames, the part that is needed; above 1 it cannot keep up, and frames are
            left out.
    """

    latency: float
    load: float


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to run.

    Attributes:
        plan: of those that are ready, the one to run from the next window boundary on.
        desired: the one to run if all were ready; the same, or one to make ready.
        kept: whether the promise is thought to be kept.
    """

    plan: Plan
    desired: Plan
    kept: bool


class Forecaster:
    """Says what plans would be like, by what is known now; made anew whenever that has changed.

    Args:
        costs: what runs take.
        fps: frames captured a second.
    """

    def __init__(self, costs: Costs, *, fps: float) -> None:
        self._costs = costs
        self._fps = fps
        self._lookaheads: dict[tuple[int, int, int, Mode], int] = {}
        self._parts: dict[tuple[object, ...], tuple[float, float, float]] = {}

    def lookahead(self, plan: Plan) -> float:
        """Seconds of it: the least that a frame can wait."""
        return self._frames_ahead(plan) * plan.every / self._fps

    def _frames_ahead(self, plan: Plan) -> int:
        key = plan.window, plan.stride, plan.steps, plan.mode
        if key not in self._lookaheads:
            windows = Windows(length=plan.window, stride=plan.stride)
            # An anchored window has all its steps as soon as its new frames are there.
            anchored = plan.mode == "anchored"
            self._lookaheads[key] = plan.stride - 1 if anchored else windows.lookahead(steps=plan.steps)
        return self._lookaheads[key]

    def __call__(self, plan: Plan) -> Forecast:
        """What a plan would be like."""
        key = plan.size, plan.window, plan.stride, plan.guidance
        if key not in self._parts:
            self._parts[key] = self._measure(plan)
        before, window, after = self._parts[key]
        if plan.steady:
            after += self._costs.seconds(STEADYING, DELIVERED)
        burst = plan.steps * window
        needed = burst + plan.stride * (before + after)
        period = plan.every / self._fps
        load = needed / (period * plan.stride)
        # Where it cannot keep up, frames are taken in as slowly as it can, and wait for the window before.
        waits = self._frames_ahead(plan) * period * max(1.0, load) + (needed if load > 1.0 else 0.0)
        return Forecast(latency=waits + before + burst + after, load=load)

    def _measure(self, plan: Plan) -> tuple[float, float, float]:
        """Seconds of a frame's way to the window, of a window at one step, and of a frame's way from it."""
        sides = 1 if plan.guidance == 1.0 else 2
        before = window = after = 0.0
        for stage in self._costs.stages:
            if stage == "unet":
                window += self._costs.seconds(stage, Shape(*plan.size, sides * plan.window))
            elif stage.startswith("controlnet_"):
                window += self._costs.seconds(stage, Shape(*plan.size, sides * plan.stride))
            elif stage.startswith(("conditions", "annotator_", "hint_")):
                before += self._costs.seconds(stage, Shape(*plan.size))
            elif stage != STEADYING:
                after += self._costs.seconds(stage, Shape(*plan.size))
        return before, window, after


def ladder(wish: Plan, *, multiple: int = 1) -> Iterator[Plan]:
    """All plans that may be run in place of what is asked for, the best first.

    Args:
        wish: what is asked for; `every` counts as 1.
        multiple: sides that give way are rounded to multiples of this many pixels.
    """
    for every in _EVERY:
        for window, stride in _windowings(wish.window, wish.stride):
            for steps in _step_counts(wish.steps):
                for size in _sizes(wish.size, multiple):
                    plan = replace(wish, size=size, steps=steps, window=window, stride=stride, every=every)
                    yield plan
                    if plan.steady:
                        yield replace(plan, steady=False)


class Controller:
    """Decides what runs.

    Args:
        costs: what runs take; others keep it up to date.
        wish: what is asked for.
        promise: seconds from capture to commit, or None to run what is asked for, whatever it takes.
        multiple: see `ladder`.
    """

    def __init__(self, costs: Costs, wish: Plan, *, promise: float | None, multiple: int = 1) -> None:
        self._costs = costs
        self._plan: Plan | None = None
        self._excess = 0.0
        self._hold = _HOLD
        self._lost_at = float("-inf")
        self.ask(wish, promise=promise, multiple=multiple)

    def ask(self, wish: Plan, *, promise: float | None, multiple: int = 1) -> None:
        """Take other wishes; what was learnt of the machine stays, and what runs until another is ready."""
        self._promise = promise
        self._take((replace(wish, every=1),) if promise is None else tuple(ladder(wish, multiple=multiple)))
        self._kept = True
        self._wanting = 0
        self._fits_since: float | None = None
        self._on_trial = False  # the last improvement; it is judged once
        self._improved_at = self._relaxed_at = self._looked_at = float("-inf")
        self._worst: tuple[float, float] | None = None  # (since, seconds)
        self._missed: deque[float] = deque(maxlen=_PERIODS)  # seconds at worst, of each of the last periods

    def forecast(self, plan: Plan, *, fps: float) -> Forecast:
        """What a plan would be like, by what runs take now; `fps` frames are captured a second."""
        return Forecaster(self._costs, fps=fps)(plan)

    def bar(self, plan: Plan) -> None:
        """Leave out what cannot be built: all plans of this size, window and stride, but not the last."""
        left = tuple(each for each in self._plans if not _built_alike(each, plan))
        if left:
            self._take(left)

    def _take(self, plans: tuple[Plan, ...]) -> None:
        self._plans = plans
        self._places = {plan: place for place, plan in enumerate(plans)}

    def observe_latency(self, seconds: float, *, fps: float, now: float) -> None:
        """Note how long a frame took that was captured and committed under the plan in force.

        What the forecast misses is learnt from the worst frames: waiting behind others, uneven capture, other
        programs on the cores. That comes and goes, so it is believed sooner than it is forgotten.
        """
        if self._promise is None or self._plan is None:
            return
        missed = seconds - Forecaster(self._costs, fps=fps)(self._plan).latency
        since, worst = self._worst or (now, 0.0)
        self._worst = since, max(worst, missed)
        if now - since >= _PERIOD:
            self._missed.append(min(max(0.0, self._worst[1]), _MOST_EXCESS * self._promise))
            usual = median(self._missed)
            self._excess += (_LEARN if usual > self._excess else _UNLEARN) * (usual - self._excess)
            self._worst = None

    def observe_loss(self, seconds: float, *, fps: float, now: float) -> None:
        """Note that all frames in flight were given up, so many seconds old; twice in a row says enough."""
        if self._promise is None:
            return
        self.observe_latency(seconds, fps=fps, now=now)
        if now - self._lost_at < _LOSSES:
            self._excess = _MOST_EXCESS * self._promise
        self._lost_at = now

    def decide(
        self,
        *,
        fps: float,
        now: float,
        ready: Callable[[Plan], bool] = lambda plan: True,
        urgent: bool = False,
    ) -> Decision:
        """Say what to run; ask at window boundaries only.

        Args:
            fps: frames captured a second.
            now: seconds by a clock.
            ready: whether a plan could be run at once, with no engine to be built first.
            urgent: whether a plan that is found wanting is to be left at once.
        """
        plan = self._plan
        if self._promise is None:
            wish = self._plans[0]
            plan = self._plan = wish if plan is None or ready(wish) else plan
            return Decision(plan=plan, desired=wish, kept=True)
        forecaster = Forecaster(self._costs, fps=fps)
        if plan is None or plan not in self._places:
            return self._fall(forecaster, now, ready)
        if not self._fits(plan, forecaster, _STAY_LATENCY, _STAY_LOAD):
            self._fits_since = None
            self._wanting += _PATIENCE if urgent else 1
            if self._wanting < _PATIENCE or (not self._kept and now - self._looked_at < _LOOK_AGAIN):
                return Decision(plan=plan, desired=plan, kept=self._kept)
            return self._fall(forecaster, now, ready)
        self._kept, self._wanting = True, 0
        return self._rise(plan, forecaster, now, ready)

    def _fall(self, forecaster: Forecaster, now: float, ready: Callable[[Plan], bool]) -> Decision:
        """The best plan that fits, else the one that comes nearest to it."""
        if self._plan in self._places:
            early = self._on_trial and now - self._improved_at < 2.0 * self._hold
            self._on_trial = False
            self._hold = min(2.0 * self._hold, _LONGEST_HOLD) if early else self._hold
        self._kept, self._wanting, self._fits_since, self._looked_at = True, 0, None, now
        desired: Plan | None = None
        for each in self._plans:
            if self._fits(each, forecaster, _ENTER_LATENCY, _ENTER_LOAD):
                desired = desired or each
                if ready(each):
                    self._plan = each
                    return Decision(plan=each, desired=desired, kept=True)
        # Nothing fits, or nothing that fits is ready: the least that can be done.
        usable = [each for each in self._plans if ready(each)]
        if usable or self._plan is None:
            self._plan = min(usable or self._plans, key=lambda each: self._misses(each, forecaster))
        self._kept = self._fits(self._plan, forecaster, _STAY_LATENCY, _STAY_LOAD)
        least = desired or min(self._plans, key=lambda each: self._misses(each, forecaster))
        return Decision(plan=self._plan, desired=least, kept=self._kept)

    def _rise(
        self, plan: Plan, forecaster: Forecaster, now: float, ready: Callable[[Plan], bool]
    ) -> Decision:
        """A better plan, once one has fitted for a while."""
        if now - self._looked_at < _LOOK:
            return Decision(plan=plan, desired=plan, kept=True)
        self._looked_at = now
        better = self._plans[: self._places[plan]]
        desired = next(
            (each for each in better if self._fits(each, forecaster, _ENTER_LATENCY, _ENTER_LOAD)), None
        )
        if desired is None:
            self._fits_since = None
            if now - max(self._improved_at, self._relaxed_at) > 4.0 * self._hold:
                self._hold, self._relaxed_at = max(_HOLD, self._hold / 2.0), now
            return Decision(plan=plan, desired=plan, kept=True)
        if self._fits_since is None:
            self._fits_since = now
        if now - self._fits_since < self._hold or not ready(desired):
            return Decision(plan=plan, desired=desired, kept=True)
        self._plan, self._fits_since, self._improved_at, self._on_trial = desired, None, now, True
        return Decision(plan=desired, desired=desired, kept=True)

    def _fits(self, plan: Plan, forecaster: Forecaster, latency: float, load: float) -> bool:
        assert self._promise is not None
        allowed = latency * self._promise - self._excess
        if forecaster.lookahead(plan) > allowed:
            return False
        expected = forecaster(plan)
        return expected.latency <= allowed and expected.load <= load

    def _misses(self, plan: Plan, forecaster: Forecaster) -> float:
        """By how much a plan misses the promise, and a little for what it would have to leave out."""
        assert self._promise is not None
        expected = forecaster(plan)
        return expected.latency / self._promise + _OVERLOAD * max(0.0, expected.load - _ENTER_LOAD)


def _built_alike(one: Plan, other: Plan) -> bool:
    return (one.size, one.window, one.stride) == (other.size, other.window, other.stride)


def _windowings(window: int, stride: int) -> list[tuple[int, int]]:
    """Windows and strides, the best first: less overlap, then half the frames."""
    found: list[tuple[int, int]] = []
    while True:
        for pair in ((window, stride), (window, max(stride, (window + stride) // 2)), (window, window)):
            if pair not in found:
                found.append(pair)
        if window == 1:
            return found
        stride = max(1, stride * (window // 2) // window)
        window //= 2


def _step_counts(steps: int) -> list[int]:
    found = [steps]
    while found[-1] > 1:
        found.append(found[-1] - (1 if found[-1] <= _MORE_STEPS else -(-found[-1] // 4)))
    return found


def _sizes(size: tuple[int, int], multiple: int) -> list[tuple[int, int]]:
    """Sizes of about the same shape, the largest first."""
    found = [size]
    for part in _SIZES[1:]:
        smaller = tuple(max(1, round(side * part / multiple)) * multiple for side in size)
        if min(smaller) >= min(_LEAST_SIDE, *size) and smaller < found[-1]:
            found.append((smaller[0], smaller[1]))
    return found
