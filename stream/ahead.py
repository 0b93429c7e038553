"""Networks compiled before they are needed, beside those that are needed first.

What they will be called with follows from the settings, from the clip's size, and from the shapes that the
networks before them give. A run of the shipped model begins with all of them while Python still imports
torch, which nothing here needs; other models have the UNet compiled, which takes longest and is needed last,
while the rest is loaded and the first frames come in.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from toonstream.config import RenderSettings, Settings
from toonstream.engines.compiling import Compiler, Graph, usual_compiler
from toonstream.engines.onnx_file import onnx_file
from toonstream.errors import EngineError, ToonstreamError
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.stream.sizes import padded_size, rendered_size
from toonstream.stream.sources.file import FileSource

__all__ = [
    "AT_ONCE",
    "Calls",
    "HeadStart",
    "begin",
    "controlnet_frames",
    "prepare_unet",
    "runs_early",
]

AT_ONCE = 2  # networks that run at a time, most of the time: the window's, and one of the others

_SURE_BYTES = 75  # of a prompt that is one chunk of tokens, whatever it says
_GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))  # where these are, `auto` may well be torch

_Named: TypeAlias = Mapping[str, tuple[int, ...]]
_Job: TypeAlias = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Calls:
    """What a stream calls its networks with, most of the time: shapes, by the names of the inputs.

    Attributes:
        size: (width, height) that frames are padded to, in pixels.
        window: frames that the UNet gets.
        frames: that a ControlNet gets, on all sides.
        sides: 2 with guidance, else 1.
        text: (tokens, width) of an encoded prompt.
        channels: of the latents.
    """

    size: tuple[int, int]
    window: int
    frames: int
    sides: int
    text: tuple[int, int]
    channels: int

    def hint(self) -> _Named:
        """Of a network that embeds hints."""
        return {"hint": (1, 3, self.size[1], self.size[0])}

    def decoder(self, embedding: tuple[int, ...]) -> _Named:
        """Of the decoder, where embeddings of hints have this shape."""
        return {"latents": (1, self.channels, *embedding[-2:])}

    def controlnet(self, embedding: tuple[int, ...]) -> _Named:
        """Of a ControlNet, where embeddings of hints have this shape."""
        return {
            "sample": (self.frames, self.channels, *embedding[-2:]),
            "timestep": (self.frames,),
            "text": (self.frames, *self.text),
            "embedding": (self.frames, *embedding[1:]),
        }

    def unet(self, embedding: tuple[int, ...], residuals: _Named) -> _Named:
        """Of the UNet, where a ControlNet gives residuals of these shapes for it."""
        return {
            "sample": (self.sides, self.window, self.channels, *embedding[-2:]),
            "timestep": (self.sides,),
            "text": (self.sides, *self.text),
            **{name: (self.sides, self.window, *shape[1:]) for name, shape in residuals.items()},
        }


def runs_early(settings: RenderSettings) -> bool:
    """Whether ControlNets need no window: with one step they see noise and hints only, frame by frame."""
    return settings.steps == 1


def controlnet_frames(settings: RenderSettings, *, early: bool) -> int:
    """How many frames a ControlNet gets, on all sides: those of a stride, or one where it is run early."""
    levels = settings.steps if settings.mode == "skewed" else 1
    return _sides(settings) * (1 if early else levels * settings.stride)


class HeadStart:
    """Compiling that has begun, on threads of its own. Nothing depends on it.

    What is not done when it is needed is waited for, and what is not as expected is compiled when it is
    called. What is wrong with the clip or the settings is told by the run itself.

    Args:
        compiler: what the run will give its engine.
        clip: what it will read.
        settings: how.
    """

    def __init__(self, compiler: Compiler, clip: Path, settings: Settings) -> None:
        self._compiler = compiler
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="toonstream-ahead")
        self._settled = self._threads.submit(self._begin, clip, settings)
        self._worked: list[Future[list[_Job]]] = []

    @property
    def compiler(self) -> Compiler | None:
        """The compiler, once it is settled with what it has begun; None where nothing came of it."""
        return self._compiler if self._settled.result() else None

    def keep(self) -> None:
        """Keep what was compiled for the next run, on another thread: once, when there is time for it."""
        threading.Thread(target=self._keep, name="toonstream-ahead").start()

    def _begin(self, clip: Path, settings: Settings) -> bool:
        """Settle what to compile, and have it done: the UNet on one thread, all else on the other."""
        try:
            unet, *others = _promises(self._compiler, clip, settings, self._threads)
            self._worked += [self._threads.submit(_work_off, jobs) for jobs in ([unet], others)]
        except ToonstreamError:
            return False
        else:
            return True
        finally:
            self._threads.shutdown(wait=False)

    def _keep(self) -> None:
        if self._settled.result():
            for worked in self._worked:
                for keep in worked.result():
                    keep()


def begin(clip: Path, settings: Settings) -> HeadStart | None:
    """Begin to compile what a run will need, where that is known without torch.

    Returns:
        None where the run's engine will not be OpenVINO, or its networks not those of the shipped model as
        they are.
    """
    if not _is_foreseen(settings):
        return None
    try:
        return HeadStart(usual_compiler(AT_ONCE), clip, settings)
    except EngineError:
        return None


def _is_foreseen(settings: Settings) -> bool:
    words = len(f"{settings.style} style, {settings.prompt}".encode())
    against = len((settings.negative_prompt or "").encode())
    plain = settings.model is None and not settings.loras
    attends = bool(settings.remember) or settings.reference is not None
    engine = settings.engine == "openvino" or (
        settings.engine == "auto" and not any(path.exists() for path in _GPUS)
    )
    return plain and not attends and engine and max(words, against) <= _SURE_BYTES


def _promises(
    compiler: Compiler, clip: Path, settings: Settings, threads: ThreadPoolExecutor
) -> list[Callable[[], _Job]]:
    """Read the networks, and give what compiles them: the UNet, and then the others as they are needed."""
    model = open_model(shipped_model())
    choices = settings.resolve(model.defaults)
    hints = list(model.defaults.controlnets)
    names = ["text_encoder", *(f"{kind}_{hint}" for kind in ("hint", "controlnet") for hint in hints)]
    reads = {
        name: compiler.read_ahead(name, onnx_file(model.sources[name]))
        for name in ("unet", *names, "vae_decoder")
    }
    unet = threads.submit(reads.pop("unet"))
    with FileSource(clip, start=settings.start, duration=settings.duration) as source:
        size = padded_size(rendered_size(settings, model.defaults, source.info), model.size_multiple)
    graphs = {name: read() for name, read in reads.items()}
    words = graphs["text_encoder"].inputs[0]
    tokens, width = graphs["text_encoder"].shapes_given({words.name: (1, int(words.shape[1]))})[
        "hidden_states"
    ][1:]
    calls = Calls(
        size=size,
        window=choices.window,
        frames=controlnet_frames(choices, early=runs_early(choices)),
        sides=_sides(choices),
        text=(tokens, width),
        channels=model.latent_channels,
    )
    embedding = graphs[f"hint_{hints[0]}"].shapes_given(calls.hint())["embedding"]
    residuals = graphs[f"controlnet_{hints[0]}"].shapes_given(calls.controlnet(embedding))
    wanted = {
        "text_encoder": {words.name: (1, tokens)},
        **{f"hint_{hint}": calls.hint() for hint in hints},
        **{f"controlnet_{hint}": calls.controlnet(embedding) for hint in hints},
        "vae_decoder": calls.decoder(embedding),
    }
    return [
        unet.result().compile_ahead(calls.unet(embedding, residuals)),
        *(graphs[name].compile_ahead(shapes) for name, shapes in wanted.items()),
    ]


def _work_off(jobs: Iterable[Callable[[], _Job]]) -> list[_Job]:
    left = []
    for job in jobs:
        with suppress(EngineError):  # whoever needs it is told
            left.append(job())
    return left


def _sides(settings: RenderSettings) -> int:
    return 2 if settings.guidance > 1.0 else 1


@runtime_checkable
class _Compiled(Protocol):
    """A network that is compiled for the shapes of its inputs."""

    graph: Graph


def prepare_unet(networks: Mapping[str, object], calls: Calls, *, hint: str) -> threading.Thread | None:
    """Begin to compile the UNet for the first window, on a thread of its own.

    Nothing depends on it: a window that comes sooner waits for it, and one of another shape is compiled for
    as ever. What is wrong is told by the window itself.

    Args:
        networks: as the engine loaded them: `unet`, and `hint_NAME` and `controlnet_NAME`.
        calls: how they will be called.
        hint: NAME of any of these.

    Returns:
        The thread, or None where the engine does not compile for shapes.
    """
    embed, control, unet = networks[f"hint_{hint}"], networks[f"controlnet_{hint}"], networks["unet"]
    if not (isinstance(embed, _Compiled) and isinstance(control, _Compiled) and isinstance(unet, _Compiled)):
        return None
    graphs = embed.graph, control.graph, unet.graph

    def prepare() -> None:
        with suppress(EngineError):
            embedding = graphs[0].shapes_given(calls.hint())["embedding"]
            residuals = graphs[1].shapes_given(calls.controlnet(embedding))
            graphs[2].compile_ahead(calls.unet(embedding, residuals))()()

    thread = threading.Thread(target=prepare, name="toonstream-ahead")
    thread.start()
    return thread
