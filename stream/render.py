"""A clip into a toon clip: the composition root of `toonstream CLIP`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

from toonstream.config import Settings
from toonstream.errors import OutputError, ToonstreamError
from toonstream.stream.ahead import AT_ONCE, HeadStart
from toonstream.stream.beside import load_beside
from toonstream.stream.clock import Stopwatch
from toonstream.stream.compose import ContactSheet, side_by_side
from toonstream.stream.frame import Frame
from toonstream.stream.opening import open_for, prepare_frames
from toonstream.stream.pipeline import Progress, run
from toonstream.stream.serving import open_stream_engine
from toonstream.stream.sinks.file import FileSink
from toonstream.stream.sinks.place import reported
from toonstream.stream.sizes import rendered_size
from toonstream.stream.sources.file import Damage, FileSource, SourceInfo
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.stages import in_stages

__all__ = ["Rendered", "pixel_aspect", "render_clip"]

_NEGLIGIBLE_STRETCH = Fraction(1, 50)


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """What became of a clip.

    Attributes:
        output: the file written, or None where a stop came before the first frame.
        size: (width, height) of it in pixels.
        progress: how far it came.
        total: how many frames were expected, or None where the clip does not say.
        clip_seconds: how much of the clip is in the output, in the clip's own time.
        stage_seconds: stage or network → seconds it was busy.
        network_seconds: the part of them spent inside networks.
        damage: what was wrong with the clip.
        notes: what of the clip could not be carried over as it is, one line each.
        stopped: the run was asked to stop before the end.
    """

    output: Path | None
    size: tuple[int, int]
    progress: Progress
    total: int | None
    clip_seconds: float
    stage_seconds: Mapping[str, float]
    network_seconds: float
    damage: Damage
    notes: tuple[str, ...]
    stopped: bool

    def facts(self) -> dict[str, object]:
        """The figures, ready for JSON."""
        return {
            "output": None if self.output is None else str(self.output),
            "width": self.size[0],
            "height": self.size[1],
            "frames_in": self.progress.frames_in,
            "frames_committed": self.progress.frames_committed,
            "frames": self.total,
            "clip_seconds": round(self.clip_seconds, 3),
            "seconds": round(self.progress.seconds, 3),
            "first_frame_seconds": self.progress.first_seconds,
            "fps": round(self.progress.fps, 3),
            "network_seconds": round(self.network_seconds, 3),
            "stage_seconds": {name: round(seconds, 3) for name, seconds in self.stage_seconds.items()},
            "damage": asdict(self.damage),
            "notes": self.notes,
            "stopped": self.stopped,
        }

    def summary(self) -> str:
        """The figures in one line."""
        frames = self.progress.frames_committed
        if self.output is None:
            return "stopped before the first frame: nothing is written"
        if self.stopped:
            whole = f" of about {self.total}" if self.total is not None else ""
            return f"stopped: {self.output} has {frames}{whole} frames, {self.clip_seconds:.2f} s"
        return (
            f"{self.output}: {frames} frames, {self.size[0]}x{self.size[1]}, {self.clip_seconds:.2f} s "
            f"of clip in {self.progress.seconds:.1f} s ({self.progress.fps:.1f} fps)"
        )


def render_clip(
    clip: Path,
    output: Path,
    settings: Settings,
    *,
    begun: HeadStart | None = None,
    started: Callable[[Mapping[str, object]], None] = lambda facts: None,
    observe: Callable[[Progress], None] = lambda progress: None,
    stopped: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
) -> Rendered:
    """Render one clip from file to file.

    Args:
        clip: what to read.
        output: what to write; an existing file is replaced only by a whole result, or by what was committed
            until a stop.
        settings: what the user asks for.
        begun: what `ahead.begin` gave for this clip and these settings.
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
    _check_contact_sheet(settings.contact_sheet, keep=(clip, settings.reference))
    opened = open_for([settings], say=say)
    model, choices = opened.model, opened.choices[0]
    stopwatch = Stopwatch()
    with FileSource(clip, start=settings.start, duration=settings.duration) as source, ExitStack() as stack:
        info = source.info
        size = rendered_size(settings, model.defaults, info)
        width, height = (2 * size[0], size[1]) if settings.side_by_side else size
        sink = stack.enter_context(
            FileSink(
                output,
                source=source,
                width=width,
                height=height,
                sample_aspect_ratio=pixel_aspect(info, size),
            )
        )
        compiler = None if begun is None else begun.compiler
        engine = open_stream_engine(
            opened.engine, model, choices, size=size, at_once=AT_ONCE, compiler=compiler, say=say
        )
        stylizer = load_beside(
            model, choices, engine=engine, stopwatch=stopwatch, size=size if compiler is None else None
        )
        sheet = ContactSheet()
        end = 0.0
        started(
            {
                "clip": str(clip),
                "output": str(output),
                "width": width,
                "height": height,
                "frames": info.frame_count,
                "rate": round(float(info.average_rate), 3),
                "model": model.defaults.name,
                "engine": engine.name,
                **asdict(choices),
                **{name: str(path) for name in ("reference", "flow") if (path := getattr(choices, name))},
            }
        )

        def write(toon: Toon) -> None:
            nonlocal end
            sink.write(_beside_source(toon) if settings.side_by_side else toon.toon)
            if settings.contact_sheet is not None:
                sheet.add(toon.source.image, toon.toon.image)
            if begun is not None and sink.frames == 1:
                begun.keep()
            end = float((toon.toon.pts + (toon.toon.duration or 0)) * toon.toon.time_base)

        try:
            progress = run(
                source,
                prepare_frames(model, size),
                in_stages(stylizer, choices),
                write,
                stopwatch=stopwatch,
                stopped=stopped,
                observe=observe,
            )
        except ToonstreamError as error:
            sink.abort()
            if sink.partial is None:
                raise
            raise type(error)(f"{error}; what was finished is kept as {sink.partial}") from error
        sink.close(complete=not stopped())
        if settings.contact_sheet is not None:
            sheet.write(settings.contact_sheet)
        return Rendered(
            output=(sink.partial or output) if progress.frames_committed else None,
            size=(width, height),
            progress=progress,
            total=info.frame_count,
            clip_seconds=max(0.0, end - float(info.origin) - settings.start),
            stage_seconds=stopwatch.seconds,
            network_seconds=sum(stopwatch.seconds.get(name, 0.0) for name in model.sources),
            damage=source.damage,
            notes=sink.notes,
            stopped=stopped(),
        )


