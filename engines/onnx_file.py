"""The file that the ONNX engines read."""

from pathlib import Path

from toonstream.engines.engine import NetworkSource
from toonstream.errors import EngineError

__all__ = ["onnx_file"]


def onnx_file(source: NetworkSource) -> Path:
    """Give the ONNX file of a network.

    Raises:
        EngineError: it has none.
    """
    if source.onnx is None:
        raise EngineError(
            f"{source.name} has no ONNX file; write it with `toonstream export MODEL`, or use --engine torch"
        )
    return source.onnx
