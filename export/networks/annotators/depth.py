"""Depth: Depth Anything V2 (Yang et al. 2024), a DINOv2 transformer with the head of a DPT."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from toonstream.errors import ModelError

__all__ = ["DepthAnything"]

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures that DINOv2 learned from
_LONGEST = 3  # a picture's long side gets at most this many times the patches of its short side
_NETWORK = {  # what a config leaves out
    "reassemble_hidden_size": 384,
    "reassemble_factors": (4, 2, 1, 0.5),
    "neck_hidden_sizes": (48, 96, 192, 384),
    "fusion_hidden_size": 64,
    "head_hidden_size": 32,
}
_BACKBONE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "apply_layernorm": True,
}


class DepthAnything(nn.Module):
    """Maps pictures (B, 3, H, W) in [0, 1] to their depth (B, 1, H, W): 1 is nearest, 0 farthest.

    The layers are named as in `Depth-Anything-V2-Small-hf`, and `config` is its `config.json`. A picture is
    seen at the resolution that the network learned at: its short side is as long as `image_size` says.

    Raises:
        ModelError: the config describes another network.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        backbone = {**_BACKBONE, **(config.get("backbone_config") or {})}
        relative = config.get("depth_estimation_type", "relative") == "relative"
        if backbone.get("model_type") != "dinov2" or backbone.get("use_swiglu_ffn") or not relative:
            raise ModelError(
                "this depth network is not of the relative DINOv2 kind; use Depth-Anything-V2-Small"
            )
        self.backbone = _Backbone(backbone)
        self.neck = _Neck({**_NETWORK, **config})
        self.head = _Head({**_NETWORK, **config})
        self._patch = int(backbone["patch_size"])
        self._short = int(backbone["image_size"]) // self._patch  # patches along the short side
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).reshape(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Tell near from far."""
        height, width = image.shape[-2:]
        rows, columns = self._grid(height, width)
        seen = functional.interpolate(
            image, (rows * self._patch, columns * self._patch), mode="bicubic", align_corners=False
        )
        depth = self.predict((seen - self.mean) / self.deviation, rows, columns)
        depth = functional.interpolate(depth, (height, width), mode="bilinear", align_corners=False)
        farthest, nearest = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
        return (depth - farthest) / (nearest - farthest).clamp_min(1e-6)

    def predict(self, pixels: Tensor, rows: Any, columns: Any) -> Tensor:
        """Give the inverse depth (B, 1, h, w) of normalised pixels (B, 3, h, w).

        Args:
            pixels: the picture.
            rows: of patches; a tensor while a graph is traced, so that the size stays free.
            columns: of patches; likewise.
        """
        fused = self.neck(self.backbone(pixels, rows, columns), rows, columns)
        depth: Tensor = self.head(fused, (rows * self._patch, columns * self._patch))
        return depth

    def _grid(self, height: Any, width: Any) -> tuple[Any, Any]:
        """Rows and columns of patches for a picture of this size."""
        shorter, most = _least(height, width), self._short * _LONGEST
        rows, columns = ((self._short * side + shorter // 2) // shorter for side in (height, width))
        return _least(rows, most), _least(columns, most)


def _least(one: Any, other: Any) -> Any:
    if isinstance(one, Tensor):
        return torch.minimum(one, torch.as_tensor(other))
    return min(one, other)


class _Backbone(nn.Module):
    """DINOv2: pixels to the hidden states of some of its layers, each (B, 1 + rows · columns, D)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        layers = config["num_hidden_layers"]
        self.embeddings = _Embeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(config) for _ in range(layers))})
        self.layernorm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self._apply_layernorm = config["apply_layernorm"]
        stages = ["stem", *(f"stage{number}" for number in range(1, layers + 1))]
        self._taken = config.get("out_indices") or [stages.index(name) for name in config["out_features"]]

    def forward(self, pixels: Tensor, rows: Any, columns: Any) -> list[Tensor]:
        states = [self.embeddings(pixels, rows, columns)]
        for layer in self.encoder["layer"].children():
            states.append(layer(states[-1]))
        taken = [states[index] for index in self._taken]
        return [self.layernorm(state) for state in taken] if self._apply_layernorm else taken


