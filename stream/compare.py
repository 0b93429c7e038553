"""One clip in several modes, next to one another: the composition root of `toonstream compare`.

All modes draw in lockstep: every frame goes into each of them, some frames at a time, and a picture is put
together once the mode with the longest look-ahead has drawn its part. Until then the others' toons wait; so
memory is bounded by that look-ahead, whatever the length of the clip.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path

from toonstream.config import MAX_SIDE, RenderSettings, Settings
from toonstream.engines.background import SwitchableEngine
from toonstream.engines.engine import Engine, EngineAround, Network, NetworkSource
from toonstream.engines.tensorrt.engine import TensorRtEngine
from toonstream.errors import SettingError, ToonstreamError
from toonstream.export.checkpoints import Model
from toonstream.stream.ahead import AT_ONCE
from toonstream.stream.beside import Beside, load_beside
from toonstream.stream.clock import Clock, Stopwatch, monotonic
from toonstream.stream.compose import Grid
from toonstream.stream.conditions import Conditioned
from toonstream.stream.frame import Frame
from toonstream.stream.opening import Opened, open_for, prepare_frames
from toonstream.stream.pipeline import Progress, Stylizing, run
from toonstream.stream.render import Rendered, pixel_aspect
from toonstream.stream.serving import open_stream_engine
from toonstream.stream.sinks.file import FileSink
from toonstream.stream.sizes import rendered_size
from toonstream.stream.sources.file import FileSource
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.measure import Figures, Meter, Survey
from toonstream.stream.temporal.stages import in_stages

__all__ = ["Compared", "LoadedOnce", "Lockstep", "ModeFigures", "compare_clip"]

SOURCE = "source"
"""What the first picture is called, and what it is measured as."""

_REFRESH = 0.5  # seconds of the clip after which figures on the picture are brought up to date
_TURN = 12  # frames that a mode draws at a time: what it begins in one turn ends in the next
_KNOWN = 2  # index of the first frame at which there are all figures


@dataclass(frozen=True, kw_only=True)
class ModeFigures:
    """What came of one mode.

    Attributes:
        figures: how steady, sharp and true the toon is.
        fps: frames a second, see `Lockstep.fps`; 0 for the source.
        network_seconds: of it, inside networks.
    """

    figures: Figures
    fps: float
    network_seconds: float

    def words(self) -> str:
        """The figures that belong on the picture, in one line of ASCII."""
        parts = (
            _shown("warped {:.2f}x", self.figures.ratio),
            _shown("flicker {:.2f}", self.figures.flicker),
            _shown("{:.1f} fps", self.fps or None),
        )
        return "  ".join(filter(None, parts)) or "..."

    def facts(self) -> dict[str, object]:
        """The figures, ready for JSON."""
        facts = {
            **asdict(self.figures),
            "ratio": self.figures.ratio,
            "fps": self.fps,
            "network_seconds": self.network_seconds,
        }
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in facts.items()}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What became of a comparison.

    Attributes:
        rendered: of the whole.
        modes: mode → what came of it; `source` is the source itself.
    """

    rendered: Rendered
    modes: Mapping[str, ModeFigures]

    def facts(self) -> dict[str, object]:
        """The figures, ready for JSON."""
        return {
            **self.rendered.facts(),
            "modes": {name: mode.facts() for name, mode in self.modes.items()},
        }

    def summary(self) -> str:
        """The figures as a table."""
        width = max(map(len, self.modes))
        lines = [f"{'':{width}}  warped  flicker  sharpness  outline  colour     fps"]
        for name, mode in self.modes.items():
            figures = mode.figures
            cells = (
                _shown("{:.2f}x", figures.ratio).rjust(6),
                _shown("{:.2f}", figures.flicker).rjust(7),
                _shown("{:.2f}", figures.sharpness).rjust(9),
                _shown("{:.2f}", figures.outline).rjust(7),
                _shown("{:.1f}", figures.colour).rjust(6),
                _shown("{:.1f}", mode.fps or None).rjust(6),
            )
            lines.append("  ".join((name.ljust(width), *cells)))
        return "\n".join([self.rendered.summary(), *lines])


