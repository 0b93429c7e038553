"""From the worker's thread to an event loop: bounded, the oldest gives way, no reader is waited for."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Generic, TypeVar

__all__ = ["Outbox"]

T = TypeVar("T")


class Outbox(Generic[T]):
    """Items put on any thread, taken with `async for` by one reader on one loop.

    Args:
        capacity: items that wait at most, 1 or more.
        dropped: told, on the putting thread, whenever an item gave way to a newer one.
        loop: where the reader is; None is the running one.
    """

    def __init__(
        self,
        capacity: int,
        *,
        dropped: Callable[[T], object] = lambda item: None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"an outbox holds at least one item, not {capacity}")
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._dropped = dropped
        self._loop = loop or asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item, from any thread; never waits. A closed outbox takes no more and counts as full."""
        with self._lock:
            self._items.append(item)
            fits = not self._closed and len(self._items) <= self._capacity
            lost = [] if fits else [self._items.pop() if self._closed else self._items.popleft()]
        for each in lost:
            self._dropped(each)
        self._wake()

    def close(self) -> None:
        """No more will come, from any thread; what waits may still be taken."""
        with self._lock:
            self._closed = True
        self._wake()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        """The oldest item; waits for one until the outbox is closed and empty."""
        while True:
            self._changed.clear()
            with self._lock:
                if self._items:
                    return self._items.popleft()
                if self._closed:
                    raise StopAsyncIteration
            await self._changed.wait()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be woken
            self._loop.call_soon_threadsafe(self._changed.set)
