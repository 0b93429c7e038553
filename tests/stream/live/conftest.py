"""A machine that takes simulated time, for the live core to run on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from toonstream.errors import EngineError, InputError
from toonstream.export.checkpoints import Defaults
from toonstream.stream.frame import Frame
from toonstream.stream.live.core import LiveCore, LiveToon
from toonstream.stream.live.settings import LiveSettings, Plan
from toonstream.stream.live.statistics import Event
from toonstream.stream.live.studio import Run
from toonstream.stream.live.switching import Pushed
from toonstream.stream.live.words import Words
from toonstream.stream.rolling import Rolling
from toonstream.stream.stylizer import Toon
from toonstream.stream.window import Windows

TIME_BASE = Fraction(1, 90_000)


def picture(width: int = 640, height: int = 480, level: int = 0) -> np.ndarray:
    """A grey picture of any size that takes a few bytes only."""
    return np.broadcast_to(np.uint8(level), (height, width, 3))


class PlainSegment:
    """Numbers through the true rolling bookkeeping: a toon's picture says what it was made under.

    The picture is (1, 1, 3): its frame's level, the words' seed, and `tint`, which the test gives.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        tint: int = 0,
        work: Callable[[str, int], None] | None = None,
        gives_up: Callable[[Frame], bool] = lambda frame: False,
    ) -> None:
        self.plan = plan
        self.tint = tint
        self._work = work or (lambda stage, frames: None)
        self._gives_up = gives_up
        self._rolling = Rolling(Windows(length=plan.window, stride=plan.stride), steps=plan.steps)
        self._frames: list[Pushed] = []
        self._given = 0
        self.finished = False

    def push(self, pushed: Pushed) -> Iterator[Toon]:
        assert not self.finished
        self._frames.append(pushed)
        for stage in ("conditions", "hint_outline"):
            self._work(stage, 1)
        self._rolling.arrive()
        yield from self._run()

    def finish(self) -> Iterator[Toon]:
        self.finished = True
        self._rolling.end()
        yield from self._run()

    def _run(self) -> Iterator[Toon]:
        while tasks := self._rolling.ready():
            for task in tasks:
                self._work("controlnet_outline", self.plan.stride)
                self._work("unet", len(task.span.frames))
                self._rolling.complete(task)
        while self._given < self._rolling.committed:
            pushed = self._frames[self._given]
            if not self._gives_up(pushed.frame):
                self._work("vae_decoder", 1)
            self._given += 1
            level = int(pushed.frame.image[0, 0, 0])
            image = np.array([[[level, pushed.words.seed % 256, self.tint]]], np.uint8)
            yield Toon(source=pushed.frame, toon=replace(pushed.frame, image=image))


