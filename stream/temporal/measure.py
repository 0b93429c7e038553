"""How steady a toon is, how sharp, and how true to its source: figures over frames as they come.

    survey, meter = Survey(), Meter()
    for source, toon in pairs:
        meter.push(survey.push(source), toon)
    meter.figures.ratio  # flow-warped error, as a multiple of the source's own

What is known of the source (its flow above all) is found once a frame, by `Survey`, and serves any number of
toons of it, each with a `Meter`. Both keep the last two frames and running sums: memory does not grow with
the clip. Nothing is compared across a scene cut.

Symbols: x_t is the toon at frame t and s_t the source, both RGB levels in [0, 255]; b_t is the source's
optical flow from frame t back to t - 1; W(x, b) is x fetched along b; M_t are the pixels of frame t that
frame t - 1 shows, too (`flow.trusted`).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from toonstream.export.outline import OutlineExtractor
from toonstream.stream.temporal.cuts import CutDetector
from toonstream.stream.temporal.flow import Flow, FlowFunction, flow, trusted, warp

__all__ = [
    "Drift",
    "Figures",
    "Look",
    "Meter",
    "Sight",
    "Survey",
    "drift",
    "lab",
    "outline_score",
    "warped_error",
]

_FLAT = 2.0  # levels per pixel: where the source's gradient is below, it is flat
_STILL = 1.0  # pixels per frame: where its motion is below, it is still
_MARGIN = 5  # pixels: side of the neighbourhood that has to be flat with the pixel
_NOISE = 6.0  # the variance of x_t - 2 x_{t-1} + x_{t-2} over that of x, where x is white noise
_LINE = 128  # level of an extracted outline above which there is a line
_NEAR = 2.0  # pixels at a short side of 256: two lines so far apart are one
_BLUR = 1 / 32  # of the short side: sigma of the blur that leaves colours without lines
_CELLS = 8  # along each axis, that a look's colours are averaged in
_REFERENCE_SIDE = 256  # pixels

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sight:
    """What the figures need of one source frame; made once, for all toons of it.

    Attributes:
        image: s_t, (H, W, 3) uint8 RGB.
        flow: b_t, (H, W, 2) float32 in pixels; None in a scene's first frame.
        trusted: M_t, (H, W); None likewise.
        flat: pixels that are flat in frames t, t - 1 and t - 2, and still in between, (H, W); None in a
            scene's first two frames.
        motion: mean length of b_t, as a share of the short side; None in a scene's first frame.
        warped: the source's own flow-warped error, see `warped_error`; None likewise.
        second: mean of (s_t - 2 s_{t-1} + s_{t-2})² over `flat`; None where there is nothing flat.
        energy: mean of its squared Laplacian, see `Figures.sharpness`.
        lines: its outline, (H, W).
        colours: CIELAB of it, blurred, (H, W, 3) float32.
    """

    image: Image
    flow: Flow | None
    trusted: Mask | None
    flat: Mask | None
    motion: float | None
    warped: float | None
    second: float | None
    energy: float
    lines: Mask
    colours: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured. None stands where there was nothing to measure.

    Attributes:
        frames: of the toon.
        motion: of the source: the mean length of its flow, as a share of the short side, per frame.
        warped: flow-warped error, E = mean over t of mean over M_t of (x_t - W(x_{t-1}, b_t))²: the pixel MSE
            of Diffutoon and Rerender-A-Video, in squared levels.
        source_warped: the source's own, which camera noise and errors of the flow leave.
        flicker: what white noise would flicker as much, as its standard deviation in levels: the root of
            mean (x_t - 2 x_{t-1} + x_{t-2})² / 6, over the areas that are flat and still in the source.
        source_flicker: the source's own.
        sharpness: Σ_t mean (∇²x_t)² / Σ_t mean (∇²s_t)², ∇² the Laplacian of the luma; 1 is the source's.
        outline: F-score of the toon's outline against the source's, see `outline_score`, in [0, 1].
        colour: mean ΔE (CIE 1976) between toon and source, both blurred until lines are gone.
    """

    frames: int
    motion: float | None
    warped: float | None
    source_warped: float | None
    flicker: float | None
    source_flicker: float | None
    sharpness: float | None
    outline: float | None
    colour: float | None

    @property
    def ratio(self) -> float | None:
        """The flow-warped error as a multiple of the source's own; None where that is not known or is 0."""
        if self.warped is None or not self.source_warped:
            return None
        return self.warped / self.source_warped


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How two looks differ.

    Attributes:
        colour: ΔE (CIE 1976): the mean over 8 x 8 cells of the distance between the cells' mean colours, so
            that one half turning red and the other green is noticed. At least that of the mean colours.
        sharpness: Laplacian energy of the later one over that of the earlier one; 1 is no change.
    """

    colour: float
    sharpness: float


class Survey:
    """Looks at the source, frame by frame.

    Args:
        flow: finds the optical flow; by OpenCV's DIS unless another one is given.
    """

    def __init__(self, flow: FlowFunction = flow) -> None:
        self._flow = flow
        self._outline = OutlineExtractor()
        self._cuts = CutDetector()
        self._before: list[Image] = []  # the last two frames of this scene
        self._calm: list[Mask] = []  # where they were flat, and still since the frame before

    def push(self, image: Image) -> Sight:
        """Take the next source frame, (H, W, 3) uint8 RGB, at least 16 pixels a side."""
        if self._cuts.push(image):
            self._before, self._calm = [], []
        back = seen = motion = own = None
        calm = _flat_areas(image)
        if self._before:
            back = self._flow(image, self._before[-1])
            seen = trusted(back, self._flow(self._before[-1], image))
            length = np.linalg.norm(back, axis=-1)
            motion = float(length.mean()) / min(image.shape[:2])
            own = warped_error(self._before[-1], image, back, seen)
            calm &= length < _STILL
        flat = second = None
        if len(self._before) == 2:
            flat = calm & self._calm[-1] & self._calm[-2]
            second = _second_difference([*self._before, image], flat)
        self._before = [*self._before[-1:], image]
        self._calm = [*self._calm[-1:], calm]
        return Sight(
            image=image,
            flow=back,
            trusted=seen,
            flat=flat,
            motion=motion,
            warped=own,
            second=second,
            energy=_laplacian_energy(image),
            lines=self._outline(image) >= _LINE,
            colours=_blurred_lab(image),
        )


class Meter:
    """Measures one toon against its source."""

    def __init__(self) -> None:
        self._outline = OutlineExtractor()
        self._before: list[Image] = []
        self._frames = 0
        self._means = {
            name: _Mean()
            for name in ("motion", "warped", "source_warped", "second", "source_second", "colour")
        }
        self._energy = self._source_energy = 0.0
        self._matches = np.zeros(4)

    def push(self, sight: Sight, toon: Image) -> None:
        """Take the next frame.

        Args:
            sight: of the source frame.
            toon: x_t, (H, W, 3) uint8 RGB, of the source frame's size.
        """
        means = self._means
        if sight.flow is None or sight.trusted is None:
            self._before = []
        else:
            error = warped_error(self._before[-1], toon, sight.flow, sight.trusted)
            for name, value in (
                ("motion", sight.motion),
                ("warped", error),
                ("source_warped", sight.warped),
            ):
                means[name].add(value)
        if sight.flat is not None:
            weight = float(sight.flat.sum())
            means["second"].add(_second_difference([*self._before, toon], sight.flat), weight)
            means["source_second"].add(sight.second, weight)
        means["colour"].add(float(np.linalg.norm(_blurred_lab(toon) - sight.colours, axis=-1).mean()))
        self._energy += _laplacian_energy(toon)
        self._source_energy += sight.energy
        self._matches += _matches(self._outline(toon) >= _LINE, sight.lines)
        self._before = [*self._before[-1:], toon]
        self._frames += 1

    @property
    def figures(self) -> Figures:
        """What was measured so far."""
        means = {name: mean.value for name, mean in self._means.items()}
        return Figures(
            frames=self._frames,
            motion=means["motion"],
            warped=means["warped"],
            source_warped=means["source_warped"],
            flicker=_deviation(means["second"]),
            source_flicker=_deviation(means["source_second"]),
            sharpness=self._energy / self._source_energy if self._source_energy else None,
            outline=_f_score(self._matches) if self._frames else None,
            colour=means["colour"],
        )


class Look:
    """The mean colours and the sharpness of a stretch of a toon, to compare with those of another stretch."""

    def __init__(self) -> None:
        self._cells = np.zeros((_CELLS, _CELLS, 3))
        self._energy = 0.0
        self._frames = 0

    def push(self, image: Image) -> None:
        """Take the next frame, (H, W, 3) uint8 RGB."""
        self._cells += cv2.resize(lab(image), (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)
        self._energy += _laplacian_energy(image)
        self._frames += 1

    @property
    def colours(self) -> NDArray[np.float64]:
        """Mean CIELAB of the cells, (8, 8, 3); L in [0, 100]."""
        return self._cells / max(self._frames, 1)

    @property
    def energy(self) -> float:
        """Mean of the squared Laplacian of the luma, in squared levels."""
        return self._energy / max(self._frames, 1)


def drift(earlier: Look, later: Look) -> Drift:
    """How a toon's look has changed; compare stretches that show the same source frames."""
    distance = np.linalg.norm(later.colours - earlier.colours, axis=-1)
    sharpness = later.energy / earlier.energy if earlier.energy else 1.0
    return Drift(colour=float(distance.mean()), sharpness=sharpness)


