"""Textual inversions: a word that stands for vectors instead of tokens."""

from torch import Tensor

from toonstream.errors import ModelError
from toonstream.export.parts.family import describe
from toonstream.export.parts.weights import Weights

__all__ = ["read_embedding"]

_ORIGINAL = "string_to_param."  # what the original code saves as, and the web UIs' .pt files
_SAFETENSORS = "emb_params"


def read_embedding(weights: Weights, *, width: int) -> Tensor:
    """Read the vectors of a textual inversion: (n, D), n of them.

    Args:
        weights: the file: `emb_params`, or `string_to_param` with one entry, or one tensor under its word.
        width: D, what the text encoder wants.

    Raises:
        ModelError: it holds none, or vectors of another width.
    """
    names = list(weights.shapes)
    original = [name for name in names if name.startswith(_ORIGINAL)]
    found = [_SAFETENSORS] if _SAFETENSORS in names else original or names
    if len(found) != 1 or len(weights.shapes[found[0]]) not in (1, 2):
        raise ModelError(f"{weights.path} is no textual inversion; it looks like {describe(weights.shapes)}")
    vectors = weights[found[0]].detach()
    if vectors.shape[-1] != width:
        raise ModelError(
            f"{weights.path} holds vectors of {vectors.shape[-1]} numbers, the text encoder takes {width}; "
            "take a textual inversion for SD 1.5"
        )
    return vectors.reshape(-1, width)
