"""Turns at the networks: one call at a time, first come, first served."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turns"]


class Turns:
    """A lock that is handed on in the order of asking, so that no session starves another.

    An ordinary lock may be taken again by the thread that just gave it up, however many wait.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and hold it for the block."""
        ticket: threading.Lock | None = None
        with self._lock:
            if self._taken:
                ticket = threading.Lock()
                ticket.acquire()
                self._waiting.append(ticket)
            self._taken = True
        if ticket is not None:
            ticket.acquire()
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.popleft().release()
                else:
                    self._taken = False
