"""Which shapes an engine is built for."""

from typing import NamedTuple

__all__ = ["Triple"]


class Triple(NamedTuple):
    """Shapes of one tensor: every axis may lie between `min` and `max`, and is fastest at `opt`."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]
