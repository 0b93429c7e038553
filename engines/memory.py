"""What to say when a GPU's memory is too small, or the GPU too old."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from toonstream.errors import EngineError

__all__ = ["LOWER", "gpu_too_old", "out_of_memory"]

LOWER = (
    "lower, in order of effect: --size, --window, --guidance (1 halves it), or take a preset with "
    "the tiny VAE; or close what else uses the GPU"
)

# What libraries beside torch's own memory say, whose errors are of no kind of their own.
_LIBRARIES = re.compile(r"CUDA error: out of memory|CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED")


@contextmanager
def out_of_memory(what: str) -> Iterator[None]:
    """Turn torch's error within into one that says what to lower.

    Args:
        what: is done, such as the name of a network.

    Raises:
        EngineError: the GPU's memory was too small.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.cuda.OutOfMemoryError) or _LIBRARIES.search(str(error))):
            raise
        tried = re.search(r"Tried to allocate [\d.]+ \w+", str(error))
        detail = f" ({tried[0][:1].lower() + tried[0][1:]})" if tried else ""
        raise EngineError(f"{what}: not enough GPU memory{detail}; {LOWER}") from None


def gpu_too_old() -> str | None:
    """Say why torch cannot compute on the GPU that is there; None where it can, or where there is none."""
    if not torch.cuda.is_available():
        return None
    here = torch.cuda.get_device_capability()
    known = [re.fullmatch(r"(?:sm|compute)_(\d+)(\d)[a-z]?", name) for name in torch.cuda.get_arch_list()]
    least = min(((int(found[1]), int(found[2])) for found in known if found), default=here)
    if here >= least:
        return None
    return (
        f"the GPU is too old: it has compute capability {here[0]}.{here[1]}, and this torch computes from "
        f"{least[0]}.{least[1]} on; use --engine openvino, or install a torch for older GPUs"
    )
