"""What the live core and what draws for it say to each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from toonstream.config import LoraChoice, RenderSettings
from toonstream.stream.frame import Frame
from toonstream.stream.live.fading import Fade
from toonstream.stream.live.settings import LiveSettings, Plan
from toonstream.stream.live.switching import Segment
from toonstream.stream.live.words import Words

__all__ = ["LiveToon", "Observe", "Run", "Studio"]


@dataclass(frozen=True, kw_only=True, eq=False)
class LiveToon:
    """A toon, as soon as it is final.

    Attributes:
        source: the frame as it was offered, in its own size; where the source changes its shape more often
            than is followed, within the shape that is drawn.
        toon: of the size that was asked for; pts, time base and duration of the source. Both are numbered
            from 0 without gaps, over the frames that are delivered.
        captured_at: when it was captured. committed_at: when it was final. Seconds by the session's clock.
        plan: what it was drawn under.
    """

    source: Frame
    toon: Frame
    captured_at: float
    committed_at: float
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a stage.

    Attributes:
        stage: `conditions`, the network's name, `deliver`, or `rest`: what a frame's way took and no stage.
        frames: that it had, guidance sides counted each.
        seconds: it took. waited: until its turn, before.
        first: something had to be built for it first, so that the seconds say nothing of the next time.
    """

    stage: str
    frames: int
    seconds: float
    waited: float = 0.0
    first: bool = False


Observe = Callable[[Plan, Run], None]
V = TypeVar("V")


class Studio(Protocol[V]):
    """What draws: `SharedNetworks`, or in tests something in its place. V is the model with LoRAs put in."""

    @property
    def multiple(self) -> int:
        """Sides that are multiples of this many pixels are drawn without waste."""
        ...

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        """Give the largest size of that shape that can be drawn, no larger than that."""
        ...

    def check(self, settings: LiveSettings) -> RenderSettings:
        """Fill in what was left open.

        Raises:
            InputError: it cannot be done.
        """
        ...

    @property
    def plain(self) -> V:
        """The model as it is."""
        ...

    def variant(self, loras: tuple[LoraChoice, ...]) -> V | None:
        """The model with LoRAs put in; None while that is made ready, without waiting.

        Raises:
            ToonstreamError: it cannot be made.
        """
        ...

    def words(self, settings: RenderSettings, variant: V) -> Words:
        """What frames are to look like, as the variant's text encoder has it."""
        ...

    def segment(
        self,
        plan: Plan,
        words: Words,
        *,
        size: tuple[int, int],
        observe: Observe,
        fade: Fade[V],
        gives_up: Callable[[Frame], bool],
    ) -> Segment:
        """Start a stream that gives toons of `size`, drawn with what `fade` says.

        `observe` is told of every run in it. `gives_up` is asked, before a frame is decoded, whether it comes
        too late: then anything is good enough, for it is not shown.
        """
        ...

    def is_ready(self, plan: Plan) -> bool:
        """Whether nothing has to be built before the plan is run."""
        ...

    def prepare(self, plan: Plan, *, observe: Observe) -> None:
        """Build what the plan needs, wait for it, and run it a little: `observe` is told what that takes."""
        ...

    def request(self, plan: Plan) -> str | None:
        """Build what the plan needs some time soon, without waiting; or say why it cannot be built."""
        ...
