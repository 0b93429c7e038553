"""What a stream's frames attend to, made of its settings and its model."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.export.networks.base import spec
from toonstream.export.networks.reference import BIAS
from toonstream.stream.schedulers import make_scheduler
from toonstream.stream.temporal.attending import Attending
from toonstream.stream.temporal.reference import FrameMemory

LATENT = (96, 128)  # (h, w)


class Encoder:
    """Gives the mean of each patch, and keeps the shapes that it saw."""

    inputs = (spec("image", "batch", 3, "8h", "8w"),)
    outputs = (spec("latents", "batch", 3, "h", "w"),)

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.seen.append(tuple(tensors["image"].shape))
        return {"latents": torch.nn.functional.avg_pool2d(tensors["image"], 8)}


class Unet:
    """What the memory wants to know of the network."""

    inputs = (
        spec(BIAS, "batch", "remembered"),
        spec("remembered_0_at_1", "batch", "remembered", "h", "w", 2),
    )
    outputs = ()

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError


@pytest.mark.parametrize(("memory", "tiles"), [(1 << 40, 1), (1 << 25, 4)])
def test_a_large_reference_picture_is_encoded_in_tiles_where_memory_does_not_suffice(
    memory: int, tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders: list[Network] = []

    def look_at(*_: object, networks: Mapping[str, Network], **more: object) -> object:
        encoders.append(networks["vae_encoder"])
        return list

    monkeypatch.setattr("toonstream.stream.temporal.attending.ReferencePicture", look_at)
    monkeypatch.setattr("toonstream.stream.temporal.attending.available_memory", lambda device: memory)
    model = open_model(shipped_model())
    within = Encoder()
    made = Attending(picture=np.zeros((64, 64, 3), np.uint8)).memory(
        model,
        networks={"unet": Unet(), "vae_encoder": within},
        scheduler=make_scheduler(model.scheduler_config, kind="ddim", steps=1),
        text=torch.zeros(1, 77, 4),
        guidance=1.0,
        seed=0,
    )
    assert isinstance(made, FrameMemory)
    (encoder,) = encoders
    image = torch.rand((1, 3, 8 * LATENT[0], 8 * LATENT[1]), generator=torch.Generator().manual_seed(0))
    latents = encoder({"image": image})["latents"]
    assert len(within.seen) >= tiles
    assert (len(within.seen) == 1) == (tiles == 1)
    torch.testing.assert_close(latents, torch.nn.functional.avg_pool2d(image, 8))