def warped_error(before: Image, after: Image, back: Flow, seen: Mask) -> float | None:
    """The flow-warped error of two frames: mean over M_t and the channels of (x_t - W(x_{t-1}, b_t))².

    Args:
        before: x_{t-1}, (H, W, 3) uint8 RGB.
        after: x_t, likewise.
        back: b_t, (H, W, 2) float32 in pixels, of the source.
        seen: M_t, (H, W).

    Returns:
        The error in squared levels, or None where no pixel can be trusted.
    """
    if not seen.any():
        return None
    difference = after.astype(np.float32) - warp(before.astype(np.float32), back)
    return float(np.square(difference[seen]).mean(dtype=np.float64))


def outline_score(lines: Mask, wanted: Mask) -> float:
    """The F-score 2 P R / (P + R) of lines against those wanted, each (H, W).

    P is the share of the lines that are near a wanted one, R the share of the wanted ones that have a line
    near; near is within 2 pixels at a short side of 256, and in proportion at others. 1 where there are
    neither.
    """
    return _f_score(_matches(lines, wanted))


class _Mean:
    """A mean of what comes, weighted; None is passed over."""

    def __init__(self) -> None:
        self._total = self._weight = 0.0

    def add(self, value: float | None, weight: float = 1.0) -> None:
        if value is not None:
            self._total += value * weight
            self._weight += weight

    @property
    def value(self) -> float | None:
        return self._total / self._weight if self._weight else None


