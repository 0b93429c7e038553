"""Ctrl-C and its kin, as a question that a run can ask."""

import signal
from types import FrameType, TracebackType
from typing import Self

__all__ = ["EXIT_SIGNAL", "Interrupt"]

EXIT_SIGNAL = 128
"""What an exit code is that a signal led to, plus its number, as shells have it."""


class Interrupt:
    """Within it, the first SIGINT or SIGTERM only asks for a clean end, and the second one is not waited for.

    Attributes:
        number: of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
