"""What to say when a GPU's memory is too small."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from toonstream.errors import EngineError

__all__ = ["LOWER", "out_of_memory"]

LOWER = (
    "lower, in order of effect: --size, --window, --guidance (1 halves it), or take a preset with "
    "the tiny VAE; or close what else uses the GPU"
)


@contextmanager
def out_of_memory(network: str) -> Iterator[None]:
    """Turn torch's error within into one that says what to lower.

    Raises:
        EngineError: the GPU's memory was too small.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        tried = re.search(r"Tried to allocate [\d.]+ \w+", str(error))
        detail = f" ({tried[0][:1].lower() + tried[0][1:]})" if tried else ""
        raise EngineError(f"{network}: not enough GPU memory{detail}; {LOWER}") from None
