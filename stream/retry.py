"""Trying again: growing pauses with a cap and jitter, written once, around all sources and sinks."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from toonstream.errors import ToonstreamError

__all__ = ["FOREVER", "Patience", "Retry", "persist"]

FOREVER = None
"""As a limit: never give up."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often and how long to wait.

    Attributes:
        first: the first pause, in seconds.
        factor: by which each pause is longer than the one before.
        cap: the longest pause, in seconds.
        jitter: the part of a pause that chance may take off, 0 to 1, so that many clients of one server do
            not all come back in the same moment.
        steady: seconds that something must have worked for before pauses are short again.
        limit: failures in a row to put up with once it has worked; `FOREVER`.
        first_limit: failures in a row to put up with while it has never worked: an address may be wrong.
    """

    first: float = 0.5
    factor: float = 2.0
    cap: float = 15.0
    jitter: float = 0.5
    steady: float = 10.0
    limit: int | None = FOREVER
    first_limit: int | None = 0


class Retry:
    """Counts failures and says how long to wait after each.

    Args:
        patience: the numbers.
        chance: gives a number from 0 up to 1.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        patience: Patience,
        *,
        chance: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience = patience
        self._chance = chance
        self._clock = clock
        self._row = 0
        self._working_since: float | None = None
        self.ever_worked = False
        self.failures = 0

    def worked(self) -> None:
        """It works now."""
        self.ever_worked = True
        self._working_since = self._clock()

    def failed(self) -> float | None:
        """It does not, or no longer. Gives the seconds to wait before the next try, or None: give up."""
        patience = self._patience
        since, self._working_since = self._working_since, None
        if since is not None and self._clock() - since >= patience.steady:
            self._row = 0
        self._row += 1
        self.failures += 1
        limit = patience.limit if self.ever_worked else patience.first_limit
        if limit is not None and self._row > limit:
            return None
        # The exponent is bounded, so that a night without network does not overflow.
        base = min(patience.cap, patience.first * patience.factor ** min(self._row - 1, 64))
        return base * (1.0 - patience.jitter * self._chance())


def persist(
    attempt: Callable[[Callable[[], None]], None],
    retry: Retry,
    *,
    wait: Callable[[float], bool],
    failed: Callable[[ToonstreamError, float], None],
) -> None:
    """Attempt something until it ends by itself, is stopped, or patience does.

    Args:
        attempt: opens and works until the end; calls what it is given once it is open. A `ToonstreamError`
            means that it did not open, or went away.
        retry: the policy, with what it remembers.
        wait: waits so many seconds; says whether to stop altogether.
        failed: told of each failure that will be tried again, and of the pause before.

    Raises:
        ToonstreamError: the last failure, when patience ended.
    """
    while True:
        try:
            attempt(retry.worked)
        except ToonstreamError as error:
            pause = retry.failed()
            if pause is None:
                raise
            failed(error, pause)
            if wait(pause):
                return
        else:
            return
