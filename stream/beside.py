"""A stylizer whose frames are prepared and decoded on threads of their own, beside the rolling window.

The window's network is many small operations, which a second core speeds up by two thirds. All cores are busy
where meanwhile the next frames' hints are embedded (with one step, their ControlNets run) and the last ones'
pictures decoded. What comes out is the same but for rounding, a few frames later.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

from toonstream.config import RenderSettings
from toonstream.engines.engine import Engine
from toonstream.export.checkpoints import Model
from toonstream.stream.ahead import runs_early
from toonstream.stream.clock import Stopwatch
from toonstream.stream.conditions import Conditioned
from toonstream.stream.stylizer import Decode, Prepared, Stylizer, Toon, load_stylizer

__all__ = ["Beside", "load_beside"]


class Beside:
    """Takes conditioned frames in order and gives toon frames in order, as a `Stylizer` does.

    Args:
        stylizer: whose frames they are; each of its networks is run by one thread at a time.
        ahead: frames that are prepared before the first of them enters the window; what waits for its picture
            is bounded likewise. Until there is a first picture to wait for, no frame is held back.
    """

    def __init__(self, stylizer: Stylizer, *, ahead: int) -> None:
        self._stylizer = stylizer
        self._ahead = ahead
        self._begins = True
        self._preparing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="toonstream-prepare")
        self._pictures = ThreadPoolExecutor(max_workers=1, thread_name_prefix="toonstream-pictures")
        self._coming: deque[Future[Prepared]] = deque()
        self._going: deque[Future[Toon]] = deque()

    def push(self, conditioned: Conditioned) -> Iterator[Toon]:
        """Take the next frame; give the ones that are ready."""
        self._coming.append(self._preparing.submit(self._stylizer.prepare, conditioned))
        if self._begins or len(self._coming) > self._ahead:
            final = self._stylizer.enter(self._coming.popleft().result())
            self._begins = self._begins and not final
            self._decode(final)
        while self._going and (self._going[0].done() or len(self._going) > self._ahead):
            yield self._going.popleft().result()

    def finish(self) -> Iterator[Toon]:
        """The stream has ended: give the rest."""
        while self._coming:
            self._decode(self._stylizer.enter(self._coming.popleft().result()))
        self._decode(self._stylizer.end())
        while self._going:
            yield self._going.popleft().result()

    def settle(self) -> None:
        """Wait until nothing runs on its threads."""
        wait(self._coming)
        wait(self._going)

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
    looks = settings.reference is not None  # at a picture, whose ControlNets are run within the window
    beside = engine.name == "openvino" and not looks
    early = beside and runs_early(settings)
    stylizer = load_stylizer(model, settings, engine=engine, stopwatch=stopwatch, size=size, early=early)
    return Beside(stylizer, ahead=settings.stride) if beside else stylizer
