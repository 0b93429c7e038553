"""What a stream's frames attend to, as its settings and its model say."""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from toonstream.config import RenderSettings
from toonstream.engines.engine import Network
from toonstream.export.checkpoints import Model
from toonstream.stream.conditions import Conditions
from toonstream.stream.frame import Frame
from toonstream.stream.schedulers import Scheduler
from toonstream.stream.temporal.picture import ReferencePicture, read_picture
from toonstream.stream.temporal.reference import FrameMemory, Remembering

__all__ = ["load_memory"]


def load_memory(
    model: Model,
    settings: RenderSettings,
    *,
    networks: Mapping[str, Network],
    scheduler: Scheduler,
    text: Tensor,
) -> FrameMemory:
    """Make the memory of a stream whose frames attend to more than their window.

    Args:
        model: whose networks they are.
        settings: what frames attend to.
        networks: the stream's, by name; `unet` is one that attends.
        scheduler: of the stream.
        text: the stream's, (sides, 77, D); its device is where tensors are.

    Raises:
        InputError: the reference picture cannot be read.
    """
    defaults = model.defaults

    def hints(image: NDArray[np.uint8]) -> Mapping[str, Tensor]:
        height, width = image.shape[:2]
        draw = Conditions(defaults.controlnets, size=(width, height), multiple=1, annotated=model.annotators)
        drawn = dict(draw(Frame(index=0, pts=0, time_base=Fraction(1), image=image)).hints)
        for name in model.annotators:
            if name in drawn:
                drawn[name] = networks[f"annotator_{name}"]({"image": drawn[name].unsqueeze(0)})["hint"][0]
        return drawn

    picture = None
    if settings.reference is not None:
        picture = ReferencePicture(
            read_picture(settings.reference),
            hints=hints,
            networks=networks,
            scheduler=scheduler,
            scales=defaults.controlnets,
            guidance=settings.guidance,
            text=text,
            seed=settings.seed,
            scale=model.latent_scale,
            shift=model.latent_shift,
        )
    first = min(defaults.remember_first, settings.remember - 1) if settings.remember else 0
    return FrameMemory(
        networks["unet"],
        remembering=Remembering(
            sink=first,
            recent=settings.remember - first,
            strength=defaults.remember_strength,
            picture_strength=defaults.reference_strength,
        ),
        steps=settings.steps,
        sides=len(text),
        device=text.device,
        look_at=picture,
    )
