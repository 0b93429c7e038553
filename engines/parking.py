"""Tensors that wait in host memory until a GPU needs them, so that what is in flight takes no room there.

Copies go both ways on a stream of their own, from and to pinned memory: the GPU computes meanwhile. On a CPU
nothing is copied.
"""

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["HostMemory", "Parked"]


class Parked(Protocol):
    """A tensor that waits."""

    def bring(self) -> None:
        """Begin to bring it back; returns at once."""
        ...

    def take(self) -> Tensor:
        """Give it, on the device that it came from. It goes on waiting, too."""
        ...


class HostMemory:
    """Where tensors of one device wait.

    Args:
        device: the CPU, or a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def park(self, tensor: Tensor) -> Parked:
        """Let a tensor wait; whoever parks it changes it no more."""
        return _Here(tensor) if self._copies is None else _Away(tensor, self._copies)


class _Here:
    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def bring(self) -> None:
        """Nothing."""

    def take(self) -> Tensor:
        return self._tensor


class _Away:
    """In pinned memory. Whatever is done on the stream of copies is done in order."""

    def __init__(self, tensor: Tensor, copies: torch.cuda.Stream) -> None:
        self._copies = copies
        self._device = tensor.device
        self._coming: tuple[Tensor, torch.cuda.Event] | None = None  # and when it has come
        copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(copies):
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
        tensor.record_stream(copies)  # its memory is not given to another before it is copied

    def bring(self) -> None:
        """Begin to copy it back."""
        if self._coming is None:
            with torch.cuda.stream(self._copies):
                coming = self._host.to(self._device, non_blocking=True)
                self._coming = coming, self._copies.record_event()

    def take(self) -> Tensor:
        """Let the GPU's own stream wait for this copy, not for those behind it, and give it."""
        self.bring()
        assert self._coming is not None
        (tensor, come), self._coming = self._coming, None
        current = torch.cuda.current_stream(self._device)
        current.wait_event(come)
        tensor.record_stream(current)
        return tensor
