"""One stream to many watchers: encoded once per codec, paced, and never held up by one of them."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Generic, Protocol, TypeVar

from toonstream.server.encode import Encoded, Encoder
from toonstream.stream.clock import Clock, monotonic
from toonstream.stream.delay import Delay

__all__ = ["AnyLane", "Drop", "Lane", "Subscription", "Timed"]

T = TypeVar("T")

RING = 60  # packets that wait for one watcher
WAITING = 64  # frames that wait to be encoded: more than the longest burst of a rolling window
OVERDUE = 0.2  # seconds after which a frame gives way to the one behind it
KEY_PAUSE = 0.5  # seconds at least between key frames that watchers ask for

Drop = Callable[[str, str], None]
"""Is told the place and the reason of a drop."""

Timed = Callable[[str, str, float], None]
"""Is told `stage` or `wait`, its name, and the seconds that it took."""


class Subscription:
    """One watcher's share of a lane: a ring of packets that begins with a key frame.

    When the watcher does not keep up, the ring is emptied and begins again at the next key frame: what is
    shown is fresh, and nobody else notices.
    """

    def __init__(self, wants_key: Callable[[], None], dropped: Drop) -> None:
        self._wants_key = wants_key
        self._dropped = dropped
        self._packets: deque[Encoded] = deque()
        self._arrived = asyncio.Event()
        self._in_step = False
        self._closed = False

    @property
    def waiting(self) -> int:
        """Packets in the ring."""
        return len(self._packets)

    def offer(self, encoded: Encoded) -> None:
        """Take one packet, or leave it out."""
        if self._closed:
            return
        if len(self._packets) >= RING:
            for _ in self._packets:
                self._dropped("watcher", "slow")
            self._packets.clear()
            self._in_step = False
            self._wants_key()
        if not self._in_step and not encoded.key:
            return
        self._in_step = True
        self._packets.append(encoded)
        self._arrived.set()

    async def next(self) -> Encoded | None:
        """Wait for the next packet; None once the lane has ended."""
        while not self._packets:
            if self._closed:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._packets.popleft()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._arrived.set()


class AnyLane(Protocol):
    """What a watcher wants of a lane, whatever goes in at its other end."""

    def subscribe(self) -> Subscription:
        """Begin to watch."""
        ...

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop watching."""
        ...

    def want_key(self) -> None:
        """Ask for a key frame."""
        ...


class Lane(Generic[T]):
    """Encodes frames of one kind with one codec, and hands each packet to everybody when it is due.

    Nothing is encoded while nobody watches. Encoding runs in `threads`, one frame at a time.

    Args:
        make_encoder: called when the first watcher is there.
        captured_at: when an item was captured, on the clock's time.
        delay: says when it is due.
        threads: where to encode.
        dropped: is told of drops.
        leading: this lane decides the delay; sound only follows.
        sent: is told the seconds from capture to hand-out of every packet.
        failed: is told why encoding cannot go on.
        timed: is told how long encoding takes, and how long frames wait before and after it.
        aged: is told how many seconds old every frame is when it could go out, or gives way.
        clock: the time.
    """

    def __init__(
        self,
        make_encoder: Callable[[], Encoder],
        captured_at: Callable[[T], float],
        delay: Delay,
        *,
        threads: Executor,
        dropped: Drop,
        leading: bool,
        sent: Callable[[float], None] = lambda latency: None,
        failed: Callable[[str], None] = lambda reason: None,
        timed: Timed = lambda kind, name, seconds: None,
        aged: Callable[[float], None] = lambda seconds: None,
        clock: Clock = monotonic,
    ) -> None:
        self._make_encoder = make_encoder
        self._captured_at = captured_at
        self._delay = delay
        self._threads = threads
        self._dropped = dropped
        self._leading = leading
        self._sent = sent
        self._failed = failed
        self._timed = timed
        self._aged = aged
        self._clock = clock
        self._waiting: deque[tuple[T, float]] = deque()  # with the time that each came
        self._arrived = asyncio.Event()
        self._subscriptions: set[Subscription] = set()
        self._ended = False
        self._key_wanted = False
        self._last_key = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._encoder: Encoder | None = None
        self.encoded = 0

    def subscribe(self) -> Subscription:
        """Begin to watch."""
        subscription = Subscription(self.want_key, self._dropped)
        if self._ended:
            subscription.close()
            return subscription
        self._subscriptions.add(subscription)
        self._key_wanted = True
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="lane")
            self._task.add_done_callback(self._note_failure)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop watching."""
        subscription.close()
        self._subscriptions.discard(subscription)

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._subscriptions)

    def want_key(self) -> None:
        """Somebody cannot go on without a key frame; the next frame is one, unless one was sent just now."""
        self._key_wanted = True

    def feed(self, item: T) -> None:
        """Take the next frame. The oldest one gives way where encoding does not keep up."""
        if not self._subscriptions or self._ended:
            return
        if len(self._waiting) >= WAITING:
            self._waiting.popleft()
            self._dropped("encode", "late")
        self._waiting.append((item, self._clock()))
        self._arrived.set()

    def end(self) -> None:
        """No more frames come: what waits is still sent, then every subscription ends."""
        self._ended = True
        self._arrived.set()
        if self._task is None:
            self._close_all()

    async def close(self) -> None:
        """End at once."""
        self.end()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._task = self._encoder = None  # it has threads, which should not wait for Python to tidy up
        self._close_all()

    async def drained(self) -> None:
        """Wait until what waited at `end` is sent."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def _close_all(self) -> None:
        for subscription in self._subscriptions:
            subscription.close()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        self._encoder = self._make_encoder()
        while True:
            while not self._waiting:
                if self._ended:
                    self._close_all()
                    return
                self._arrived.clear()
                await self._arrived.wait()
            item, came = self._waiting.popleft()
            begin = self._clock()
            self._timed("wait", "encode", begin - came)
            if self._leading:
                self._delay.ready(self._captured_at(item), came)
            if self._waiting and begin > self._delay.latest(self._captured_at(item), grace=OVERDUE):
                self._dropped("encode", "late")
                self._aged(begin - self._captured_at(item))
                continue
            packets = await loop.run_in_executor(
                self._threads, partial(self._encoder.encode, item, key=self._takes_key())
            )
            encoding = self._clock() - begin
            self._timed("stage", "encode", encoding)
            self._aged(self._clock() - self._captured_at(item))
            if self._leading:  # the time spent waiting for the frames before is not this one's fault
                self._delay.ready(self._captured_at(item), came + encoding)
            for encoded in packets:
                early = self._delay.due(encoded.captured_at) - self._clock()
                self._timed("wait", "playout", max(0.0, early))
                await self._pause(early)
                self.encoded += 1
                self._sent(self._clock() - encoded.captured_at)
                for subscription in tuple(self._subscriptions):
                    subscription.offer(encoded)

    def _note_failure(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._close_all()
            self._failed(f"encoding failed: {type(error).__name__}: {error}")

    def _takes_key(self) -> bool:
        now = self._clock()
        if not self._key_wanted or now - self._last_key < KEY_PAUSE:
            return False
        self._key_wanted, self._last_key = False, now
        return True

    @staticmethod
    async def _pause(seconds: float) -> None:
        if seconds > 0.0:
            await asyncio.sleep(seconds)
