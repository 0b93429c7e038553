"""The engine that streams run on: what is asked for, or torch until that is built.

Behind torch, where nothing was asked for, TensorRT is built in the background, too, and has to prove itself
on the card that is there before it takes over, see `engines.proof`. Where it has, it is loaded at once.

What an engine is built for is settled here, and nowhere else: `toonstream engines build` builds under the
same keys that a stream of the same settings looks for.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toonstream.config import MAX_WINDOW, RenderSettings
from toonstream.engines.background import SwitchableEngine
from toonstream.engines.compiling import Compiler, usual_compiler
from toonstream.engines.engine import Engine, NetworkSource
from toonstream.engines.onnx_file import onnx_file
from toonstream.engines.select import engine_name, open_engine
from toonstream.engines.tensorrt.candidate import Candidate
from toonstream.engines.tensorrt.engine import Shapes, TensorRtEngine
from toonstream.engines.tensorrt.flavour import FLAVOURS, apart
from toonstream.errors import ToonstreamError
from toonstream.export.beside import ExportBeside
from toonstream.export.checkpoints import Model
from toonstream.export.reference import with_reference
from toonstream.export.shapes import Envelope, declared_inputs
from toonstream.export.tokenizer import PromptTokenizer
from toonstream.stream.sizes import padded_size

if TYPE_CHECKING:
    from toonstream.stream.live.networks import SharedNetworks
    from toonstream.stream.live.settings import LiveSettings

__all__ = [
    "envelope_shapes",
    "live_envelope",
    "network_names",
    "open_live_networks",
    "open_stream_engine",
    "stream_envelope",
]

_CAMERA = (640, 480)  # what a live stream's source has most of the time
_SOURCES = (_CAMERA, (1280, 720), (480, 640), (720, 1280))  # what else is planned for
_CLIENTS_WINDOW = 16  # frames that viewers of a live stream may make its windows


def stream_envelope(model: Model, settings: RenderSettings, *, size: tuple[int, int]) -> Envelope:
    """Say which shapes a stream of frames of one size calls the networks with.

    Args:
        model: whose networks they are.
        settings: how the stream will run them.
        size: (width, height) of its frames, in pixels.

    Raises:
        SettingError: the window is longer than the model knows.
        InputError: a prompt is longer than any model takes.
    """
    model.require_window(settings.window)
    return Envelope(
        size=padded_size(size, model.size_multiple),
        window=settings.window,
        stride=settings.stride,
        sides=2 if settings.guidance > 1.0 else 1,
        steps=settings.steps,
        skewed=settings.mode == "skewed",
        chunks=_chunks(model, settings.prompt, settings.negative_prompt),
        remembered=_remembered(settings),
    )


def live_envelope(model: Model, settings: "LiveSettings") -> Envelope:
    """Say which shapes live streams call the networks with, whatever their controllers and viewers choose.

    Sizes shrink as far as a network can go; they grow to what is asked for of a source of 16:9, or of one
    that stands upright. Windows grow to what the page offers, or to what is asked for.

    Args:
        model: whose networks they are.
        settings: what streams begin with.

    Raises:
        SettingError: the window is longer than the model knows.
        InputError: a prompt is longer than any model takes.
    """
    render = settings.resolve(model.defaults)
    model.require_window(render.window)
    sizes = [padded_size(settings.size.of(*source), model.size_multiple) for source in _SOURCES]
    offered = min(_CLIENTS_WINDOW, model.longest_window or MAX_WINDOW)
    return Envelope(
        size=sizes[0],
        smallest=(model.size_multiple, model.size_multiple),
        largest=(max(width for width, _ in sizes), max(height for _, height in sizes)),
        window=render.window,
        stride=render.stride,
        widest=max(render.window, offered),
        sides=2 if render.guidance > 1.0 else 1,
        steps=render.steps,
        skewed=render.mode == "skewed",
        chunks=_chunks(model, render.prompt, render.negative_prompt),
        remembered=_remembered(render),
    )


def _remembered(settings: RenderSettings) -> int:
    """Places for what frames attend to: engines want one, if it is an empty one."""
    return max(1, settings.remember + (settings.reference is not None))


def _chunks(model: Model, *prompts: str) -> int:
    """Chunks of tokens that prompts may have: those of the model's own are always room for others."""
    tokenizer = PromptTokenizer(model.tokenizer_path, model.embeddings)
    own = (model.defaults.prompt, model.defaults.negative_prompt)
    return max(len(tokenizer(prompt).ids) for prompt in (*own, *prompts))


def envelope_shapes(envelope: Envelope) -> Shapes:
    """Give what an engine that builds ahead wants to be told."""
    return lambda source: envelope.triples(source.name, declared_inputs(onnx_file(source)))


