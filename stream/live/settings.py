"""What a viewer may ask of a live stream, and what is run for it."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from toonstream.config import (
    MAX_SEED,
    Deflickering,
    LoraChoice,
    Mode,
    ModelDefaults,
    RenderSettings,
    Settings,
    Size,
)
from toonstream.errors import SettingError

__all__ = ["MAX_LATENCY", "MIN_LATENCY", "LiveSettings", "Plan", "parse_latency"]

MIN_LATENCY = 0.02  # seconds
MAX_LATENCY = 60.0  # seconds
_UNITS = {"": 1.0, "s": 1.0, "ms": 0.001}


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """What one viewer asks for; what is None is left to the model.

    Attributes:
        prompt: what the toon should look like.
        negative_prompt: what it should not look like; counts where guidance is above 1.
        style: the name of one of the model's styles, put in front of the prompt.
        seed: of all noise, 0 to 2^63 - 1.
        size: of the toon that is delivered; with a promise it may be drawn smaller, and is enlarged.
        steps: denoising steps; with a promise the most of them.
        window: frames denoised together (d). stride: frames from one window to the next (s). With a promise
            these are what is best, and others may be run.
        mode: wavefront or anchored; skewed counts as wavefront, which is the same result sooner.
        overlap: frames that anchored windows begin with and that are final; in place of `stride`.
        guidance: how strongly the prompt is followed (g); 1 means no guidance.
        latency: seconds promised from capture to commit; None promises nothing and runs what is asked for.
        loras: by name, of those that the server offers, and how strongly each counts.
        blend: windows over which a change of words or of LoRAs is spread, 0 or more.
        skip: frames that differ from the last one drawn by at most so many levels of 255 have its toon, see
            `stream.temporal.skipping`; None draws all.
        deflicker: "off", or blend each toon with the last one, see `stream.temporal.steadying`; all other
            words mean the same here, as a live stream waits for no later frame. Given up before anything else
            for the sake of a promise.
        remember: frames of their scene, done before, that frames attend to. reference: a picture that they
            attend to. Both are of the networks that are loaded: who draws chooses them, not who watches.

    Raises:
        SettingError: a number is out of range.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    style: str | None = None
    seed: int = 0
    size: Size = field(default_factory=lambda: Size(short=384, cap=True))
    steps: int | None = None
    window: int | None = None
    stride: int | None = None
    mode: Mode | None = None
    overlap: int | None = None
    guidance: float | None = None
    latency: float | None = None
    loras: tuple[LoraChoice, ...] = ()
    blend: int = 4
    skip: float | None = None
    deflicker: Deflickering | None = None
    remember: int = 0
    reference: Path | None = None

    def __post_init__(self) -> None:
        self._asked()
        if self.latency is not None and not MIN_LATENCY <= self.latency <= MAX_LATENCY:
            raise SettingError(
                f"latency {self.latency:g} s: promise {MIN_LATENCY * 1000:g}ms to {MAX_LATENCY:g}s"
            )
        if len({lora.file for lora in self.loras}) < len(self.loras):
            raise SettingError("loras: name each one once")
        if not 0 <= self.blend <= 100:
            raise SettingError(f"blend {self.blend}: spread a change over 0 to 100 windows")

    def resolve(self, defaults: ModelDefaults) -> RenderSettings:
        """Fill in what was left open.

        Raises:
            SettingError: the style is not one of the model's, or the numbers do not fit together.
        """
        render = self._asked().resolve(defaults)
        return replace(
            render,
            mode="wavefront" if render.mode == "skewed" else render.mode,
            deflicker="off" if render.deflicker == "off" else "causal",
        )

    def _asked(self) -> Settings:
        if not 0 <= self.seed <= MAX_SEED:
            raise SettingError(f"seed {self.seed}: take one from 0 to 2^63 - 1")
        return Settings(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            style=self.style,
            steps=self.steps,
            window=self.window,
            stride=self.stride,
            mode=self.mode,
            overlap=self.overlap,
            guidance=self.guidance,
            seed=self.seed,
            skip=self.skip,
            deflicker=self.deflicker,
            remember=self.remember,
            reference=self.reference,
            loras=tuple(sorted(lora for lora in self.loras if lora.weight)),
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run.

    Attributes:
        size: (width, height) in pixels that is drawn at.
        steps: denoising steps (T).
        window: frames denoised together (d).
        stride: frames from one window to the next (s).
        mode: wavefront; or anchored, whose windows begin with `window - stride` frames that are final.
        guidance: 1 means that the prompt's side alone is run.
        every: of the captured frames every so-manieth is kept, 1 or more.
        shared_noise: part of the noise that is the same in all frames, 0 to 1; the model's choice.
        fusion: how much frames share of what they would look like, 0 to 1; the model's choice.
        steady: toons are deflickered on their way out.
    """

    size: tuple[int, int]
    steps: int
    window: int
    stride: int
    mode: Mode = "wavefront"
    guidance: float = 1.0
    every: int = 1
    shared_noise: float = 0.0
    fusion: float = 0.0
    steady: bool = False

    def facts(self) -> Mapping[str, object]:
        """Ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        kept = "" if self.every == 1 else f", one frame in {self.every}"
        width, height = self.size
        windows = f"window {self.window}, stride {self.stride}"
        if self.mode == "anchored":
            windows = f"window {self.window}, {self.window - self.stride} of it anchored"
        steady = ", deflickered" if self.steady else ""
        return f"{width}x{height}, {self.steps} steps, {windows}{kept}{steady}"


def parse_latency(text: str) -> float:
    """Read `400ms`, `0.4s` or `0.4` (seconds) as seconds.

    Raises:
        SettingError: it is none of them, or out of range.
    """
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) ?(ms|s|)", text.strip().lower())
    if match is None:
        raise SettingError(f"latency {text!r}: write 400ms or 0.4s")
    seconds = float(match[1]) * _UNITS[match[2]]
    return LiveSettings(latency=seconds).latency or seconds