@dataclass
class Machine:
    """Time, a camera, and a studio whose runs take time.

    Attributes:
        fps: of the camera.
        slowness: of the machine, by time: 1 runs what is asked for by default at 30 fps just so.
        unevenness: of what runs take, as a part of it.
        power: how costs grow with pixels.
        overhead: seconds that every run takes whatever its size.
        builds: seconds from the request of a plan until it is ready.
        share: of the time that the process is given, by time, where other programs want the cores too. They
            have them for `turn` seconds at a time, or three times as long.
        untimed: of what a frame costs, a part that no stage is told of.
        widest: that can be drawn, in pixels.
    """

    fps: Callable[[float], float] = lambda now: 30.0
    slowness: Callable[[float], float] = lambda now: 0.3
    unevenness: float = 0.1
    power: float = 1.0
    overhead: float = 0.0
    builds: float = 0.0
    share: Callable[[float], float] = lambda now: 1.0
    turn: float = 0.02
    untimed: float = 0.0
    widest: int = 100_000
    now: float = 0.0
    multiple: int = 32
    core: LiveCore | None = None
    next_frame: float = 0.0
    frames: int = 0
    toons: list[LiveToon] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    ready: dict[tuple, float] = field(default_factory=dict)
    fails_at: float = float("inf")
    source: tuple[int, int] = (640, 480)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.preempted_at = float("inf")

    # Seconds a frame at 512x384, so that window 4 and stride 3 at 30 fps take all the time there is.
    SHARES = {  # noqa: RUF012
        "conditions": 0.0015,
        "hint_outline": 0.0025,
        "controlnet_outline": 0.006,
        "unet": 0.01,
        "vae_decoder": 0.01,
    }

    def clock(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass; the camera goes on meanwhile."""
        until = self.now + seconds
        while self.next_frame <= until:
            self.now = max(self.now, self.next_frame)
            self.next_frame += 1 / self.fps(self.now)
            if self.core is not None:
                pts = round(self.now / TIME_BASE)
                image = picture(*self.source, level=self.frames % 256)
                self.core.offer(Frame(index=0, pts=pts, time_base=TIME_BASE, image=image), self.now)
            self.frames += 1
        self.now = until

    def work(self, seconds: float) -> None:
        """Take so much time on a core, and as much more as other programs take in between."""
        while seconds > 0.0:
            if self.now >= self.preempted_at:
                self.advance(self.turn * float(self.random.choice([0.5, 1.0, 1.0, 3.0])))
                share = self.share(self.now)
                runs = float("inf") if share >= 1.0 else 1.4 * self.turn * share / (1.0 - share)
                self.preempted_at = self.now + runs
                continue
            slice_ = min(seconds, self.preempted_at - self.now, 0.05)
            self.advance(slice_)
            seconds -= slice_
            if self.preempted_at == float("inf") and self.share(self.now) < 1.0:
                self.preempted_at = self.now

    def play(self, settings: LiveSettings, seconds: float) -> None:
        """Start a session, and be its worker for so long."""
        if self.core is None:
            self.core = LiveCore(
                self, settings, deliver=self.toons.append, clock=self.clock, notify=self.events.append
            )
        until = self.now + seconds
        while self.now < until:
            captured = self.core.inbox.take(wait=False)
            if captured is None:
                self.advance(max(1e-6, self.next_frame - self.now))
            else:
                self.core.take(captured)

    # What LiveCore asks of a studio.

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        scale = min(1.0, self.widest / size[0])
        return round(size[0] * scale), round(size[1] * scale)

    def check(self, settings: LiveSettings):
        if settings.prompt == "too long":
            raise InputError("the prompt is too long")
        return settings.resolve(DEFAULTS)

    plain = ()

    def variant(self, loras):
        """LoRAs by themselves; slow ones are never ready, and broken ones never will be."""
        if any(lora.file == "broken" for lora in loras):
            raise EngineError("it is broken")
        return None if any(lora.file == "slow" for lora in loras) else loras

    def words(self, settings, variant=()) -> Words:
        text = torch.full((1, 2, 2), float(len(settings.prompt)))
        return Words(text=text, negative=torch.zeros(1, 2, 2), seed=settings.seed)

    def segment(
        self, plan: Plan, words: Words, *, size, observe, fade=None, gives_up=lambda frame: False
    ) -> PlainSegment:
        def work(stage: str, frames: int) -> None:
            if self.now >= self.fails_at:
                raise RuntimeError("the network has failed")
            pixels = plan.size[0] * plan.size[1] / (512 * 384)
            noise = 1 + self.unevenness * float(self.random.uniform(-1, 1))
            share = self.SHARES[stage] * frames * pixels**self.power
            seconds = share * self.slowness(self.now) * noise + self.overhead
            began = self.now
            self.work(seconds)
            observe(plan, Run(stage=stage, frames=frames, seconds=self.now - began))
            if self.untimed:
                self.work(self.untimed * seconds)

        return PlainSegment(plan, work=work, gives_up=gives_up)

    def is_ready(self, plan: Plan) -> bool:
        return self.ready.get((plan.size, plan.window, plan.stride), float("inf")) <= self.now

    def prepare(self, plan: Plan, *, observe) -> None:
        segment = self.segment(plan, None, size=plan.size, observe=observe)
        for index in range(plan.window + 2 * plan.stride):
            frame = Frame(index=index, pts=index, time_base=TIME_BASE, image=picture())
            list(segment.push(Pushed(frame=frame, words=self.words(self.check(LiveSettings())))))
        self.ready.setdefault((plan.size, plan.window, plan.stride), self.now)

    def request(self, plan: Plan) -> None:
        self.ready.setdefault((plan.size, plan.window, plan.stride), self.now + self.builds)


DEFAULTS = Defaults(
    name="stand-in",
    prompt="a b",
    steps=1,
    window=4,
    stride=3,
    controlnets={"outline": 1.0},
    styles=("ink", "flat"),
)


@pytest.fixture(scope="session", name="live")
def live_fixture() -> SimpleNamespace:
    """The stand-ins: classes to be made with what a test needs."""
    return SimpleNamespace(
        Machine=Machine, PlainSegment=PlainSegment, picture=picture, defaults=DEFAULTS, time_base=TIME_BASE
    )
