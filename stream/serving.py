"""The engine that a stream runs on: what is asked for, or torch until that is built."""

from collections.abc import Callable

from toonstream.config import RenderSettings
from toonstream.engines.background import SwitchableEngine
from toonstream.engines.engine import Engine
from toonstream.engines.onnx_file import onnx_file
from toonstream.engines.select import engine_name, open_engine
from toonstream.engines.tensorrt.engine import TensorRtEngine
from toonstream.export.checkpoints import Model
from toonstream.export.shapes import Envelope, declared_inputs
from toonstream.export.tokenizer import PromptTokenizer
from toonstream.stream.conditions import padded_size

__all__ = ["open_stream_engine"]


def open_stream_engine(
    name: str,
    model: Model,
    settings: RenderSettings,
    *,
    size: tuple[int, int],
    smallest: tuple[int, int] | None = None,
    largest: tuple[int, int] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Engine:
    """Open an engine for one stream.

    An engine that has to be built first is built in the background, while torch serves, and takes over at a
    window boundary.

    Args:
        name: as `--engine` takes it.
        model: whose networks will be loaded.
        settings: how the stream will run them.
        size: usual (width, height) of its frames, in pixels.
        smallest: the least of it, where it may change. None is `size`.
        largest: the most of it. None is `size`.
        say: is told how far builds are.

    Raises:
        EngineError: the engine is unknown, not installed, or of no use here.
    """

    def padded(limit: tuple[int, int] | None) -> tuple[int, int] | None:
        return None if limit is None else padded_size(limit, model.size_multiple)

    tokenizer = PromptTokenizer(model.tokenizer_path, model.embeddings)
    envelope = Envelope(
        size=padded_size(size, model.size_multiple),
        smallest=padded(smallest),
        largest=padded(largest),
        window=settings.window,
        stride=settings.stride,
        sides=2 if settings.guidance > 1.0 else 1,
        steps=settings.steps,
        skewed=settings.mode == "skewed",
        chunks=max(len(tokenizer(prompt).ids) for prompt in (settings.prompt, settings.negative_prompt)),
    )
    engine = open_engine(
        engine_name(name),
        shapes=lambda source: envelope.triples(source.name, declared_inputs(onnx_file(source))),
        say=say,
    )
    if not isinstance(engine, TensorRtEngine) or engine.is_built(model.sources["unet"]):
        return engine
    return SwitchableEngine(open_engine("torch"), successor=engine, say=say)
