"""Networks compiled before they are needed, beside those that are needed first.

The UNet takes longest to compile, and is needed last: a window of frames has to be there. What it will be
called with follows from the settings, and from the shapes that the networks before it give.
"""

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from toonstream.engines.engine import Network, Preparing
from toonstream.errors import EngineError

__all__ = ["prepare_unet"]


@runtime_checkable
class _Compiled(Preparing, Protocol):
    """A network that is compiled for the shapes of its inputs."""

    def shapes_given(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]: ...


def prepare_unet(
    networks: Mapping[str, Network],
    *,
    hint: str,
    size: tuple[int, int],
    text: Tensor,
    window: int,
    channels: int,
) -> threading.Thread | None:
    """Begin to compile the UNet for the first window, on a thread of its own.

    Nothing depends on it: a window that comes sooner waits for it, and one of another shape is compiled for
    as ever. What is wrong is told by the window itself.

    Args:
        networks: as the engine loaded them: `unet`, and `hint_NAME` and `controlnet_NAME`.
        hint: NAME of any of these.
        size: (width, height) that frames are padded to, in pixels.
        text: the prompt, (sides, tokens, D).
        window: frames in the first window.
        channels: of the latents.

    Returns:
        The thread, or None where the engine does not compile for shapes.
    """
    embed, control, unet = networks[f"hint_{hint}"], networks[f"controlnet_{hint}"], networks["unet"]
    if not (isinstance(embed, _Compiled) and isinstance(control, _Compiled) and isinstance(unet, _Compiled)):
        return None
    sides = len(text)

    def prepare() -> None:
        with suppress(EngineError):
            embedding = embed.shapes_given({"hint": torch.empty(1, 3, size[1], size[0])})["embedding"]
            height, width = embedding[-2:]
            common = {"timestep": torch.empty(sides), "text": text}
            residuals = control.shapes_given(
                {
                    **common,
                    "sample": torch.empty(sides, channels, height, width),
                    "embedding": torch.empty(sides, *embedding[1:]),
                }
            )
            unet.prepare(
                {
                    **common,
                    "sample": torch.empty(sides, window, channels, height, width),
                    **{name: torch.empty(sides, window, *shape[1:]) for name, shape in residuals.items()},
                }
            )

    thread = threading.Thread(target=prepare, name="toonstream-ahead")
    thread.start()
    return thread
