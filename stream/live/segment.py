"""One plan's stream over the shared networks: conditions, rolling window, decoder."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from toonstream.engines.engine import Network
from toonstream.export.checkpoints import Model
from toonstream.stream.clock import Clock
from toonstream.stream.conditions import Conditions
from toonstream.stream.denoise import Denoiser, DenoiseSettings
from toonstream.stream.frame import Frame
from toonstream.stream.live.settings import Plan
from toonstream.stream.live.switching import Pushed
from toonstream.stream.live.words import Words
from toonstream.stream.schedulers import make_scheduler
from toonstream.stream.stylizer import Decode, Stylizer, Toon
from toonstream.stream.temporal.attending import Attending
from toonstream.stream.temporal.fusion import make_fusion
from toonstream.stream.tiling import Cost, Tiled, available_memory

__all__ = ["StylizerSegment"]


class StylizerSegment:
    """A stream under one plan. Keeps the frames in flight, and nothing after them.

    At its end the last frame is repeated until a window is full, and what comes of the repetitions is left
    out: a truncated window would be a shape of its own, for which an engine may have to be built first.

    Args:
        model: says how the networks belong together.
        networks: as the session sees them.
        plan: what is run.
        words: of the first frame.
        size: (width, height) in pixels that toons are delivered at.
        boundary: called between two windows, where networks may be replaced.
        clock: gives the time.
        conditions_took: told, for every frame, how many seconds its conditions took.
        gives_up: asked of every frame that is final whether it need not be decoded any more; it is given out
            with the picture of the one before.
        attending: what frames attend to besides their window; `networks` have a UNet that can.
    """

    def __init__(
        self,
        model: Model,
        networks: Mapping[str, Network],
        plan: Plan,
        words: Words,
        *,
        size: tuple[int, int],
        boundary: Callable[[], None],
        clock: Clock,
        conditions_took: Callable[[float], None],
        gives_up: Callable[[Frame], bool],
        attending: Attending | None = None,
    ) -> None:
        guided = plan.guidance != 1.0
        self._plan = plan
        self._size = size
        self._clock = clock
        self._conditions_took = conditions_took
        self._gives_up = gives_up
        self._image: NDArray[np.uint8] = np.zeros((size[1], size[0], 3), np.uint8)  # of the latest toon
        scales = model.defaults.controlnets
        annotated = [name for name in scales if name in model.annotators]
        self._conditions = Conditions(
            scales, size=plan.size, multiple=model.size_multiple, annotated=annotated
        )
        scheduler = make_scheduler(model.scheduler_config, kind=model.defaults.scheduler, steps=plan.steps)
        memory = None
        if attending is not None:
            memory = attending.memory(
                model,
                networks=networks,
                scheduler=scheduler,
                text=words.sides(plan.guidance),
                guidance=plan.guidance,
                seed=words.seed,
            )
        denoiser = Denoiser(
            networks,
            scheduler=scheduler,
            text=words.text,
            negative_text=words.negative if guided else None,
            settings=DenoiseSettings(
                window=plan.window,
                stride=plan.stride,
                mode=plan.mode,
                shared_noise=plan.shared_noise,
                steps=plan.steps,
                guidance=plan.guidance,
                controlnet_scales=scales,
            ),
            latent_channels=model.latent_channels,
            at_boundary=boundary,
            fusion=make_fusion(plan.fusion, steps=plan.steps, multiple=model.size_multiple),
            reference=memory,
        )
        self._stylizer = Stylizer(
            denoiser,
            Tiled(
                networks["vae_decoder"],
                cost=Cost.of(model.vae_config, itemsize=2 if words.text.is_cuda else 4),
                memory=available_memory(words.text.device),
            ),
            annotators={name: networks[f"annotator_{name}"] for name in annotated},
            scale=model.latent_scale,
            shift=model.latent_shift,
        )
        self._sources: deque[Frame] = deque()
        self._pushed = 0
        self._latest: Pushed | None = None

    def push(self, pushed: Pushed) -> Iterator[Toon]:
        """Take the next frame; give the ones that became final, with their source frames as they came."""
        self._sources.append(pushed.frame)
        self._latest = pushed
        return self._whole(self._into(pushed))

    def finish(self) -> Iterator[Toon]:
        """No more come: give the rest."""
        plan = self._plan
        while self._sources and not (
            self._pushed >= plan.window and (self._pushed - plan.window) % plan.stride == 0
        ):
            assert self._latest is not None
            yield from self._whole(self._into(self._latest))
        yield from self._whole(self._stylizer.end())

    def _into(self, pushed: Pushed) -> list[Decode]:
        began = self._clock()
        conditioned = self._conditions(pushed.frame)
        self._conditions_took(self._clock() - began)
        self._pushed += 1
        words = pushed.words
        return self._stylizer.advance(
            conditioned, text=words.sides(self._plan.guidance), seed=words.seed, key=pushed.frame.index
        )

    def _whole(self, decodes: Iterable[Decode]) -> Iterator[Toon]:
        """Toons at the size that is delivered; not those of repetitions, which are not even decoded."""
        for decode in decodes:
            if not self._sources:
                return
            source = self._sources.popleft()
            if not self._gives_up(source):
                self._image = self._sized(decode().toon.image)
            yield Toon(source=source, toon=replace(source, image=self._image))

    def _sized(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        if (width, height) == self._size:
            return image
        return np.asarray(cv2.resize(image, self._size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