def network_names(model: Model, *, picture: bool = False) -> tuple[str, ...]:
    """Name the networks of a model that a stream runs.

    Args:
        model: the model, with what attends to the past where anything is to.
        picture: frames attend to a reference picture.
    """
    hints = model.defaults.controlnets
    return (
        "text_encoder",
        "unet_reference" if "unet_reference" in model.sources else "unet",
        *(["vae_encoder"] if picture else []),
        "vae_decoder",
        *(f"{kind}_{hint}" for hint in hints for kind in ("hint", "controlnet")),
        *(f"annotator_{hint}" for hint in hints if hint in model.annotators),
    )


def open_stream_engine(
    name: str,
    model: Model,
    settings: RenderSettings,
    *,
    size: tuple[int, int],
    at_once: int = 1,
    compiler: Compiler | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Engine:
    """Open an engine for a stream of frames of one size.

    An engine that has to be built first is built in the background, while torch serves, and takes over at a
    window boundary; what comes behind torch for `auto`, see `engine_name`, once it has proved itself.

    Args:
        name: as `--engine` takes it.
        model: whose networks will be loaded.
        settings: how the stream will run them.
        size: (width, height) of its frames, in pixels.
        at_once: networks that will run at a time.
        compiler: one that has begun for OpenVINO, see `ahead.begin`.
        say: is told how far builds are.

    Raises:
        EngineError: the engine is unknown, not installed, or of no use here.
        SettingError: the window is longer than the model knows.
    """
    names = network_names(model, picture=settings.reference is not None)
    return _open(name, model, names, stream_envelope(model, settings, size=size), say, at_once, compiler)


def open_live_networks(
    name: str,
    model: Model,
    settings: "LiveSettings",
    *,
    loras: Mapping[str, Path] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> "SharedNetworks":
    """Load a model's networks for live streams, on an engine opened as by `open_stream_engine`.

    Args:
        name: as `--engine` takes it.
        model: where the networks come from.
        settings: what streams begin with.
        loras: files of LoRAs that viewers may ask for, by name.
        say: is told how far builds are.

    Raises:
        EngineError: the engine is unknown, not installed, or of no use here.
        ModelError: the model has no network for something it asks for.
        InputError: the settings are not for this model, or the reference picture cannot be read.
    """
    from toonstream.stream.live.networks import SharedNetworks  # which clips do without
    from toonstream.stream.temporal.attending import Attending

    chosen = settings.resolve(model.defaults)
    name = engine_name(name)
    attending = Attending.of(chosen)
    if attending is not None:
        model = with_reference(model, engine=name, say=say)
    envelope = live_envelope(model, settings) if FLAVOURS.keys() & set(apart(name)) else None
    names = network_names(model, picture=chosen.reference is not None)
    engine = _open_live(name) if envelope is None else _open(name, model, names, envelope, say)
    chunks = _chunks(model, chosen.prompt, chosen.negative_prompt)
    built = isinstance(engine, TensorRtEngine | SwitchableEngine)  # for shapes; or is to be
    limits = envelope if built else None
    shared = SharedNetworks.load(
        model, engine, limits=limits, loras=loras, chunks=chunks, attending=attending
    )
    shared.check(settings)
    return shared


def _open_live(name: str) -> Engine:
    """One that is not built ahead. On a CPU it leaves a core to cameras, sockets, encoders and the page."""
    return open_engine(name, compiler=usual_compiler(spare=1) if name == "openvino" else None)


def _open(
    name: str,
    model: Model,
    names: Sequence[str],
    envelope: Envelope,
    say: Callable[[str], None],
    at_once: int = 1,
    compiler: Compiler | None = None,
) -> Engine:
    serving, coming = apart(engine_name(name))
    sources = [model.sources[network] for network in names]
    if coming is not None:
        return _open_behind(serving, coming, model, sources, envelope, say)
    engine = open_engine(
        serving,
        shapes=envelope_shapes(envelope),
        model=model.defaults.name,
        at_once=at_once,
        compiler=compiler,
        say=say,
    )
    if not isinstance(engine, TensorRtEngine) or all(map(engine.is_built, sources)):
        return engine
    return SwitchableEngine(open_engine("torch"), successor=engine, say=say)


def _open_behind(
    serving: str,
    coming: str,
    model: Model,
    sources: Sequence[NetworkSource],
    envelope: Envelope,
    say: Callable[[str], None],
) -> Engine:
    """Open what is to take over, where it has proved all networks; else what serves, and it behind that."""

    def told(line: str) -> None:  # not every step of builds that nobody asked for
        if not re.search(r" \d+/\d+$", line):
            say(line)

    engine = TensorRtEngine(coming, shapes=envelope_shapes(envelope), model=model.defaults.name, say=told)
    export = ExportBeside(model, engine=coming, say=told)
    candidate = Candidate(engine, sources, export=export, say=say)
    try:
        if candidate.load_proved():
            return engine
        objection = candidate.objection()
    except ToonstreamError as error:  # which those who ask for this engine are to know, and nobody else
        objection = str(error)
    if objection is not None:
        say(f"{serving} draws: {objection}")
        return open_engine(serving)
    return SwitchableEngine(open_engine(serving), successor=candidate, judge=candidate.judge, say=say)
