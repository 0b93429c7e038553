"""From conditioned frames to toon frames: the rolling window, and the decoder behind it."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from toonstream.config import RenderSettings
from toonstream.engines.engine import Engine, Network
from toonstream.export.checkpoints import Model
from toonstream.export.tokenizer import PromptTokenizer, encode_prompt
from toonstream.stream.clock import Stopwatch, TimedNetwork
from toonstream.stream.conditions import Conditioned, as_image
from toonstream.stream.denoise import Committed, Denoiser, DenoiseSettings
from toonstream.stream.frame import Frame
from toonstream.stream.schedulers import make_scheduler

__all__ = ["Stylizer", "Toon", "load_stylizer"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Toon:
    """A source frame and the toon made of it, of the same size, pts and index."""

    source: Frame
    toon: Frame


class Stylizer:
    """Takes conditioned frames in order and gives toon frames in order, a look-ahead later.

    Source frames wait here for their toon; there are never more of them than the rolling window's look-ahead.

    Args:
        denoiser: the rolling window, fresh.
        decoder: latents (B, C, h, w) → image (B, 3, H, W) in [-1, 1].
        scale, shift: the rolling window's latents are (decoder's latents - shift) * scale.
    """

    def __init__(
        self, denoiser: Denoiser, decoder: Network, *, scale: float = 1.0, shift: float = 0.0
    ) -> None:
        self._denoiser = denoiser
        self._decoder = decoder
        self._scale = scale
        self._shift = shift
        self._waiting: deque[Frame] = deque()

    def push(
        self,
        conditioned: Conditioned,
        *,
        text: Tensor | None = None,
        seed: int | None = None,
        key: int | None = None,
    ) -> Iterator[Toon]:
        """Take the next frame; give the ones that became final.

        `text`, `seed` and `key` are the frame's own, see `Denoiser.push`.
        """
        self._waiting.append(conditioned.frame)
        return self._decoded(self._denoiser.push(conditioned.hints, text=text, seed=seed, key=key))

    def finish(self) -> Iterator[Toon]:
        """The stream has ended: give the rest."""
        return self._decoded(self._denoiser.finish())

    def _decoded(self, committed: Iterable[Committed]) -> Iterator[Toon]:
        for final in committed:
            source = self._waiting.popleft()
            latents = final.latents.unsqueeze(0) / self._scale + self._shift
            picture = self._decoder({"latents": latents})["image"][0]
            height, width = source.image.shape[:2]
            yield Toon(source=source, toon=replace(source, image=as_image(picture, (width, height))))


def load_stylizer(
    model: Model, settings: RenderSettings, *, engine: Engine, stopwatch: Stopwatch
) -> Stylizer:
    """Load a model's networks and read the prompt.

    Args:
        model: where the networks are.
        settings: how to run them.
        engine: what runs them.
        stopwatch: is told, under each network's name, how long it is busy.

    Raises:
        ModelError: the model has no network for something it asks for.
        EngineError: the engine refuses a network.
    """
    guided = settings.guidance > 1.0
    encoder = engine.load(model.sources["text_encoder"])
    tokenizer = PromptTokenizer(model.tokenizer_path)
    names = ["unet", "vae_decoder"]
    for controlnet in model.defaults.controlnets:
        names += [f"hint_{controlnet}", f"controlnet_{controlnet}"]
    networks = {name: TimedNetwork(engine.load(model.sources[name]), name, stopwatch) for name in names}
    decoder = networks.pop("vae_decoder")
    denoiser = Denoiser(
        networks,
        scheduler=make_scheduler(model.scheduler_config, kind=model.defaults.scheduler, steps=settings.steps),
        text=encode_prompt(encoder, tokenizer, settings.prompt),
        negative_text=encode_prompt(encoder, tokenizer, settings.negative_prompt) if guided else None,
        settings=DenoiseSettings(
            window=settings.window,
            stride=settings.stride,
            steps=settings.steps,
            guidance=settings.guidance,
            seed=settings.seed,
            skewed=settings.mode == "skewed",
            controlnet_scales=model.defaults.controlnets,
        ),
        latent_channels=model.latent_channels,
    )
    return Stylizer(denoiser, decoder, scale=model.latent_scale, shift=model.latent_shift)