def _deviation(second: float | None) -> float | None:
    return None if second is None else float(np.sqrt(second / _NOISE))


def _grey(image: Image) -> NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY))


def lab(image: Image) -> NDArray[np.float32]:
    """CIELAB of a picture (H, W, 3) uint8 RGB: the same shape; L in [0, 100]."""
    return np.asarray(cv2.cvtColor(image.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB), dtype=np.float32)


def _blurred_lab(image: Image) -> NDArray[np.float32]:
    sigma = max(min(image.shape[:2]) * _BLUR, 1.0)
    return lab(np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.uint8))


def _laplacian_energy(image: Image) -> float:
    return float(np.square(cv2.Laplacian(_grey(image), cv2.CV_32F)).mean(dtype=np.float64))


def _flat_areas(image: Image) -> Mask:
    """Where nothing but noise is near a pixel: no gradient above the limit, (H, W)."""
    smooth = cv2.GaussianBlur(_grey(image), (0, 0), 1.0)
    across, down = (cv2.Sobel(smooth, cv2.CV_32F, *axes, scale=1 / 8) for axes in ((1, 0), (0, 1)))
    steep = (np.hypot(across, down) >= _FLAT).astype(np.uint8)
    return np.asarray(cv2.dilate(steep, np.ones((_MARGIN, _MARGIN), np.uint8)) == 0)


def _second_difference(frames: list[Image], area: Mask) -> float | None:
    """Mean of (x_t - 2 x_{t-1} + x_{t-2})² over an area, for frames in order of time."""
    if not area.any():
        return None
    first, middle, last = (frame[area].astype(np.float32) for frame in frames)
    return float(np.square(last - 2 * middle + first).mean(dtype=np.float64))


def _matches(lines: Mask, wanted: Mask) -> NDArray[np.float64]:
    """Lines near wanted ones, lines, wanted ones near lines, wanted ones: pixels of each."""
    reach = max(1, round(_NEAR * min(lines.shape) / _REFERENCE_SIDE))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    near_lines, near_wanted = (cv2.dilate(mask.astype(np.uint8), disc) > 0 for mask in (lines, wanted))
    counted = (lines & near_wanted, lines, wanted & near_lines, wanted)
    return np.array([float(mask.sum()) for mask in counted])


def _f_score(matches: NDArray[np.float64]) -> float:
    right, lines, found, wanted = matches
    if not lines and not wanted:
        return 1.0
    if not right or not found:
        return 0.0
    precision, recall = right / lines, found / wanted
    return float(2 * precision * recall / (precision + recall))
