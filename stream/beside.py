"""A stylizer whose frames are prepared and decoded on threads of their own, beside the rolling window.

The window's networks are many small operations, which a second core speeds up by half. Where the next frames'
hints are embedded and the last ones' pictures decoded meanwhile, all cores are busy. What comes out is the
same, a few frames later.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

from toonstream.config import RenderSettings
from toonstream.engines.engine import Engine, Network
from toonstream.export.checkpoints import Model
from toonstream.stream.clock import Stopwatch, TimedNetwork
from toonstream.stream.conditions import Conditioned
from toonstream.stream.stylizer import Decode, Stylizer, Toon, load_stylizer

__all__ = ["Beside", "load_beside"]


class Beside:
    """Takes conditioned frames in order and gives toon frames in order, as a `Stylizer` does.

    Args:
        stylizer: that takes embeddings for hints.
        embedders: the networks that make them, by the hint's name.
        ahead: frames that are embedded before the stylizer gets the first of them; what waits for its picture
            is bounded likewise. Until there is a first picture to wait for, no frame is held back.
    """

    def __init__(self, stylizer: Stylizer, embedders: Mapping[str, Network], *, ahead: int) -> None:
        self._stylizer = stylizer
        self._embedders = embedders
        self._ahead = ahead
        self._begins = True
        self._hints = ThreadPoolExecutor(max_workers=1, thread_name_prefix="toonstream-hints")
        self._pictures = ThreadPoolExecutor(max_workers=1, thread_name_prefix="toonstream-pictures")
        self._coming: deque[Future[Conditioned]] = deque()
        self._going: deque[Future[Toon]] = deque()

    def push(self, conditioned: Conditioned) -> Iterator[Toon]:
        """Take the next frame; give the ones that are ready."""
        self._coming.append(self._hints.submit(self._embed, conditioned))
        if self._begins or len(self._coming) > self._ahead:
            final = self._stylizer.advance(self._coming.popleft().result())
            self._begins = self._begins and not final
            self._decode(final)
        while self._going and (self._going[0].done() or len(self._going) > self._ahead):
            yield self._going.popleft().result()

    def finish(self) -> Iterator[Toon]:
        """The stream has ended: give the rest."""
        while self._coming:
            self._decode(self._stylizer.advance(self._coming.popleft().result()))
        self._decode(self._stylizer.end())
        while self._going:
            yield self._going.popleft().result()

    def settle(self) -> None:
        """Wait until nothing runs on its threads."""
        wait(self._coming)
        wait(self._going)

    def _embed(self, conditioned: Conditioned) -> Conditioned:
        hints = {
            name: embedder({"hint": conditioned.hints[name].unsqueeze(0)})["embedding"][0]
            for name, embedder in self._embedders.items()
        }
        return replace(conditioned, hints=hints)

    def _decode(self, final: Iterable[Decode]) -> None:
        self._going += [self._pictures.submit(decode) for decode in final]


def load_beside(
    model: Model,
    settings: RenderSettings,
    *,
    engine: Engine,
    stopwatch: Stopwatch,
    size: tuple[int, int] | None = None,
) -> Beside | Stylizer:
    """Load a model's networks and read the prompt, as `load_stylizer` does, whose stylizer it may give, too.

    Only OpenVINO's networks run beside one another: a GPU has its own ways of being busy, and torch and ONNX
    Runtime share their threads.
    """
    looks = settings.reference is not None  # at a picture, whose hints the stylizer embeds itself
    if engine.name != "openvino" or model.annotators or looks:
        return load_stylizer(model, settings, engine=engine, stopwatch=stopwatch, size=size)
    embedders = {name: engine.load(model.sources[f"hint_{name}"]) for name in model.defaults.controlnets}
    stylizer = load_stylizer(
        model,
        settings,
        engine=engine,
        stopwatch=stopwatch,
        size=size,
        embedders={f"hint_{name}": embedder for name, embedder in embedders.items()},
    )
    timed = {name: TimedNetwork(embedder, f"hint_{name}", stopwatch) for name, embedder in embedders.items()}
    return Beside(stylizer, timed, ahead=settings.stride)