def pixel_aspect(info: SourceInfo, size: tuple[int, int]) -> Fraction:
    """Width of an output pixel over its height, so that each picture keeps the shape it has on the screen.

    Sides are rounded to even numbers; the little that this stretches is let be: square pixels stay square.
    """
    stretch = Fraction(info.width, info.height) / Fraction(*size)
    if abs(stretch - 1) < _NEGLIGIBLE_STRETCH:
        return info.sample_aspect_ratio
    return (info.sample_aspect_ratio * stretch).limit_denominator(1000)


def _beside_source(toon: Toon) -> Frame:
    return replace(toon.toon, image=side_by_side(toon.source.image, toon.toon.image))


def _check_contact_sheet(path: Path | None, *, keep: Sequence[Path | None]) -> None:
    """Find out before the work and not after it that there is no place for the sheet."""
    if path is None:
        return
    with reported(path, "put the contact sheet elsewhere"):
        if not path.parent.is_dir():
            raise OutputError(
                f"{path.parent} is not a folder: make it first, or put the contact sheet elsewhere"
            )
        if path.is_dir():
            raise OutputError(f"{path} is a folder: give the contact sheet another name")
        if path.exists() and any(each and each.exists() and path.samefile(each) for each in keep):
            raise OutputError(f"{path} is what is drawn from: give the contact sheet another name")
