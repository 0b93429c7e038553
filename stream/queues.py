"""A bounded queue from one thread to another, whose end and whose failure both reach the other side."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Cancelled", "Channel", "ChannelStatistics"]

T = TypeVar("T")


class Cancelled(Exception):
    """The other side of a channel is gone; what is left of the work is of no use to anyone."""


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """How a channel was used.

    Attributes:
        capacity: items it holds at most.
        waiting: items in it now.
        passed: items put so far.
        peak: most items it held at a time.
    """

    capacity: int
    waiting: int
    passed: int
    peak: int


class Channel(Generic[T]):
    """A bounded queue. A full one makes `put` wait: that is the back-pressure all the way to the demuxer.

    The producing thread works within `producing()`, the consuming one within `consuming()`: whichever way
    they leave, the other side is never left waiting.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a channel holds at least one item, not {capacity}")
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._cancelled = False
        self._passed = 0
        self._peak = 0

    def put(self, item: T) -> None:
        """Add an item; wait while the channel is full.

        Raises:
            Cancelled: nobody will take it any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or len(self._items) < self._capacity)
            if self._cancelled:
                raise Cancelled
            self._items.append(item)
            self._passed += 1
            self._peak = max(self._peak, len(self._items))
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Take items as they come, until the channel is closed and empty.

        Raises:
            Cancelled: the producer failed.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._cancelled or self._closed or bool(self._items))
                if self._cancelled:
                    raise Cancelled
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def close(self) -> None:
        """Nothing more will be put; what is in the channel may still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def cancel(self) -> None:
        """Drop what is in the channel and wake both sides."""
        with self._changed:
            self._cancelled = True
            self._items.clear()
            self._changed.notify_all()

    @contextmanager
    def producing(self) -> Iterator[None]:
        """Close the channel at the end of the block, or cancel it when the block fails."""
        finished = False
        try:
            yield
            finished = True
        finally:
            if finished:
                self.close()
            else:
                self.cancel()

    @contextmanager
    def consuming(self) -> Iterator[None]:
        """Cancel the channel at the end of the block: whoever still puts into it is told."""
        try:
            yield
        finally:
            self.cancel()

    @property
    def statistics(self) -> ChannelStatistics:
        """How the channel was used so far."""
        with self._changed:
            return ChannelStatistics(
                capacity=self._capacity, waiting=len(self._items), passed=self._passed, peak=self._peak
            )