class Lockstep:
    """Several modes that draw every frame; gives the toons of one frame together, in the modes' order.

    Args:
        stylizers: of the modes, fresh, by name.
        clock: gives the time.
        turn: frames that a mode draws until it is the next one's turn.
        settle: by mode, waits until it has done what it does on other threads: modes do not run beside one
            another.
    """

    def __init__(
        self,
        stylizers: Mapping[str, Stylizing],
        clock: Clock = monotonic,
        *,
        turn: int = 1,
        settle: Mapping[str, Callable[[], None]] | None = None,
    ) -> None:
        self._stylizers = stylizers
        self._clock = clock
        self._turn = turn
        self._settle = settle or {}
        self._coming: list[Conditioned] = []
        self._waiting: dict[str, deque[Toon]] = {name: deque() for name in stylizers}
        self._busy = dict.fromkeys(stylizers, 0.0)
        self._drawn = dict.fromkeys(stylizers, 0)
        self._warm: dict[str, tuple[int, float]] = {}

    def push(self, conditioned: Conditioned) -> Iterator[tuple[Toon, ...]]:
        """Take the next frame; give the frames that all modes have drawn now."""
        self._coming.append(conditioned)
        if len(self._coming) == self._turn:
            yield from self._take_turns()

    def finish(self) -> Iterator[tuple[Toon, ...]]:
        """The stream has ended: give the rest."""
        yield from self._take_turns()
        for name, stylizer in self._stylizers.items():
            self._take(name, stylizer.finish)
        yield from self._together()

    def fps(self, name: str) -> float:
        """Frames a second while this mode drew, the others waiting; 0 before there is one.

        What came with the first toons does not count, as that is when engines compile; unless that is all.
        """
        drawn, busy = self._warm.get(name, (0, 0.0))
        if self._drawn[name] == drawn:
            drawn, busy = 0, 0.0
        seconds = self._busy[name] - busy
        return (self._drawn[name] - drawn) / seconds if seconds > 0.0 else 0.0

    def _take_turns(self) -> Iterator[tuple[Toon, ...]]:
        frames, self._coming = self._coming, []
        for name, stylizer in self._stylizers.items():
            self._take(name, partial(_pushed, stylizer, frames))
        yield from self._together()

    def _take(self, name: str, toons: Callable[[], Iterable[Toon]]) -> None:
        begin = self._clock()
        given = list(toons())
        if name in self._settle:
            self._settle[name]()
        self._busy[name] += self._clock() - begin
        self._drawn[name] += len(given)
        self._waiting[name].extend(given)
        if given:
            self._warm.setdefault(name, (self._drawn[name], self._busy[name]))

    def _together(self) -> Iterator[tuple[Toon, ...]]:
        while all(self._waiting.values()):
            yield tuple(toons.popleft() for toons in self._waiting.values())


def compare_clip(
    clip: Path,
    output: Path,
    modes: Mapping[str, Settings],
    *,
    started: Callable[[Mapping[str, object]], None] = lambda facts: None,
    observe: Callable[[Progress], None] = lambda progress: None,
    stopped: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
) -> Compared:
    """Render a clip in several modes into one picture, with their figures on it.

    Args:
        clip: what to read.
        output: what to write; an existing file is replaced only by a whole result, or by what was drawn until
            a stop.
        modes: what to call each mode → how it draws. What concerns the clip, the model and the engine is the
            same in all of them.
        started: told once, when clip and model are open, what will be done.
        observe: told how far it is, see `pipeline.run`.
        stopped: asked whether to end early, see `pipeline.run`.
        say: told what is done before that, where it takes a while.

    Raises:
        InputError: the clip or the settings cannot be used.
        OutputError: the result cannot be written.
        ModelError: the model cannot be used.
        EngineError: the engine cannot be used.
    """
    common = next(iter(modes.values()))
    opened = open_for(list(modes.values()), say=say)
    model, choices = opened.model, dict(zip(modes, opened.choices, strict=True))
    with FileSource(clip, start=common.start, duration=common.duration) as source:
        info = source.info
        size = rendered_size(common, model.defaults, info)
        board = _Board(model, list(modes), size=size, rate=float(info.average_rate))
        width, height = board.size
        with FileSink(
            output,
            source=source,
            width=width,
            height=height,
            sample_aspect_ratio=pixel_aspect(info, size),
        ) as sink:
            engines = _engines(opened, size=size, say=say)
            stylizers = {
                name: load_beside(model, chosen, engine=engine, stopwatch=board.inside[name], size=size)
                for (name, chosen), engine in zip(choices.items(), engines, strict=True)
            }
            started(
                {
                    "clip": str(clip),
                    "output": str(output),
                    "width": width,
                    "height": height,
                    "frames": info.frame_count,
                    "rate": round(float(info.average_rate), 3),
                    "model": model.defaults.name,
                    "engine": engines[0].name,
                    "modes": {name: _facts(chosen) for name, chosen in choices.items()},
                }
            )
            lockstep = Lockstep(
                {name: in_stages(stylizer, choices[name]) for name, stylizer in stylizers.items()},
                turn=_TURN,
                settle={
                    name: stylizer.settle
                    for name, stylizer in stylizers.items()
                    if isinstance(stylizer, Beside)
                },
            )
            end = 0.0

            def write(toons: tuple[Toon, ...]) -> None:
                nonlocal end
                frame = board.draw(toons, lockstep.fps)
                sink.write(frame)
                end = float((frame.pts + (frame.duration or 0)) * frame.time_base)

            try:
                progress = run(
                    source,
                    prepare_frames(model, size),
                    lockstep,
                    write,
                    stopwatch=board.stopwatch,
                    stopped=stopped,
                    observe=observe,
                )
            except ToonstreamError as error:
                sink.abort()
                if sink.partial is None:
                    raise
                raise type(error)(f"{error}; what was finished is kept as {sink.partial}") from error
            sink.close(complete=not stopped())
        figures = board.figures(lockstep.fps)
        return Compared(
            rendered=Rendered(
                output=(sink.partial or output) if progress.frames_committed else None,
                size=board.size,
                progress=progress,
                total=info.frame_count,
                clip_seconds=max(0.0, end - float(info.origin) - common.start),
                stage_seconds=board.stopwatch.seconds,
                network_seconds=sum(mode.network_seconds for mode in figures.values()),
                damage=source.damage,
                notes=sink.notes,
                stopped=stopped(),
            ),
            modes=figures,
        )


