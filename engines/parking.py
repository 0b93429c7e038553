"""Tensors that wait in host memory until a GPU needs them, so that what is in flight takes no room there.

Copies go both ways on a stream of their own, from and to pinned memory: the GPU computes meanwhile. Where the
system pins no more, they wait in memory as it is, and copies take longer. On a CPU nothing is copied.
"""

import logging
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["HostMemory", "Parked"]

_log = logging.getLogger(__name__)


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
        self._pinned = True

    def park(self, tensor: Tensor) -> Parked:
        """Let a tensor wait; whoever parks it changes it no more."""
        return _Here(tensor) if self._copies is None else _Away(tensor, self._room(tensor), self._copies)

    def _room(self, tensor: Tensor) -> Tensor:
        """Make a place in host memory for a tensor."""
        if self._pinned:
            try:
                return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            except RuntimeError as error:
                self._pinned = False
                reason = str(error).partition("\n")[0]
                _log.warning(
                    "no more host memory can be pinned, copies take longer (%s): lower --size, --steps or "
                    "--window, in order of effect",
                    reason,
                )
        return torch.empty(tensor.shape, dtype=tensor.dtype)


class _Here:
    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def bring(self) -> None:
        """Nothing."""

    def take(self) -> Tensor:
        return self._tensor


class _Away:
    """In host memory. Whatever is done on the stream of copies is done in order."""

    def __init__(self, tensor: Tensor, host: Tensor, copies: torch.cuda.Stream) -> None:
        self._host = host
        self._copies = copies
        self._device = tensor.device
        self._coming: tuple[Tensor, torch.cuda.Event] | None = None  # and when it has come
        copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(copies):
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
