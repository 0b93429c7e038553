"""The UNet with motion modules: a window of frames and their ControlNet residuals in, its output out."""

from typing import Any

from torch import Tensor

from toonstream.errors import ModelError
from toonstream.export.networks import temporal
from toonstream.export.networks.base import TIMESTEP, TensorModule, embedded_time, spec
from toonstream.export.networks.controlnet import residual_specs

__all__ = ["MotionUnet"]


class MotionUnet(TensorModule):
    """A diffusers `UNetMotionModel`, with tensors only and with frames before channels.

    A `UNet2DConditionModel` does too: it has no motion modules, and sees each frame by itself.

    Inputs: `sample` (B, F, C, h, w), `timestep` (B,) float32, `text` (B, tokens, D), and the residuals of the
    ControlNets, summed: `residual_0` … `residual_mid`, each (B, F, Ci, hi, wi).
    Output: `output` (B, F, C, h, w).

    Args:
        network: the UNet.
        motion_norm: what the group norms of its motion modules are over: all frames of a window jointly, as
            in diffusers, or each frame, as in the original AnimateDiff.

    Raises:
        ModelError: it is a UNet of another family.
    """

    def __init__(self, network: Any, *, motion_norm: temporal.MotionNorm = "joint") -> None:
        super().__init__()
        config = network.config
        if config.addition_embed_type is not None or config.encoder_hid_dim_type is not None:
            raise ModelError("this UNet takes more than text (as SDXL does); use one for SD 1.5")
        temporal.inject(network, norm=motion_norm)
        self.network = network
        self.inputs = (
            spec("sample", "batch", "frames", config.in_channels, "h", "w"),
            spec(TIMESTEP, "batch"),
            spec("text", "batch", "tokens", config.cross_attention_dim),
            *residual_specs(network, "batch", "frames"),
        )
        self.outputs = (spec("output", "batch", "frames", config.out_channels, "h", "w"),)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, *residuals: Tensor) -> tuple[Tensor]:
        """Give the output of one denoising step of a window."""
        network = self.network
        frames = sample.shape[1]
        embedding = _per_frame(embedded_time(network, timestep, sample.dtype), frames)
        text = _per_frame(text, frames)
        *residuals_down, residual_mid = (residual.flatten(0, 1) for residual in residuals)

        hidden = network.conv_in(sample.flatten(0, 1))
        skips = [hidden]
        for block in network.down_blocks:
            hidden, states = _run(block, hidden, embedding, text, frames)
            skips.extend(states)
        skips = [skip + residual for skip, residual in zip(skips, residuals_down, strict=True)]
        if network.mid_block is not None:
            hidden = _run(network.mid_block, hidden, embedding, text, frames)
        hidden = hidden + residual_mid
        for block in network.up_blocks:
            taken = len(block.resnets)
            hidden = _run(
                block, hidden, embedding, text, frames, res_hidden_states_tuple=tuple(skips[-taken:])
            )
            del skips[-taken:]
        hidden = network.conv_out(network.conv_act(network.conv_norm_out(hidden)))
        return (hidden.unflatten(0, (-1, frames)),)


def _per_frame(tensor: Tensor, frames: int) -> Tensor:
    """Repeat (B, …) for every frame: (B*F, …)."""
    return tensor.unsqueeze(1).expand(-1, frames, *tensor.shape[1:]).flatten(0, 1)


def _run(block: Any, hidden: Tensor, embedding: Tensor, text: Tensor, frames: int, **more: Any) -> Any:
    """Run one of diffusers' blocks, and give it what its motion modules and its cross-attention need."""
    if hasattr(block, "motion_modules"):  # the middle block may have none
        more["num_frames"] = frames
    if getattr(block, "has_cross_attention", False):
        more["encoder_hidden_states"] = text
    return block(hidden_states=hidden, temb=embedding, **more)
