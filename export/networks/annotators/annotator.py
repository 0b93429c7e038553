"""What every annotator is: a picture in, a hint of the same size out."""

from torch import Tensor, nn

from toonstream.export.networks.base import TensorModule, spec

__all__ = ["Annotator"]


class Annotator(TensorModule):
    """Draws a hint.

    Input: `image` (B, 3, H, W) in [0, 1]. Output: `hint` (B, 3, H, W) in [0, 1], grey.

    Args:
        network: draws (B, 1, H, W) in [0, 1] of a picture.
    """

    inputs = (spec("image", "batch", 3, "8h", "8w"),)
    outputs = (spec("hint", "batch", 3, "8h", "8w"),)

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Draw the hints of pictures."""
        return (self.network(image).expand(-1, 3, -1, -1),)
