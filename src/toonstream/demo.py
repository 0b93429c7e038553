"""`toonstream demo`: a short scene for those who have no clip at hand, drawn to look filmed.

Somebody walks over a meadow and waves. Everything has soft shading and texture, the camera follows with an
unsteady hand, and its sensor is noisy: flat drawings would leave a network that turns film into drawings with
nothing to do.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import cos, pi, sin
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from toonstream.errors import OutputError

__all__ = ["Scene", "draw_scene", "write_scene"]

_SAMPLE_RATE = 44_100  # of the sound, in Hz
_LIGHT = np.array([-0.45, -0.65, 0.61], dtype=np.float32)  # towards the sun: left, up, to the camera
_SKIN = (226, 172, 140)
_HAIR = (74, 48, 36)
_SHIRT = (196, 62, 54)
_TROUSERS = (56, 74, 118)
_SHOES = (62, 50, 46)
_EYES = (36, 30, 32)

Image = NDArray[np.float32]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The scene, frame by frame; the same settings give the same pixels.

    Attributes:
        width: pixels.
        height: pixels.
        rate: frames a second.
        seconds: how long it lasts.
        seed: of textures and noise.
    """

    width: int = 640
    height: int = 360
    rate: int = 24
    seconds: float = 4.0
    seed: int = 1

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return max(1, round(self.seconds * self.rate))

    def backdrop(self) -> Image:
        """Paint what the camera pans over: (height, 2 * width, 3) float32 RGB in [0, 255]."""
        height, width = self.height, 2 * self.width
        generator = np.random.default_rng(self.seed)
        row = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None, None]
        image = (1 - row) * _rgb(88, 146, 214) + row * _rgb(216, 226, 232)
        image = np.broadcast_to(image, (height, width, 3)).copy()
        clouds = np.clip(3.2 * _texture(generator, (height, width), 7, stretch=3) - 1.7, 0, 1)[..., None]
        image += clouds * (250 - image) * np.clip(1.3 - 2.2 * row, 0, 1)
        down = np.arange(height, dtype=np.float32)[:, None] / height
        across = np.arange(width, dtype=np.float32)[None] / height
        for base, swell, pace, colour in (
            (0.50, 0.07, 2.1, (112, 138, 150)),
            (0.60, 0.06, 3.4, (84, 124, 88)),
            (0.70, 0.02, 1.7, (106, 140, 62)),
        ):
            crest = (
                base + swell * np.sin(pace * across + 9 * base) + 0.3 * swell * np.sin(3.7 * pace * across)
            )
            cover = np.clip((down - crest) * height, 0, 1)[..., None]
            grain = _texture(generator, (height, width), 60, stretch=2) + _texture(
                generator, (height, width), 12
            )
            shade = (0.55 + 0.45 * grain + 0.25 * np.clip(crest + 0.25 - down, -1, 0.3))[..., None]
            image += cover * (_rgb(*colour) * shade - image)
        return image

    def frame(self, index: int, backdrop: Image) -> NDArray[np.uint8]:
        """Draw frame `index` before the backdrop: (height, width, 3) uint8 RGB."""
        seconds = index / self.rate
        generator = np.random.default_rng((self.seed, index))
        left = self.width * (0.25 + 0.12 * seconds) + 2 * sin(5.1 * seconds)
        top = 1.5 * sin(7.3 * seconds)
        shift = np.array([[1, 0, -left], [0, 1, -top]], np.float32)
        picture = np.asarray(
            cv2.warpAffine(backdrop, shift, (self.width, self.height), borderMode=cv2.BORDER_REFLECT),
            np.float32,
        )
        _Figure(picture, unit=self.height).draw(
            self.width * (0.40 + 0.04 * seconds), self.height * 0.93, seconds
        )
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.6), np.float32)
        picture += generator.normal(0.0, 3.0, picture.shape).astype(np.float32)
        return np.clip(picture, 0, 255).astype(np.uint8)

    def sound(self) -> NDArray[np.float32]:
        """Play a soft chord with footsteps: (1, samples) float32 in [-1, 1]."""
        time = np.arange(int(self.seconds * _SAMPLE_RATE)) / _SAMPLE_RATE
        chord = sum(np.sin(2 * pi * pitch * time) for pitch in (220.0, 277.2, 329.6)) / 3
        steps = np.sin(2 * pi * 70 * time) * np.exp(-18 * (time % 0.5))
        return (0.15 * chord + 0.25 * steps)[None].astype(np.float32)


