"""What the server wants of the live core, in its own words, and how a client's wishes are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from toonstream.config import MAX_LORA_WEIGHT
from toonstream.errors import SettingError
from toonstream.stream.frame import Frame

__all__ = ["Bounds", "Catalogue", "Change", "Deliver", "Ended", "Figures", "Live", "OpenLive", "parse_change"]

MAX_PROMPT = 2_000  # characters
MAX_LORAS = 8  # in a toon at a time
MAX_STEPS, MAX_WINDOW = 8, 16  # that may be asked for, where the operator has not chosen more
SOONER = 4.0  # by this factor less latency may be asked for than is promised

Deliver = Callable[[Frame, float], None]
"""Is given a toon frame and when its source was captured; from any thread, in order."""

Ended = Callable[[str], None]
"""Is told, from any thread, why the live core can do no more."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a client asks to be different. None leaves it as it is.

    Attributes:
        prompt: what the toon should look like.
        style: one of the model's styles; the empty string is none.
        steps: denoising steps.
        window: frames denoised together.
        seed: of the noise.
        latency: promised, in seconds.
        deflicker: whether toons are steadied on their way out.
        loras: all that are wanted, by name, with how strongly each counts; none where it is empty.
    """

    prompt: str | None = None
    style: str | None = None
    steps: int | None = None
    window: int | None = None
    seed: int | None = None
    latency: float | None = None
    deflicker: bool | None = None
    loras: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a client may ask for.

    Attributes:
        latency: seconds, at least.
        steps, window: at most.
    """

    latency: float = 0.0
    steps: int = MAX_STEPS
    window: int = MAX_WINDOW

    @classmethod
    def around(cls, *, latency: float, steps: int, window: int) -> "Bounds":
        """Those of a server that does so when not told."""
        return cls(latency=latency / SOONER, steps=max(MAX_STEPS, steps), window=max(MAX_WINDOW, window))

    def require(self, change: Change) -> None:
        """See that a client stays within them.

        Raises:
            SettingError: it does not.
        """
        if change.latency is not None and not change.latency >= self.latency:  # a NaN is not
            raise SettingError(
                f"latency {change.latency:g} s: this server takes {1000 * self.latency:g} ms or more"
            )
        for name, most in (("steps", self.steps), ("window", self.window)):
            if (getattr(change, name) or 0) > most:
                raise SettingError(f"{name} {getattr(change, name)}: this server takes {most} at most")


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """What the page offers to choose from.

    Attributes:
        model: its name.
        prompt: the model's own.
        styles: it knows.
        steps, window: what it does when not told.
        latency: promised, in seconds.
        deflicker: whether it steadies toons when not told.
        loras: that can be put into it, by name.
        bounds: of what may be asked for.
    """

    model: str
    prompt: str
    styles: tuple[str, ...]
    steps: int
    window: int
    latency: float
    deflicker: bool = False
    loras: tuple[str, ...] = ()
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How one stream does: p50, p95 and p99 of the last seconds, in seconds; empty where there are none.

    Attributes:
        latency: from capture to the network.
        stages: what one turn of each takes. waits: how long frames wait in each queue.
        dropped: place → reason → frames, since the start.
        events: what a person may want to read, each with `at`, `kind` and `message`; oldest first.
        promise: seconds promised, or None. kept: whether it is thought to be.
    """

    latency: Mapping[str, float] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    waits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    events: tuple[Mapping[str, Any], ...] = ()
    promise: float | None = None
    kept: bool = True


class Live(Protocol):
    """One publisher's stream through the networks. Nothing here may block for long but `finish`."""

    def offer(self, frame: Frame, captured_at: float) -> None:
        """Take a captured frame; where the networks do not keep up, the oldest one gives way."""
        ...

    def change(self, change: Change) -> None:
        """Take other settings from the next window on; called on a thread, one change at a time.

        Raises:
            SettingError: they make no sense; nothing has changed.
        """
        ...

    def finish(self) -> None:
        """The source has ended: deliver what is in flight, then return."""
        ...

    def close(self) -> None:
        """Stop at once, and let go of everything."""
        ...

    def aged(self, seconds: float) -> None:
        """Learn that one of the toons was so many seconds old when it could go out; from any thread."""
        ...

    def statistics(self) -> Mapping[str, object]:
        """Figures for the page, ready for JSON.

        `stages` and `waits` map names to p50, p95 and p99 in seconds, `dropped` places and reasons to counts,
        and `events` are what a person may want to read.
        """
        ...


OpenLive = Callable[[Change, Deliver, Ended], Live]
"""Opens the live core for a new publisher; is called on a thread, and may take its time.

Raises:
    SettingError: the settings make no sense.
    ToonstreamError: it cannot be opened.
"""

_TYPES: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "style": (str,),
    "steps": (int,),
    "window": (int,),
    "seed": (int,),
    "latency": (int, float),
    "deflicker": (bool,),
    "loras": (dict,),
}
_KINDS: dict[tuple[type, ...], str] = {
    (str,): "text",
    (bool,): "true or false",
    (dict,): "an object of names and weights",
}


def parse_change(values: object) -> Change:
    """Read a client's JSON.

    Raises:
        SettingError: it names something else, or something of the wrong kind.
    """
    if not isinstance(values, dict):
        raise SettingError("send an object of settings")
    known = [field.name for field in fields(Change)]
    for name, value in values.items():
        if name not in known:
            raise SettingError(f"no setting {str(name)[:40]!r}: there are {', '.join(known)}")
        is_switch = _TYPES[name] == (bool,)  # a bool would pass for a number, too
        if value is not None and not (
            isinstance(value, _TYPES[name]) and isinstance(value, bool) == is_switch
        ):
            raise SettingError(f"{name} should be {_KINDS.get(_TYPES[name], 'a number')}")
        if isinstance(value, str) and len(value) > MAX_PROMPT:
            raise SettingError(f"{name} is longer than {MAX_PROMPT} characters")
        if isinstance(value, dict):
            _require_weights(name, value)
    return Change(**values)


def _require_weights(name: str, weights: Mapping[object, object]) -> None:
    if len(weights) > MAX_LORAS:
        raise SettingError(f"{name}: take at most {MAX_LORAS}")
    for weight in weights.values():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise SettingError(f"{name} should be an object of names and weights")
        if not abs(weight) <= MAX_LORA_WEIGHT:
            raise SettingError(f"{name}: take weights from -{MAX_LORA_WEIGHT:g} to {MAX_LORA_WEIGHT:g}")
