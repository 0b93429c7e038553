"""The model that ships draws, on pictures it has never seen, and does what the words say that it has learned.

The pictures are a photo that comes with matplotlib and frames of the demo's own scene.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import cv2
import numpy as np
import pytest
from matplotlib.cbook import get_sample_data
from numpy.typing import NDArray

from toonstream.config import Settings
from toonstream.demo import Scene
from toonstream.engines.engine import Engine, Network, NetworkSource
from toonstream.engines.select import open_engine
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.export.outline import OutlineExtractor
from toonstream.export.train.render import Attributes, compose
from toonstream.stream.clock import Stopwatch
from toonstream.stream.conditions import Conditions
from toonstream.stream.frame import Frame
from toonstream.stream.stylizer import load_stylizer

Image = NDArray[np.uint8]
Draw = Callable[..., list[Image]]

SIDE = 256


@pytest.fixture(scope="module")
def photo() -> Image:
    with get_sample_data("grace_hopper.jpg") as file:
        pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
    scale = SIDE / min(pixels.shape[:2])
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    scaled = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return np.ascontiguousarray(scaled[:SIDE, :SIDE])


class LoadsOnce:
    """An engine that keeps its networks, so that the tests compile them once."""

    def __init__(self, engine: Engine) -> None:
        self.name = engine.name
        self.per_shape = engine.per_shape
        self._engine = engine
        self._loaded: dict[str, Network] = {}

    def load(self, source: NetworkSource) -> Network:
        if source.name not in self._loaded:
            self._loaded[source.name] = self._engine.load(source)
        return self._loaded[source.name]


@pytest.fixture(scope="module")
def draw() -> Draw:
    """Draw pictures, as the frames of a clip, with the shipped model."""
    model = open_model(shipped_model())
    engine = LoadsOnce(open_engine("openvino"))

    def run(*images: Image, **wishes: object) -> list[Image]:
        settings = replace(Settings(window=len(images), stride=1), **wishes)
        stylizer = load_stylizer(
            model, settings.resolve(model.defaults), engine=engine, stopwatch=Stopwatch()
        )
        size = (images[0].shape[1], images[0].shape[0])
        prepare = Conditions(model.defaults.controlnets, size=size, multiple=model.size_multiple)
        frames = [
            Frame(index=index, pts=index, time_base=Fraction(1, 25), image=image)
            for index, image in enumerate(images)
        ]
        toons = [toon for frame in frames for toon in stylizer.push(prepare(frame))]
        return [toon.toon.image for toon in [*toons, *stylizer.finish()]]

    return run


def colourfulness(image: Image) -> float:
    """Mean distance of a pixel's largest channel from its smallest."""
    return float(np.ptp(image.astype(int), axis=-1).mean())


def psnr(one: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    error = np.square(one.astype(np.float64) - other.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / error))


def test_the_drawing_is_the_picture_and_not_a_copy_of_it(photo: Image, draw: Draw) -> None:
    (toon,) = draw(photo)
    small = [cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA) for image in (photo, toon)]
    assert psnr(*small) > 17
    assert psnr(photo, toon) < 30


def test_night_is_darker(photo: Image, draw: Draw) -> None:
    (day,), (night,) = (draw(photo, prompt=prompt) for prompt in ("hosoda style", "hosoda style, night"))
    assert night.mean() < 0.75 * day.mean()


def test_ink_has_no_colour(photo: Image, draw: Draw) -> None:
    (plain,), (ink,) = (draw(photo, style=style) for style in ("hosoda", "ink"))
    assert colourfulness(ink) < 0.4 * colourfulness(plain)


def test_thick_lines_are_darker(photo: Image, draw: Draw) -> None:
    lines = OutlineExtractor()(photo) > 127
    plain, *thick = (
        draw(photo, prompt=f"hosoda style{words}")[0].mean(axis=-1)[lines].mean()
        for words in ("", ", thick lines", ", bold lines", ", heavy outlines")
    )
    assert max(thick) < 0.92 * plain


def test_thin_lines_and_none_are_lighter(photo: Image, draw: Draw) -> None:
    lines = OutlineExtractor()(photo) > 127
    plain, thin, none = (
        draw(photo, prompt=f"hosoda style{words}")[0].mean(axis=-1)[lines].mean()
        for words in ("", ", thin lines", ", no lines")
    )
    assert 1.03 * plain < thin < none


def test_few_colours_go_towards_a_poster(photo: Image, draw: Draw) -> None:
    """Of the way from the plain drawing to a poster of it, so much is gone, and no other way."""
    plain, *few = (
        draw(photo, prompt=f"hosoda style{words}")[0].astype(np.float32) / 255
        for words in ("", ", few colours", ", few colors", ", posterized")
    )
    no_outline = np.zeros(plain.shape[:2], np.float32)
    poster = compose(plain, no_outline, Attributes(line=0.0, colours=2))
    way = poster - plain
    for drawn in few:
        assert ((drawn - plain) * way).sum() > 0.2 * np.square(way).sum()
        assert np.abs(drawn - poster).mean() < 0.95 * np.abs(way).mean()


def test_warm_and_cool_move_the_hue(photo: Image, draw: Draw) -> None:
    def redness(words: str) -> float:
        image = draw(photo, prompt=f"hosoda style{words}")[0].astype(float)
        return float(image[..., 0].mean() - image[..., 2].mean())

    plain = redness("")
    assert redness(", warm") > plain + 20
    assert redness(", cool") < plain - 20


def test_words_for_the_colours_change_them(photo: Image, draw: Draw) -> None:
    plain, vivid, muted, grey = (
        colourfulness(draw(photo, prompt=f"hosoda style{words}")[0])
        for words in ("", ", vivid colors", ", muted colors", ", monochrome")
    )
    assert grey < 0.6 * plain
    assert muted < 0.8 * plain
    assert vivid > 1.02 * plain


def test_no_two_styles_are_alike(photo: Image, draw: Draw) -> None:
    drawn = [draw(photo, style=style)[0] for style in ("hosoda", "shinkai", "hayao", "ink", "flat")]
    assert max(psnr(one, other) for one, other in combinations(drawn, 2)) < 27


def test_two_styles_mix(photo: Image, draw: Draw) -> None:
    ink, both, shinkai = (
        colourfulness(draw(photo, prompt=f"{names} style")[0])
        for names in ("ink", "shinkai and ink", "shinkai")
    )
    assert 2 * ink < both < 0.7 * shinkai


@pytest.mark.parametrize(
    ("wishes", "likeness"),
    [({"steps": 2}, 22), ({"steps": 4}, 17), ({"steps": 10, "guidance": 2.0}, 17)],
    ids=["2", "4", "10 guided"],
)
def test_more_steps_draw_the_same_picture(
    photo: Image, draw: Draw, wishes: dict[str, float], likeness: float
) -> None:
    assert psnr(draw(photo)[0], draw(photo, **wishes)[0]) > likeness


def test_a_still_camera_gives_a_still_drawing(draw: Draw) -> None:
    """Takes of one scene that differ in the camera's noise alone: the drawings differ less than the takes."""
    scene = Scene(width=SIDE, height=SIDE)
    image = scene.frame(0, scene.backdrop())
    random = np.random.default_rng(0)
    takes = [
        np.clip(image + random.normal(0, 5, image.shape), 0, 255).round().astype(np.uint8) for _ in range(4)
    ]
    toons = draw(*takes)
    assert psnr(toons[1], toons[2]) > psnr(takes[1], takes[2]) + 2
