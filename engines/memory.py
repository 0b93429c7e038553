"""What to say when a GPU's memory is too small."""

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
        needed = str(error).partition(". ")[0].removeprefix("CUDA out of memory. ")
        raise EngineError(f"{network}: not enough GPU memory ({needed}); {LOWER}") from None
