"""What a user may set, checked once, before anything heavy is loaded."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Protocol, get_args

from toonstream.errors import SettingError

__all__ = [
    "MAX_LORA_WEIGHT",
    "MAX_SIDE",
    "MIN_SIDE",
    "Deflickering",
    "EngineName",
    "LoraChoice",
    "Matching",
    "Mode",
    "ModelDefaults",
    "RenderSettings",
    "Settings",
    "Size",
]

EngineName = Literal["auto", "openvino", "onnxruntime", "torch", "tensorrt-rtx", "tensorrt"]
Mode = Literal["wavefront", "skewed", "anchored"]
Deflickering = Literal["off", "balanced", "accurate", "causal"]
Matching = Literal["flow", "patchmatch"]

MAX_STEPS = 50
MAX_WINDOW = 32  # frames; motion modules have no positions beyond it
MAX_GUIDANCE = 30.0
MAX_LORA_WEIGHT = 10.0
MAX_SEED = 2**63 - 1
MAX_DEFLICKER_WINDOW = 30  # frames on each side
MAX_KEYFRAMES = 30  # frames from one to the next
MAX_REMEMBERED = 8  # frames of the past
MIN_SIDE = 16  # pixels
MAX_SIDE = 4096  # pixels
DEFAULT_SHORT_SIDE = 512  # pixels; a larger clip is rendered at this


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large to render: a short side, or width and height.

    Attributes:
        short: the short side in pixels; the long one follows from the source.
        exact: (width, height) in pixels; wins over `short`.
        cap: `short` is a limit that leaves smaller sources alone.
    """

    short: int = DEFAULT_SHORT_SIDE
    exact: tuple[int, int] | None = None
    cap: bool = False

    def __post_init__(self) -> None:
        for side in self.exact or (self.short,):
            if not MIN_SIDE <= side <= MAX_SIDE:
                raise SettingError(f"size {side}: take sides from {MIN_SIDE} to {MAX_SIDE} pixels")

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Read `640x360` (width, height) or `360` (short side).

        Raises:
            SettingError: it is neither, or out of range.
        """
        match = re.fullmatch(r"(\d{1,6})(?:[xX×](\d{1,6}))?", text.strip())
        if match is None:
            raise SettingError(
                f"size {text!r}: write WIDTHxHEIGHT such as 640x360, or a short side such as 360"
            )
        first, second = match.groups()
        return cls(short=int(first)) if second is None else cls(exact=(int(first), int(second)))

    def of(self, width: int, height: int) -> tuple[int, int]:
        """Give the even (width, height) in pixels to render a source of `width` × `height` pixels at.

        Raises:
            SettingError: the long side would pass the limit.
        """
        if self.exact is not None:
            return _even(self.exact[0]), _even(self.exact[1])
        short = min(width, height)
        scale = min(1.0, self.short / short) if self.cap else self.short / short
        result = _even(width * scale), _even(height * scale)
        if min(result) < MIN_SIDE:
            raise SettingError(
                f"{width}x{height} pixels are too few to draw: take another clip, or enlarge with --size 256"
            )
        if max(result) > MAX_SIDE:
            raise SettingError(
                f"a short side of {min(result)} makes this clip {max(result)} pixels long; "
                f"take a --size whose long side is at most {MAX_SIDE}"
            )
        return result


def _even(side: float) -> int:
    """Round to the nearest even number: most video formats share colour between two pixels."""
    return max(2, 2 * round(side / 2))


@dataclass(frozen=True, kw_only=True, order=True)
class LoraChoice:
    """A LoRA, and how strongly it counts.

    Attributes:
        file: the path of its file; or its name, where a server offers some by name.
        weight: 1 is as it was made, 0 is without it; negative ones turn it round.
    """

    file: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not abs(self.weight) <= MAX_LORA_WEIGHT:  # a NaN is not
            raise SettingError(
                f"lora {self.file}: weight {self.weight:g}: take -{MAX_LORA_WEIGHT:g} to {MAX_LORA_WEIGHT:g}"
            )

    @classmethod
    def parse(cls, text: str) -> "LoraChoice":
        """Read `FILE` or `FILE=WEIGHT`; what follows the last = of a name and is no number is part of it.

        Raises:
            SettingError: there is no file in it, or the weight is out of range.
        """
        file, found, number = text.rpartition("=")
        try:
            choice = (file, float(number)) if found else (text, 1.0)
        except ValueError:
            choice = (text, 1.0)
        if not choice[0]:
            raise SettingError(f"lora {text!r}: write FILE or FILE=WEIGHT, such as ink.safetensors=0.8")
        return cls(file=choice[0], weight=choice[1])


class ModelDefaults(Protocol):
    """What a model asks for where the user does not say; see `toonstream.export.checkpoints.Defaults`."""

    @property
    def name(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def negative_prompt(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def window(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def guidance(self) -> float: ...
    @property
    def styles(self) -> tuple[str, ...]: ...
    @property
    def mode(self) -> Mode: ...
    @property
    def overlap(self) -> int | None: ...
    @property
    def deflicker(self) -> Deflickering: ...
    @property
    def deflicker_window(self) -> int: ...
    @property
    def remember(self) -> int: ...
    @property
    def shared_noise(self) -> float: ...
    @property
    def fusion(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """Settings with nothing left open; the stream works from these.

    Attributes are those of `Settings`, with the model's defaults filled in and the style in the prompt.
    An overlap is given as the stride that it leaves of the window.
    """

    prompt: str
    negative_prompt: str
    steps: int
    window: int
    stride: int
    guidance: float
    seed: int
    mode: Mode
    loras: tuple[LoraChoice, ...] = ()
    deflicker: Deflickering = "off"
    deflicker_window: int = 2
    keyframes: int = 1
    skip: float | None = None
    matcher: Matching = "flow"
    reference: Path | None = None
    remember: int = 0
    shared_noise: float = 0.0
    fusion: float = 0.0
    flow: Path | None = None

    def __post_init__(self) -> None:
        _check(self.steps, self.window, self.stride, self.guidance)
        _check_mode(self.mode)
        _check_stages(self)
        if self.flow is not None and self.fusion == 0.0:
            raise SettingError(f"flow {self.flow}: add --fusion 0.5, which is what looks for motion with it")

    @property
    def attends(self) -> bool:
        """Whether frames attend to more than their window: the UNet is another one then."""
        return self.remember > 0 or self.reference is not None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user asks for. None leaves the choice to the model.

    Attributes:
        prompt: what the toon should look like.
        negative_prompt: what it should not look like; counts where guidance is above 1.
        style: the name of one of the model's styles: short for putting "NAME style" in front of the prompt.
        steps: denoising steps, 1 to 50.
        window: frames denoised together (d), 1 to 32.
        stride: frames from one window to the next (s), 1 to `window`.
        guidance: how strongly the prompt is followed (g), 1 to 30; 1 means no guidance.
        seed: of all noise, 0 to 2^63 - 1.
        size: of the output; None caps the short side where the model says, see `Size.cap`.
        start: seconds of the clip to leave out in front.
        duration: seconds to render, or None for all.
        side_by_side: put the source to the left of the toon.
        contact_sheet: where to write a picture of source frames over toon frames, or None.
        engine: what runs the networks.
        model: the name of a preset, the path of a model folder, or None for the one that ships.
        allow_pickle: read a preset's checkpoints even where they are pickled.
        loras: what changes the model's weights, on top of its own LoRAs.
        mode: wavefront; skewed (larger batches, more look-ahead, the same result); or anchored: window after
            window, each of which begins with frames that are final, and keeps to them.
        overlap: how many frames that is, 0 to `window` - 1; in anchored mode only, and in place of `stride`.
        deflicker: blend toons with their neighbours' toons, brought to where they are: balanced, each by
            itself; accurate, by what they agree on; causal, with the last toon only, as it was sent.
        deflicker_window: neighbours on each side, 1 to 30.
        keyframes: draw every so-manieth frame, 1 to 30, and bring its toon to the frames between.
        skip: give a frame that differs from the last one drawn by at most so many levels of 255 the toon of
            that one, see `stream.temporal.skipping`; 0 skips exact repetitions; None skips none.
        matcher: what deflickering and keyframes bring toons to other frames by: optical flow, or PatchMatch
            (as FastBlend; for GPUs).
        reference: a picture that frames attend to, such as a character or style sheet, or None.
        remember: how many frames of the past they attend to, 0 to 8.
        shared_noise: part of the noise that is the same in all frames, 0 to 1: what it makes of them does not
            flicker.
        fusion: how much frames share at every denoising step, along the optical flow of the source, of what
            they would look like; 0 (nothing) to 1.
        flow: a RAFT checkpoint that finds this flow, in torchvision's layout; None for OpenCV's DIS.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    style: str | None = None
    steps: int | None = None
    window: int | None = None
    stride: int | None = None
    guidance: float | None = None
    seed: int = 0
    size: Size | None = None
    start: float = 0.0
    duration: float | None = None
    side_by_side: bool = False
    contact_sheet: Path | None = None
    engine: EngineName = "auto"
    model: str | Path | None = None
    allow_pickle: bool = False
    loras: tuple[LoraChoice, ...] = ()
    mode: Mode | None = None
    overlap: int | None = None
    deflicker: Deflickering | None = None
    deflicker_window: int | None = None
    keyframes: int = 1
    skip: float | None = None
    matcher: Matching = "flow"
    reference: Path | None = None
    remember: int | None = None
    shared_noise: float | None = None
    fusion: float | None = None
    flow: Path | None = None

    def __post_init__(self) -> None:
        _check(self.steps, self.window, self.stride, self.guidance)
        if not 0 <= self.seed <= MAX_SEED:
            raise SettingError(f"seed {self.seed}: take one from 0 to 2^63 - 1")
        if not 0.0 <= self.start < float("inf"):
            raise SettingError(f"start {self.start:g}: give the seconds to leave out, 0 or more")
        if self.duration is not None and not 0.0 < self.duration < float("inf"):
            raise SettingError(f"duration {self.duration:g}: give the seconds to render, more than 0")
        if self.engine not in get_args(EngineName):
            raise SettingError(f"engine {self.engine!r}: take one of {', '.join(get_args(EngineName))}")
        if self.mode is not None:
            _check_mode(self.mode)
        if self.overlap is not None:
            _check_overlap(self.overlap, self.window)
            if self.stride is not None:
                raise SettingError("stride and overlap: give one of them; the other follows from the window")
        _check_stages(self)
        if self.remember is not None and not 0 <= self.remember <= MAX_REMEMBERED:
            raise SettingError(f"remember {self.remember}: take 0 (off) to {MAX_REMEMBERED} frames")
        if self.shared_noise is not None and not 0.0 <= self.shared_noise <= 1.0:
            raise SettingError(f"shared noise {self.shared_noise:g}: take 0 (each frame its own) to 1")
        if self.fusion is not None and not 0.0 <= self.fusion <= 1.0:
            raise SettingError(f"fusion {self.fusion:g}: take 0 (off) to 1; frames share more with more")
        if self.contact_sheet is not None and self.contact_sheet.suffix.lower() != ".png":
            raise SettingError(f"contact sheet {self.contact_sheet}: give it a name that ends in .png")

    def resolve(self, defaults: ModelDefaults) -> RenderSettings:
        """Fill in what the user left open.

        A window or a stride given alone pulls the other along: the stride becomes half the window,
        which is the least look-ahead, and the window grows to twice the stride. In anchored mode a window
        overlaps by a quarter where neither user nor model says more.

        Raises:
            SettingError: the style is not one of the model's, or the numbers do not fit together.
        """
        mode = defaults.mode if self.mode is None else self.mode
        window, stride = self._segments(defaults) if mode == "anchored" else self._windows(defaults)
        negative = defaults.negative_prompt if self.negative_prompt is None else self.negative_prompt
        return RenderSettings(
            prompt=self._prompt(defaults),
            negative_prompt=negative,
            steps=defaults.steps if self.steps is None else self.steps,
            window=window,
            stride=stride,
            guidance=defaults.guidance if self.guidance is None else self.guidance,
            seed=self.seed,
            mode=mode,
            loras=self.loras,
            deflicker=defaults.deflicker if self.deflicker is None else self.deflicker,
            deflicker_window=(
                defaults.deflicker_window if self.deflicker_window is None else self.deflicker_window
            ),
            keyframes=self.keyframes,
            skip=self.skip,
            matcher=self.matcher,
            reference=self.reference,
            remember=defaults.remember if self.remember is None else self.remember,
            shared_noise=defaults.shared_noise if self.shared_noise is None else self.shared_noise,
            fusion=defaults.fusion if self.fusion is None else self.fusion,
            flow=self.flow,
        )

    def _windows(self, defaults: ModelDefaults) -> tuple[int, int]:
        """Window and stride."""
        if self.overlap is not None:
            raise SettingError(f"overlap {self.overlap}: add --mode anchored; else windows have a --stride")
        window, stride = self.window, self.stride
        if window is None and stride is None:
            return defaults.window, defaults.stride
        if window is None:
            assert stride is not None
            window = min(MAX_WINDOW, max(defaults.window, 2 * stride))
        elif stride is None:
            stride = max(1, window // 2)
        return window, stride

    def _segments(self, defaults: ModelDefaults) -> tuple[int, int]:
        """Window and stride in anchored mode."""
        window = defaults.window if self.window is None else self.window
        if self.stride is not None:
            return max(window, self.stride), self.stride
        overlap = defaults.overlap if self.window is None else None
        if self.overlap is not None:
            overlap = self.overlap
        elif overlap is None:
            overlap = max(1, window // 4) if window > 1 else 0
        _check_overlap(overlap, window)
        return window, window - overlap

    def _prompt(self, defaults: ModelDefaults) -> str:
        """Put the style in front. It replaces the model's own prompt, which names a style itself."""
        if self.style is None:
            return defaults.prompt if self.prompt is None else self.prompt
        if self.style not in defaults.styles:
            near = get_close_matches(self.style.lower(), defaults.styles, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"it knows {', '.join(defaults.styles)}"
            raise SettingError(f"{defaults.name} has no style {self.style!r}: {hint}")
        return f"{self.style} style, {self.prompt}" if self.prompt else f"{self.style} style"


def _check_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise SettingError(f"mode {mode!r}: take one of {', '.join(get_args(Mode))}")


def _check_overlap(overlap: int, window: int | None) -> None:
    if not 0 <= overlap < (window or MAX_WINDOW):
        limit = f"{window - 1}, less than the window's {window}" if window else MAX_WINDOW - 1
        raise SettingError(f"overlap {overlap}: take 0 to {limit} frames; each window is to bring new ones")


def _check_stages(asked: Settings | RenderSettings) -> None:
    """Reject what no stage around the networks can work with."""
    if asked.deflicker is not None and asked.deflicker not in get_args(Deflickering):
        raise SettingError(f"deflicker {asked.deflicker!r}: take one of {', '.join(get_args(Deflickering))}")
    if asked.matcher not in get_args(Matching):
        raise SettingError(f"matcher {asked.matcher!r}: take one of {', '.join(get_args(Matching))}")
    frames = asked.deflicker_window
    if frames is not None and not 1 <= frames <= MAX_DEFLICKER_WINDOW:
        raise SettingError(f"deflicker window {frames}: take 1 to {MAX_DEFLICKER_WINDOW} frames on each side")
    if not 1 <= asked.keyframes <= MAX_KEYFRAMES:
        raise SettingError(
            f"keyframes {asked.keyframes}: draw every frame (1), up to every {MAX_KEYFRAMES}th"
        )
    if asked.skip is not None and not 0.0 <= asked.skip <= 255.0:
        raise SettingError(f"skip {asked.skip:g}: take 0 (exact repetitions) to 255 levels; 3 is a good one")


def _check(steps: int | None, window: int | None, stride: int | None, guidance: float | None) -> None:
    """Reject numbers that no model can work with, each on its own and together."""
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise SettingError(f"steps {steps}: take 1 to {MAX_STEPS}; more of them look better and take longer")
    if window is not None and not 1 <= window <= MAX_WINDOW:
        raise SettingError(f"window {window}: take 1 to {MAX_WINDOW} frames")
    if stride is not None and not 1 <= stride <= (window or MAX_WINDOW):
        limit = f"the window's {window}" if window else MAX_WINDOW
        raise SettingError(f"stride {stride}: take 1 to {limit} frames; with more, some would be left out")
    if guidance is not None and not 1.0 <= guidance <= MAX_GUIDANCE:
        raise SettingError(f"guidance {guidance:g}: take 1 (none) to {MAX_GUIDANCE:g}")
