"""What a stream's frames attend to, as its settings and its model say."""

from collections.abc import Mapping
from dataclasses import dataclass
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
from toonstream.stream.tiling import Cost, Tiled, available_memory

__all__ = ["Attending"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Attending:
    """What frames attend to besides those of their window.

    Attributes:
        remember: frames of their scene that are done, 0 or more.
        picture: (H, W, 3) uint8 RGB, or None.
    """

    remember: int = 0
    picture: NDArray[np.uint8] | None = None

    @classmethod
    def of(cls, settings: RenderSettings) -> "Attending | None":
        """Read what settings name; None where they name nothing.

        Raises:
            InputError: the reference picture cannot be read.
        """
        if not settings.attends:
            return None
        picture = None if settings.reference is None else read_picture(settings.reference)
        return cls(remember=settings.remember, picture=picture)

    def memory(
        self,
        model: Model,
        *,
        networks: Mapping[str, Network],
        scheduler: Scheduler,
        text: Tensor,
        guidance: float,
        seed: int,
    ) -> FrameMemory:
        """Make the memory of a stream.

        Args:
            model: whose networks they are.
            networks: the stream's, by name; `unet` is one that attends.
            scheduler: of the stream.
            text: the stream's, (sides, 77, D); its device is where tensors are.
            guidance: of the stream.
            seed: of the picture's noise.
        """
        defaults = model.defaults

        def hints(image: NDArray[np.uint8]) -> Mapping[str, Tensor]:
            height, width = image.shape[:2]
            draw = Conditions(
                defaults.controlnets, size=(width, height), multiple=1, annotated=model.annotators
            )
            drawn = dict(draw(Frame(index=0, pts=0, time_base=Fraction(1), image=image)).hints)
            for name in model.annotators:
                if name in drawn:
                    annotator = networks[f"annotator_{name}"]
                    drawn[name] = annotator({"image": drawn[name].unsqueeze(0)})["hint"][0]
            return drawn

        look_at = None
        if self.picture is not None:
            encoder = Tiled(
                networks["vae_encoder"],
                cost=Cost.of(model.vae_config, itemsize=2 if text.is_cuda else 4),
                memory=available_memory(text.device),
            )
            look_at = ReferencePicture(
                self.picture,
                hints=hints,
                networks={**networks, "vae_encoder": encoder},
                scheduler=scheduler,
                scales=defaults.controlnets,
                guidance=guidance,
                text=text,
                seed=seed,
                scale=model.latent_scale,
                shift=model.latent_shift,
            )
        first = min(defaults.remember_first, self.remember - 1) if self.remember else 0
        return FrameMemory(
            networks["unet"],
            remembering=Remembering(
                sink=first,
                recent=self.remember - first,
                strength=defaults.remember_strength,
                picture_strength=defaults.reference_strength,
            ),
            steps=scheduler.steps,
            sides=len(text),
            device=text.device,
            look_at=look_at,
        )