class _Embeddings(nn.Module):
    """Patches as tokens, behind a token for the whole, and where each is."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, patch = config["hidden_size"], config["patch_size"]
        self._side = config["image_size"] // patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, self._side**2 + 1, width))
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(3, width, patch, stride=patch)})

    def forward(self, pixels: Tensor, rows: Any, columns: Any) -> Tensor:
        patches = self.patch_embeddings["projection"](pixels).flatten(2).transpose(1, 2)
        whole = self.cls_token.expand(pixels.shape[0], -1, -1)
        places = self.position_embeddings[:, 1:].transpose(1, 2).reshape(1, -1, self._side, self._side)
        places = functional.interpolate(places, (rows, columns), mode="bicubic", align_corners=False)
        places = torch.cat([self.position_embeddings[:, :1], places.flatten(2).transpose(1, 2)], dim=1)
        return torch.cat([whole, patches], dim=1) + places


class _Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        inner = int(width * config["mlp_ratio"])
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = _Attention(width, config["num_attention_heads"])
        self.layer_scale1 = _Scale(width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.layer_scale2 = _Scale(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.layer_scale1(self.attention(self.norm1(tokens)))
        inner = functional.gelu(self.mlp["fc1"](self.norm2(tokens)))
        scaled: Tensor = self.layer_scale2(self.mlp["fc2"](inner))
        return tokens + scaled


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.lambda1


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            self.attention[name](tokens).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.output["dense"](mixed.transpose(1, 2).flatten(2))
        return output


class _Neck(nn.Module):
    """The hidden states as pictures of several resolutions, fused from the coarsest to the finest."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        widths, width = config["neck_hidden_sizes"], config["fusion_hidden_size"]
        reassemble = nn.ModuleList(
            _Reassemble(config["reassemble_hidden_size"], channels, factor)
            for channels, factor in zip(widths, config["reassemble_factors"], strict=True)
        )
        self.reassemble_stage = nn.ModuleDict({"layers": reassemble})
        self.convs = nn.ModuleList(nn.Conv2d(each, width, 3, padding=1, bias=False) for each in widths)
        self.fusion_stage = nn.ModuleDict({"layers": nn.ModuleList(_Fuse(width) for _ in widths)})

    def forward(self, states: Sequence[Tensor], rows: Any, columns: Any) -> Tensor:
        pictures: list[Tensor] = []
        layers = self.reassemble_stage["layers"].children()
        for state, layer, convolution in zip(states, layers, self.convs, strict=True):
            batch, _, width = state.shape
            picture = state[:, 1:].transpose(1, 2).reshape(batch, width, rows, columns)
            pictures.insert(0, convolution(layer(picture)))
        sizes = [picture.shape[-2:] for picture in pictures[1:]]
        fused: Tensor | None = None
        layers = self.fusion_stage["layers"].children()
        for picture, layer, size in zip(pictures, layers, [*sizes, None], strict=True):
            fused = layer(picture, fused, size)
        assert fused is not None
        return fused


class _Reassemble(nn.Module):
    def __init__(self, before: int, channels: int, factor: float) -> None:
        super().__init__()
        self.projection = nn.Conv2d(before, channels, 1)
        self.resize: nn.Module = nn.Identity()
        if factor > 1:
            self.resize = nn.ConvTranspose2d(channels, channels, int(factor), stride=int(factor))
        elif factor < 1:
            self.resize = nn.Conv2d(channels, channels, 3, stride=round(1 / factor), padding=1)

    def forward(self, picture: Tensor) -> Tensor:
        resized: Tensor = self.resize(self.projection(picture))
        return resized


class _Fuse(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(width, width, 1)
        self.residual_layer1 = _Residual(width)
        self.residual_layer2 = _Residual(width)

    def forward(self, picture: Tensor, coarser: Tensor | None, size: Any) -> Tensor:
        """Fuse a picture with the coarser ones, and enlarge to `size`, or twice where that is None."""
        fused = self.residual_layer2(picture if coarser is None else coarser + self.residual_layer1(picture))
        scale = 2.0 if size is None else None
        fused = functional.interpolate(fused, size, scale, mode="bilinear", align_corners=True)
        projected: Tensor = self.projection(fused)
        return projected


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(width, width, 3, padding=1)
        self.convolution2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, picture: Tensor) -> Tensor:
        change: Tensor = self.convolution2(functional.relu(self.convolution1(functional.relu(picture))))
        return picture + change


class _Head(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = config["fusion_hidden_size"], config["head_hidden_size"]
        self.conv1 = nn.Conv2d(width, width // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(width // 2, inner, 3, padding=1)
        self.conv3 = nn.Conv2d(inner, 1, 1)

    def forward(self, picture: Tensor, size: tuple[Any, Any]) -> Tensor:
        picture = functional.interpolate(self.conv1(picture), size, mode="bilinear", align_corners=True)
        return functional.relu(self.conv3(functional.relu(self.conv2(picture))))
