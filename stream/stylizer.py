"""From conditioned frames to toon frames: the rolling window, and the decoder behind it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from toonstream.config import RenderSettings
from toonstream.engines.background import SwitchableEngine
from toonstream.engines.engine import Engine, Network
from toonstream.errors import ModelError
from toonstream.export.checkpoints import Model
from toonstream.export.tokenizer import PromptEncoder, PromptTokenizer
from toonstream.stream.ahead import Calls, controlnet_frames, prepare_unet
from toonstream.stream.batching import EqualBatches
from toonstream.stream.clock import Stopwatch, TimedNetwork
from toonstream.stream.conditions import Conditioned, as_image
from toonstream.stream.denoise import Committed, Denoiser, DenoiseSettings
from toonstream.stream.evaluate import InFlight
from toonstream.stream.frame import Frame
from toonstream.stream.schedulers import make_scheduler
from toonstream.stream.sizes import padded_size
from toonstream.stream.temporal.attending import Attending
from toonstream.stream.temporal.fusion import make_fusion
from toonstream.stream.tiling import Cost, Tiled, available_memory

__all__ = ["Decode", "Prepared", "Stylizer", "Toon", "load_stylizer"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Toon:
    """A source frame and the toon made of it, of the same size, pts and index, and the scene's number."""

    source: Frame
    toon: Frame
    scene: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A frame that may enter the rolling window, the number of its scene, and what the window keeps of it."""

    source: Frame
    scene: int
    state: InFlight


Decode: TypeAlias = Callable[[], Toon]
"""Makes a toon of a frame that is final. On any thread, one at a time."""


class Stylizer:
    """Takes conditioned frames in order and gives toon frames in order, a look-ahead later.

    Source frames wait here for their toon; there are never more of them than the rolling window's look-ahead.
    No window reaches from one scene into the next: a scene is out before the next one begins.

    Args:
        denoiser: the rolling window, fresh.
        decoder: latents (B, C, h, w) → image (B, 3, H, W) in [-1, 1].
        annotators: networks that draw hints, by the hint's name: image (B, 3, H, W) → hint (B, 3, H, W).
        scale, shift: the rolling window's latents are (decoder's latents - shift) * scale.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        decoder: Network,
        *,
        annotators: Mapping[str, Network] | None = None,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        self._denoiser = denoiser
        self._decoder = decoder
        self._annotators = annotators or {}
        self._scale = scale
        self._shift = shift
        self._waiting: deque[tuple[Frame, int]] = deque()  # with the numbers of their scenes
        self._scene: int | None = None

    def push(self, conditioned: Conditioned) -> Iterator[Toon]:
        """Take the next frame; give the ones that became final."""
        return (decode() for decode in self.advance(conditioned))

    def finish(self) -> Iterator[Toon]:
        """The stream has ended: give the rest."""
        return (decode() for decode in self.end())

    def advance(
        self,
        conditioned: Conditioned,
        *,
        text: Tensor | None = None,
        seed: int | None = None,
        key: int | None = None,
    ) -> list[Decode]:
        """Take the next frame as `push` does; give what decodes the ones that became final, in order.

        `text`, `seed` and `key` are the frame's own, see `Denoiser.prepare`; where no key is given, it is the
        frame's index.
        """
        return self.enter(self.prepare(conditioned, text=text, seed=seed, key=key))

    def prepare(
        self,
        conditioned: Conditioned,
        *,
        text: Tensor | None = None,
        seed: int | None = None,
        key: int | None = None,
    ) -> Prepared:
        """Do with a frame what depends on no other; on any thread, one at a time, while others are drawn."""
        drawn = {
            name: annotator({"image": conditioned.hints[name].unsqueeze(0)})["hint"][0]
            for name, annotator in self._annotators.items()
        }
        hints = {**conditioned.hints, **drawn}
        key = conditioned.frame.index if key is None else key
        state = self._denoiser.prepare(hints, text=text, seed=seed, key=key, scene=conditioned.scene)
        return Prepared(source=conditioned.frame, scene=conditioned.scene, state=state)

    def enter(self, frame: Prepared) -> list[Decode]:
        """Take the next frame; give what decodes the ones that became final, in order."""
        is_cut = self._scene is not None and frame.scene != self._scene
        before = self._denoiser.cut() if is_cut else []
        self._scene = frame.scene
        self._waiting.append((frame.source, frame.scene))
        return self._final(before + self._denoiser.enter(frame.state, image=frame.source.image))

    def end(self) -> list[Decode]:
        """Finish, and give what decodes the rest."""
        return self._final(self._denoiser.finish())

    def _final(self, committed: Iterable[Committed]) -> list[Decode]:
        return [partial(self._decode, final.latents, *self._waiting.popleft()) for final in committed]

    def _decode(self, latents: Tensor, source: Frame, scene: int) -> Toon:
        picture = self._decoder({"latents": latents.unsqueeze(0) / self._scale + self._shift})["image"][0]
        height, width = source.image.shape[:2]
        image = as_image(picture, (width, height))
        return Toon(source=source, toon=replace(source, image=image), scene=scene)