class _Figure:
    """Paints a walker out of round, shaded limbs onto a picture, in place."""

    def __init__(self, picture: Image, *, unit: float) -> None:
        self._picture = picture
        self._unit = unit

    def draw(self, x: float, ground: float, seconds: float) -> None:
        """Paint the walker with the feet around (x, ground), in pixels."""
        u = self._unit
        swing = sin(2 * pi * seconds)
        bob = 0.008 * u * cos(4 * pi * seconds)
        shoulder, hip = (x, ground - 0.50 * u + bob), (x - 0.008 * u, ground - 0.29 * u + bob)
        self._shadow(x, ground)
        self._arm(shoulder, -0.5 * swing, 0.25, shade=0.7)
        for side, shade in ((-swing, 0.72), (swing, 1.0)):
            self._leg(hip, 0.45 * side, shade=shade)
        self._limb(shoulder, hip, 0.075 * u, 0.062 * u, _SHIRT)
        self._limb((x, shoulder[1] - 0.03 * u), (x, shoulder[1] - 0.08 * u), 0.026 * u, 0.026 * u, _SKIN)
        self._head((x + 0.008 * u, shoulder[1] - 0.145 * u), seconds)
        self._arm(shoulder, 2.3 + 0.15 * swing, 2.6 + 0.5 * sin(4 * pi * seconds), shade=1.0)

    def _head(self, centre: Point, seconds: float) -> None:
        x, y = centre
        u = self._unit
        self._limb((x - 0.012 * u, y - 0.022 * u), (x - 0.012 * u, y + 0.02 * u), 0.079 * u, 0.07 * u, _HAIR)
        self._limb(
            (x + 0.012 * u, y - 0.005 * u), (x + 0.012 * u, y + 0.025 * u), 0.066 * u, 0.055 * u, _SKIN
        )
        self._limb(
            (x - 0.042 * u, y - 0.058 * u), (x + 0.052 * u, y - 0.058 * u), 0.026 * u, 0.018 * u, _HAIR
        )
        opened = 0.002 if seconds % 1.7 < 0.12 else 0.009  # a blink now and then
        for eye in (-0.014, 0.042):
            self._limb(
                (x + eye * u, y - opened * u),
                (x + eye * u, y + opened * u),
                0.009 * u,
                0.009 * u,
                (244, 240, 236),
            )
            self._limb(
                (x + (eye + 0.003) * u, y),
                (x + (eye + 0.003) * u, y + 0.004 * u),
                0.0065 * u,
                0.0065 * u,
                _EYES,
            )
            brow = y - 0.028 * u
            self._limb(
                (x + (eye - 0.011) * u, brow), (x + (eye + 0.011) * u, brow), 0.0035 * u, 0.0035 * u, _HAIR
            )
        self._limb(
            (x + 0.018 * u, y + 0.014 * u), (x + 0.018 * u, y + 0.022 * u), 0.007 * u, 0.009 * u, _SKIN
        )
        smile = y + 0.047 * u
        self._limb((x - 0.004 * u, smile), (x + 0.034 * u, smile), 0.004 * u, 0.004 * u, (168, 74, 70))

    def _arm(self, shoulder: Point, upper: float, lower: float, *, shade: float) -> None:
        u = self._unit
        elbow = _towards(shoulder, upper, 0.12 * u)
        hand = _towards(elbow, lower, 0.11 * u)
        self._limb(shoulder, elbow, 0.034 * u, 0.029 * u, _SHIRT, shade)
        self._limb(elbow, hand, 0.025 * u, 0.02 * u, _SKIN, shade)
        self._limb(hand, _towards(hand, lower, 0.02 * u), 0.026 * u, 0.022 * u, _SKIN, shade)

    def _leg(self, hip: Point, angle: float, *, shade: float) -> None:
        u = self._unit
        knee = _towards(hip, angle + 0.12, 0.15 * u)
        heel = _towards(knee, angle - 0.18 - 0.3 * max(0.0, -angle), 0.135 * u)
        self._limb(hip, knee, 0.05 * u, 0.04 * u, _TROUSERS, shade)
        self._limb(knee, heel, 0.04 * u, 0.028 * u, _TROUSERS, shade)
        self._limb(heel, (heel[0] + 0.05 * u, heel[1] + 0.008 * u), 0.023 * u, 0.018 * u, _SHOES, shade)

    def _shadow(self, x: float, ground: float) -> None:
        cover = np.zeros(self._picture.shape[:2], np.float32)
        axes = (round(0.16 * self._unit), round(0.022 * self._unit))
        cv2.ellipse(cover, (round(x + 0.05 * self._unit), round(ground)), axes, 0, 0, 360, 0.55, -1)
        self._picture *= (
            1 - np.asarray(cv2.GaussianBlur(cover, (0, 0), 0.012 * self._unit), np.float32)[..., None]
        )

    def _limb(
        self,
        a: Point,
        b: Point,
        radius_a: float,
        radius_b: float,
        colour: tuple[int, int, int],
        shade: float = 1.0,
    ) -> None:
        """Paint a round cone from `a` to `b`, lit from the upper left."""
        reach = max(radius_a, radius_b) + 2
        height, width = self._picture.shape[:2]
        left, right = max(0, int(min(a[0], b[0]) - reach)), min(width, int(max(a[0], b[0]) + reach) + 1)
        top, bottom = max(0, int(min(a[1], b[1]) - reach)), min(height, int(max(a[1], b[1]) + reach) + 1)
        if left >= right or top >= bottom:
            return
        x = np.arange(left, right, dtype=np.float32)[None] - np.float32(a[0])
        y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(a[1])
        along_x, along_y = b[0] - a[0], b[1] - a[1]
        place = np.clip((x * along_x + y * along_y) / max(along_x**2 + along_y**2, 1e-6), 0, 1)
        off_x, off_y = x - place * along_x, y - place * along_y
        radius = radius_a + place * (radius_b - radius_a)
        distance = np.sqrt(off_x**2 + off_y**2)
        depth = np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, 1))
        lit = (off_x * _LIGHT[0] + off_y * _LIGHT[1]) / radius + depth * _LIGHT[2]
        light = shade * (0.50 + 0.62 * np.clip(lit, 0, 1))
        cover = np.clip(radius - distance + 0.5, 0, 1)[..., None]
        region = self._picture[top:bottom, left:right]
        region += cover * (_rgb(*colour) * light[..., None] - region)


