"""All sessions of a server: who may come in, who is there, and the end of them all."""

import asyncio
import itertools
import logging
from collections import OrderedDict
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn

from toonstream.errors import InputError
from toonstream.server.live import Change, Figures, OpenLive
from toonstream.server.metrics import Metrics
from toonstream.server.sdp import Offer
from toonstream.server.sessions import Session
from toonstream.server.settings import ServerSettings
from toonstream.server.stage import Stage, Watcher

__all__ = ["Ended", "Full", "Registry"]

_log = logging.getLogger(__name__)

_FLUSH = 0.7  # of the time that closing may take is for what is in flight
REMEMBERED = 64  # ended sessions whose reason can still be asked for


class Full(Exception):
    """There is no room, or the server is about to end; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What is kept in mind of a session that has ended.

    Attributes:
        reason: for people.
        watch_key: of its watch link.
        cut_off: whether there was no goodbye, so that its publisher may want to come back.
    """

    reason: str
    watch_key: str
    cut_off: bool


class Registry:
    """The sessions, by their keys. Belongs to one event loop.

    Args:
        settings: of the server.
        open_live: opens the live core of a new session.

    Attributes:
        closed_because: nobody is admitted while it says why.
        left_behind: whether something did not end in time when all was closed.
        metrics: what `/metrics` shows.
    """

    def __init__(self, settings: ServerSettings, open_live: OpenLive) -> None:
        self._settings = settings
        self._open_live = open_live
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="toonstream-media")
        self._numbers = itertools.count(1)
        self._sessions: dict[str, Session] = {}
        self._by_watch_key: dict[str, Session] = {}
        self._coming_names: set[str] = set()  # watch keys of sessions that are being answered
        self._shown: dict[str, Stage] = {}  # by watch key: what no publisher of ours brings
        self._held: OrderedDict[str, tuple[Stage, asyncio.TimerHandle]] = OrderedDict()  # by watch key
        self._watchers: dict[str, tuple[Stage, Watcher]] = {}
        self._coming = 0  # sessions and ...
        self._coming_watchers = 0  # ... watchers that are being answered
        self._ended: OrderedDict[str, Ended] = OrderedDict()  # by key
        self._closing = 0  # sessions that still take a place, because not everything of theirs is closed
        self._tasks: set[asyncio.Task[None]] = set()
        self._past_drops: dict[tuple[str, str], int] = {}
        self.closed_because: str | None = None
        self.left_behind = False
        self.metrics = Metrics(self._core_drops, self.figures)

    def session(self, key: str) -> Session | None:
        """The session of a publisher's key."""
        return self._sessions.get(key)

    def watched(self, watch_key: str) -> Stage | None:
        """The stage that a watch link leads to."""
        if watch_key in self._held:
            return self._held[watch_key][0]
        if watch_key in self._shown:
            return self._shown[watch_key]
        session = self._by_watch_key.get(watch_key)
        return None if session is None else session.stage

    def watcher(self, key: str) -> Watcher | None:
        """The watcher of a key."""
        found = self._watchers.get(key)
        return None if found is None else found[1]

    def reason(self, key: str) -> str | None:
        """Why a session ended that is no longer there; None for one that never was."""
        return self._ended[key].reason if key in self._ended else None

    def ended(self, key: str) -> "Ended | None":
        """What is known of a session that is no longer there."""
        return self._ended.get(key)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """All that are there."""
        return tuple(self._sessions.values())

    async def refresh(self) -> None:
        """Have all sessions read how they do."""
        await asyncio.gather(*(session.refresh() for session in self.sessions))

    def figures(self) -> dict[int, Figures]:
        """How each session does, by its number, as of the last `refresh`."""
        return {session.number: session.figures() for session in self.sessions}

    async def publish(
        self, offer: Offer, change: Change, *, watch_key: str | None = None, resume: str | None = None
    ) -> tuple[Session, str]:
        """Admit a publisher; gives the answer's SDP with its session.

        Args:
            offer: of the client.
            change: its first settings.
            watch_key: its own name for the watch link, or None for one that cannot be guessed.
            resume: the key of a session of its own before, whose watch link it takes over with all who watch.

        Raises:
            Full: no room.
            InputError: the offer or the settings make no sense.
            ToonstreamError: the live core cannot be opened.
        """
        if "video" not in offer.sends:
            self.metrics.offers.labels("whip", "invalid").inc()
            raise InputError("the offer sends no video: there is nothing to draw")
        if self.closed_because is not None:
            self._refuse("whip", self.closed_because)
        before = self._sessions.get(resume or "")
        if before is not None:  # that it is gone is known there sooner than here
            await self.end(before, "its publisher came anew", leave=True)
        if watch_key is None and resume is not None and resume in self._ended:
            watch_key = self._ended[resume].watch_key
        if len(self._sessions) + self._coming + self._closing >= self._settings.max_sessions:
            self._refuse("whip", f"all {self._settings.max_sessions} sessions are taken: try again later")
        if not all(session.leaves_room for session in self.sessions):
            self._refuse("whip", "the machine cannot draw fast enough for who is here: try again later")
        self._check_name(watch_key)
        held = self._take_held(watch_key or "")
        stage = held or Stage(
            settings=self._settings,
            threads=self._threads,
            metrics=self.metrics,
            failed=lambda reason: None,
            watch_key=watch_key,
        )
        session = Session(
            next(self._numbers),
            settings=self._settings,
            threads=self._threads,
            metrics=self.metrics,
            ended=self._session_over,
            stage=stage,
        )
        self._coming += 1
        self._coming_names.add(stage.watch_key)
        try:
            answer = await session.begin(offer, change, self._open_live)
            if self.closed_because is not None:
                self._refuse("whip", self.closed_because)
        except BaseException as error:
            outcome = "invalid" if isinstance(error, InputError) else "failed"
            self.metrics.offers.labels("whip", outcome).inc()
            if held is not None and self.closed_because is None:
                self._hold(held)
                await session.close(leave=True)
            else:
                self._forget_watchers(stage)
                await session.close()
            raise
        finally:
            self._coming -= 1
            self._coming_names.discard(stage.watch_key)
        self.metrics.offers.labels("whip", "accepted").inc()
        stage.take_up(session.over)
        self._sessions[session.key] = session
        self._by_watch_key[session.watch_key] = session
        self.metrics.sessions.set(len(self._sessions))
        _log.info("session %d: began%s", session.number, "" if held is None else ", before those who waited")
        if session.over_because is not None:
            self._session_over(session, session.over_because)
        return session, answer

    def show(self, watch_key: str) -> Stage:
        """Open a stage for what comes from elsewhere."""
        self._check_name(watch_key)
        self._shown[watch_key] = Stage(
            settings=self._settings,
            threads=self._threads,
            metrics=self.metrics,
            failed=lambda reason: self._spawn(self.unshow(watch_key)),
            watch_key=watch_key,
        )
        return self._shown[watch_key]

    async def unshow(self, watch_key: str) -> None:
        """Close it, once what waits is sent."""
        stage = self._shown.pop(watch_key, None)
        if stage is not None:
            await stage.drain()
            self._forget_watchers(stage)
            await stage.close()

    async def watch(self, stage: Stage, offer: Offer) -> tuple[Watcher, str]:
        """Admit a watcher; gives the answer's SDP with it.

        Raises:
            Full: no room.
            InputError: the offer makes no sense.
        """
        if not {"audio", "video"} & {*offer.receives}:
            self.metrics.offers.labels("whep", "invalid").inc()
            raise InputError("the offer takes neither video nor sound: offer recvonly sections")
        if self.closed_because is not None:
            self._refuse("whep", self.closed_because)
        if len(self._watchers) + self._coming_watchers >= self._settings.max_watchers:
            self._refuse("whep", f"all {self._settings.max_watchers} places to watch are taken")
        self._coming_watchers += 1
        try:
            watcher, answer = await stage.watch(offer, self._watcher_over)
        except InputError:
            self.metrics.offers.labels("whep", "invalid").inc()
            raise
        finally:
            self._coming_watchers -= 1
        self.metrics.offers.labels("whep", "accepted").inc()
        self._watchers[watcher.key] = (stage, watcher)
        self.metrics.watchers.set(len(self._watchers))
        gone = self.watched(stage.watch_key) is not stage and stage.watch_key not in self._coming_names
        if gone or watcher.peer.state in ("failed", "closed"):
            self._spawn(self.leave(watcher.key))
        return watcher, answer

    async def leave(self, key: str) -> None:
        """A watcher goes."""
        stage, watcher = self._watchers.pop(key, (None, None))
        self.metrics.watchers.set(len(self._watchers))
        if stage is not None and watcher is not None:
            stage.watchers.pop(key, None)
            if stage.held and not stage.watchers:
                self._spawn(self._let_go(stage.watch_key))
            await watcher.close()

    async def end(
        self, session: Session, reason: str, *, flush: float = 0.0, leave: bool | None = None
    ) -> None:
        """End a session, which frees its place once everything of it is closed.

        Args:
            session: which.
            reason: for people; of several lines, one is made.
            flush: seconds that showing what is in flight may take.
            leave: whether those who watch are kept, for its publisher to come back; None: if it was cut off.
        """
        if self._sessions.pop(session.key, None) is None:
            return
        reason = " ".join(reason.split())
        self._by_watch_key.pop(session.watch_key, None)
        cut_off = session.cut_off or session.peer.cut_off
        self._ended[session.key] = Ended(
            reason=reason,
            watch_key=session.watch_key,
            cut_off=cut_off or self.closed_because is not None,  # and the server may be started anew
        )
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
        self.metrics.sessions.set(len(self._sessions))
        leave = cut_off if leave is None else leave
        leave = leave and bool(session.watchers) and self.closed_because is None
        waiting = f"; {len(session.watchers)} who watch wait for it to come back" if leave else ""
        _log.info("session %d: ended: %s%s", session.number, reason, waiting)
        if leave:
            self._hold(session.stage)
        else:
            self._forget_watchers(session.stage)
        self._closing += 1
        try:
            await session.close(flush=flush, leave=leave)
        finally:
            self._closing -= 1
            for place, count in session.core_drops().items():
                self._past_drops[place] = self._past_drops.get(place, 0) + count

    async def close(self, seconds: float) -> None:
        """Stop admitting, show what is in flight, say goodbye to all, within so many seconds."""
        self.closed_because = "the server is about to end"
        flush = _FLUSH * seconds
        for session in self.sessions:
            self._spawn(self.end(session, "the server ends", flush=flush))
        for watch_key in tuple(self._held):
            self._spawn(self._let_go(watch_key))
        for watch_key in tuple(self._shown):
            self._spawn(self.unshow(watch_key))
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            self.left_behind = bool(late)
            if late:
                _log.warning("not everything was closed within %g s", seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _hold(self, stage: Stage) -> None:
        """Keep those who watch a stage, for so long as a publisher may take to come back."""
        wait = asyncio.get_running_loop().call_later(
            self._settings.limits.return_seconds, lambda: self._spawn(self._let_go(stage.watch_key))
        )
        self._held[stage.watch_key] = stage, wait
        stage.hold(lambda reason: self._spawn(self._let_go(stage.watch_key)))
        self.metrics.held.set(len(self._held))
        if len(self._held) > self._settings.max_sessions:
            self._spawn(self._let_go(next(iter(self._held))))

    def _take_held(self, watch_key: str) -> Stage | None:
        stage, wait = self._held.pop(watch_key, (None, None))
        if wait is not None:
            wait.cancel()
        self.metrics.held.set(len(self._held))
        return stage

    async def _let_go(self, watch_key: str) -> None:
        """Nobody came back."""
        stage = self._take_held(watch_key)
        if stage is not None:
            self._forget_watchers(stage)
            await stage.close()

    def _forget_watchers(self, stage: Stage) -> None:
        for key in stage.watchers:
            self._watchers.pop(key, None)
        self.metrics.watchers.set(len(self._watchers))

    def _check_name(self, watch_key: str | None) -> None:
        if watch_key in {*self._by_watch_key, *self._coming_names, *self._shown}:
            raise InputError(f"somebody publishes as {watch_key!r}: take another name")

    def _refuse(self, endpoint: str, reason: str) -> NoReturn:
        self.metrics.offers.labels(endpoint, "full").inc()
        raise Full(reason)

    def _session_over(self, session: Session, reason: str) -> None:
        self._spawn(self.end(session, reason))

    def _watcher_over(self, watcher: Watcher, reason: str) -> None:
        self._spawn(self.leave(watcher.key))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _core_drops(self) -> Mapping[tuple[str, str], int]:
        total = dict(self._past_drops)
        for session in self.sessions:  # a copy: this is asked for on a thread
            for place, count in session.core_drops().items():
                total[place] = total.get(place, 0) + count
        return total