def load_stylizer(
    model: Model,
    settings: RenderSettings,
    *,
    engine: Engine,
    stopwatch: Stopwatch,
    size: tuple[int, int] | None = None,
    early: bool = False,
) -> Stylizer:
    """Load a model's networks and read the prompt.

    Args:
        model: where the networks are.
        settings: how to run them.
        engine: what runs them. The networks of a `SwitchableEngine` are replaced between windows.
        stopwatch: is told, under each network's name, how long it is busy.
        size: (width, height) of the frames to come, in pixels, for an engine that compiles to begin with;
            None where there is nothing to begin.
        early: see `Denoiser`.

    Raises:
        InputError: a prompt is longer than the model takes, or the reference picture cannot be read.
        ModelError: the model has no network for something it asks for.
        EngineError: the engine refuses a network.
    """
    annotated = {name: f"annotator_{name}" for name in model.defaults.controlnets if name in model.annotators}
    unet = "unet_reference" if settings.attends else "unet"
    names = [unet, "vae_decoder", *annotated.values()]
    if settings.reference is not None:
        names.append("vae_encoder")
    for controlnet in model.defaults.controlnets:
        names += [f"hint_{controlnet}", f"controlnet_{controlnet}"]
    if unet not in model.sources:
        raise ModelError(
            f"{model.defaults.name} has no {unet}: add it with `export.reference.with_reference`"
        )
    loaded = {name: engine.load(model.sources[name]) for name in names}
    guided = settings.guidance > 1.0
    frames = controlnet_frames(settings, early=early)
    networks: dict[str, Network] = {}
    for name, network in loaded.items():
        if name.startswith("controlnet_") and engine.per_shape:
            network = EqualBatches(network, frames)
        networks[name] = TimedNetwork(network, name, stopwatch)
    networks["unet"] = networks[unet]
    encode = PromptEncoder(
        engine.load(model.sources["text_encoder"]),
        PromptTokenizer(model.tokenizer_path, model.embeddings),
        readers=networks.values(),
    )
    text, *negative = encode(settings.prompt, *([settings.negative_prompt] if guided else []))
    if size is not None and not settings.attends:
        prepare_unet(
            loaded,
            Calls(
                size=padded_size(size, model.size_multiple),
                window=settings.window,
                frames=frames,
                sides=1 + len(negative),
                text=(text.shape[1], text.shape[2]),
                channels=model.latent_channels,
            ),
            hint=next(iter(model.defaults.controlnets)),
        )
    decoder = Tiled(
        networks["vae_decoder"],
        cost=Cost.of(model.vae_config, itemsize=2 if text.is_cuda else 4),
        memory=available_memory(text.device),
    )
    scheduler = make_scheduler(model.scheduler_config, kind=model.defaults.scheduler, steps=settings.steps)
    memory = None
    attending = Attending.of(settings)
    if attending is not None:
        memory = attending.memory(
            model,
            networks=networks,
            scheduler=scheduler,
            text=torch.cat([*negative, text]),
            guidance=settings.guidance,
            seed=settings.seed,
        )
    denoiser = Denoiser(
        networks,
        scheduler=scheduler,
        text=text,
        negative_text=negative[0] if negative else None,
        settings=DenoiseSettings(
            window=settings.window,
            stride=settings.stride,
            steps=settings.steps,
            guidance=settings.guidance,
            seed=settings.seed,
            mode=settings.mode,
            shared_noise=settings.shared_noise,
            controlnet_scales=model.defaults.controlnets,
        ),
        latent_channels=model.latent_channels,
        at_boundary=engine.boundary if isinstance(engine, SwitchableEngine) else lambda: None,
        fusion=make_fusion(
            settings.fusion,
            steps=settings.steps,
            seed=settings.seed,
            multiple=model.size_multiple,
            raft=settings.flow,
        ),
        reference=memory,
        early=early,
    )
    return Stylizer(
        denoiser,
        decoder,
        annotators={name: networks[network] for name, network in annotated.items()},
        scale=model.latent_scale,
        shift=model.latent_shift,
    )