class _Board:
    """Measures the modes, and draws them with their figures.

    Attributes:
        size: (width, height) of what is drawn, in pixels.
        stopwatch: of the stages around the modes.
        inside: by mode, knows how long its networks were.
    """

    def __init__(self, model: Model, modes: Sequence[str], *, size: tuple[int, int], rate: float) -> None:
        self._grid = Grid(len(modes) + 1, size)
        self.size = self._grid.size
        if max(self.size) > MAX_SIDE:
            raise SettingError(
                f"all modes together make a picture of {self.size[0]}x{self.size[1]} pixels, and a side may "
                f"have {MAX_SIDE} at most: name fewer modes, or a smaller --size"
            )
        self.stopwatch = Stopwatch()
        self.inside = {name: Stopwatch() for name in modes}
        self._networks = tuple(model.sources)
        self._survey = Survey()
        self._meters = {name: Meter() for name in (SOURCE, *modes)}
        self._every = max(1, ceil(_REFRESH * rate))
        self._words: list[str] = []
        self._drawn = 0

    def draw(self, toons: Sequence[Toon], fps: Callable[[str], float]) -> Frame:
        """Measure and draw one frame: the source, and what each mode made of it."""
        frame = toons[0].source
        pictures = [frame.image, *(toon.toon.image for toon in toons)]
        with self.stopwatch.measure("measure"):
            sight = self._survey.push(frame.image)
            for meter, picture in zip(self._meters.values(), pictures, strict=True):
                meter.push(sight, picture)
        if self._drawn % self._every == 0 or self._drawn == _KNOWN:
            self._words = [mode.words() for mode in self.figures(fps).values()]
        self._drawn += 1
        cells = zip(pictures, self._meters, self._words, strict=True)
        return replace(frame, image=self._grid.draw(list(cells)))

    def figures(self, fps: Callable[[str], float]) -> dict[str, ModeFigures]:
        """What came of the source and of each mode so far, with the speed of each."""
        return {name: self._of(name, meter.figures, fps) for name, meter in self._meters.items()}

    def _of(self, name: str, figures: Figures, fps: Callable[[str], float]) -> ModeFigures:
        if name == SOURCE:
            return ModeFigures(figures=figures, fps=0.0, network_seconds=0.0)
        inside = self.inside[name].seconds
        return ModeFigures(
            figures=figures,
            fps=fps(name),
            network_seconds=sum(inside.get(network, 0.0) for network in self._networks),
        )


def _pushed(stylizer: Stylizing, frames: Iterable[Conditioned]) -> Iterator[Toon]:
    for frame in frames:
        yield from stylizer.push(frame)


class LoadedOnce(EngineAround):
    """An engine that gives a network out again to whoever asks next: networks keep nothing between calls."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._loaded: list[tuple[NetworkSource, Network]] = []

    def load(self, source: NetworkSource) -> Network:
        """Load, the first time."""
        for loaded, network in self._loaded:
            if loaded is source:
                return network
        network = self._engine.load(source)
        self._loaded.append((source, network))
        return network


def _engines(opened: Opened, *, size: tuple[int, int], say: Callable[[str], None]) -> list[Engine]:
    """One engine for all modes; or one each where engines are built for the shapes of a mode."""

    def engine_for(chosen: RenderSettings) -> Engine:
        return open_stream_engine(opened.engine, opened.model, chosen, size=size, at_once=AT_ONCE, say=say)

    first, *others = opened.choices
    engine = engine_for(first)
    if isinstance(engine, SwitchableEngine | TensorRtEngine):
        return [engine, *map(engine_for, others)]
    return [LoadedOnce(engine)] * len(opened.choices)


def _facts(settings: RenderSettings) -> dict[str, object]:
    """The settings, ready for JSON."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()
    }


def _shown(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)