def draw_scene(folder: Path) -> Path:
    """Write the scene to `folder` as `scene.mp4`, and give that path.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clip = folder / "scene.mp4"
        temporary = folder / ".scene.partial.mp4"
        try:
            write_scene(Scene(), temporary)
            temporary.replace(clip)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write the scene to {folder}: {error.strerror}; name another folder"
        ) from error
    return clip


def write_scene(scene: Scene, path: Path) -> None:
    """Encode the scene with its sound: H.264 and AAC."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=scene.rate, options={"crf": "18", "preset": "veryfast"})
        video.width, video.height, video.pix_fmt = scene.width, scene.height, "yuv420p"
        audio = container.add_stream("aac", rate=_SAMPLE_RATE, layout="mono")
        backdrop = scene.backdrop()
        for index in range(scene.frames):
            picture = av.VideoFrame.from_ndarray(scene.frame(index, backdrop), format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, scene.rate)
            container.mux(video.encode(picture))
        container.mux(video.encode())
        tone = av.AudioFrame.from_ndarray(scene.sound(), format="fltp", layout="mono")
        tone.sample_rate, tone.pts = _SAMPLE_RATE, 0
        container.mux(audio.encode(tone))
        container.mux(audio.encode())


def _towards(start: Point, angle: float, length: float) -> Point:
    """Go `length` pixels from `start`; angle 0 is straight down, π/2 is to the right. Radians."""
    return start[0] + length * sin(angle), start[1] + length * cos(angle)


def _rgb(red: int, green: int, blue: int) -> Image:
    return np.array([red, green, blue], np.float32)


def _texture(generator: np.random.Generator, shape: tuple[int, int], cells: int, stretch: int = 1) -> Image:
    """Soft noise: (height, width) float32 in [0, 1], with about `cells` spots down its height."""
    height, width = shape
    total = np.zeros(shape, np.float32)
    for octave in range(3):
        rows = cells << octave
        spots = generator.random((rows + 1, max(2, rows * width // height // stretch)), np.float32)
        total += np.asarray(cv2.resize(spots, (width, height), interpolation=cv2.INTER_CUBIC)) / (2 << octave)
    return np.asarray(np.clip(total / 0.875, 0, 1), np.float32)
