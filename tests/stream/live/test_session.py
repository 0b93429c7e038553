"""Sessions with their threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from toonstream.config import Size
from toonstream.errors import EngineError, InputError
from toonstream.stream.frame import Frame
from toonstream.stream.live.session import LiveSession
from toonstream.stream.live.settings import LiveSettings

PATIENCE = 60.0  # seconds; a test that waits so long has failed
SETTINGS = LiveSettings(size=Size(exact=(512, 384)))


class Open:
    """A session whose frames all come through, and what came of it."""

    def __init__(self, live, *, deliver=None, machine=None):
        self.live = live
        self.machine = machine or live.Machine(slowness=lambda now: 0.0)
        self.toons, self.ends, self.events = [], [], []
        self.session = LiveSession(
            self.machine,
            SETTINGS,
            deliver=deliver or self.toons.append,
            ended=lambda end: self.ends.append((end, len(self.toons))),
            notify=self.events.append,
            clock=self.machine.clock,
        )
        inbox = self.session._core.inbox
        inbox._capacity = 1000
        inbox.set = lambda **how: None
        self.offered = 0

    def offer(self, frames):
        for _ in range(frames):
            image = self.live.picture(level=self.offered % 256)
            frame = Frame(index=0, pts=self.offered, time_base=self.live.time_base, image=image)
            self.machine.now = max(self.machine.now, float(self.offered) / 1000)
            self.session.offer(frame, float(self.offered) / 1000)
            self.offered += 1


def test_finishing_delivers_all_and_then_says_so_once(live):
    one = Open(live)
    one.offer(25)
    one.session.finish()
    assert one.session.wait(PATIENCE)
    assert [toon.toon.pts for toon in one.toons] == list(range(25))
    assert one.ends == [(one.session.end, 25)]
    assert one.session.end.reason == "finished"
    assert one.events[-1].kind == "end"
    one.offer(2)
    assert [(drop.reason, drop.count) for drop in one.session.statistics().drops] == [("closed", 2)]


def test_finishing_without_a_frame_is_an_end_too(live):
    one = Open(live)
    one.session.finish()
    assert one.session.wait(PATIENCE)
    assert one.session.end.reason == "finished"
    assert one.toons == []


def test_closing_drops_and_counts_what_is_in_flight(live):
    inside, go_on = threading.Event(), threading.Event()

    def deliver(toon):
        inside.set()
        assert go_on.wait(PATIENCE)

    one = Open(live, deliver=deliver)
    one.offer(10)
    assert inside.wait(PATIENCE)
    one.session.close()
    go_on.set()
    assert one.session.wait(PATIENCE)
    assert one.session.end.reason == "closed"
    figures = one.session.statistics()
    assert {drop.place for drop in figures.drops} == {"input", "flight"}
    assert figures.frames_in == figures.frames_out + figures.dropped == 10


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            EngineError("the engine has no memory left; take a smaller --size"),
            "the engine has no memory left",
        ),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_a_failure_ends_that_session_with_a_reason_and_no_other(live, error, message):
    machine = live.Machine(slowness=lambda now: 0.0)
    well = Open(live, machine=machine)

    def fail(toon):
        raise error

    ill = Open(live, deliver=fail, machine=machine)
    for one in (ill, well):
        one.offer(20)
        one.session.finish()
    assert ill.session.wait(PATIENCE)
    assert well.session.wait(PATIENCE)
    assert ill.session.end.reason == "failed"
    assert message in ill.session.end.message
    assert well.session.end.reason == "finished"
    assert len(well.toons) == 20
    figures = ill.session.statistics()
    assert figures.frames_in == figures.frames_out + figures.dropped


def test_a_network_that_fails_in_the_middle_ends_the_session(live):
    one = Open(live, machine=live.Machine(slowness=lambda now: 0.0, fails_at=0.010))
    one.offer(20)
    one.session.finish()
    assert one.session.wait(PATIENCE)
    assert one.session.end.message == "RuntimeError: the network has failed"


def test_settings_that_cannot_be_met_start_nothing(live):
    threads = threading.active_count()
    with pytest.raises(InputError, match="no style"):
        LiveSession(live.Machine(), LiveSettings(style="oil"), deliver=print)
    assert threading.active_count() == threads


def test_many_threads_may_offer_change_and_ask_at_once(live):
    one = Open(live)

    def act(number):
        for turn in range(20):
            one.session.change(LiveSettings(size=SETTINGS.size, seed=turn, window=1 + number % 4, stride=1))
            one.session.statistics()
            one.session.note_drop("screen", "slow")

    with ThreadPoolExecutor(4) as threads:
        for number in range(4):
            threads.submit(act, number)
        one.offer(60)
    one.session.finish()
    assert one.session.wait(PATIENCE)
    assert one.session.end.reason == "finished"
    assert [toon.toon.pts for toon in one.toons] == list(range(60))
    assert one.session.statistics().drops[-1].count == 80


def test_what_was_shown_is_noted(live):
    machine = live.Machine(slowness=lambda now: 0.0)
    toons = []
    session = LiveSession(machine, SETTINGS, deliver=toons.append, clock=machine.clock)
    for pts in range(5):
        machine.now = pts / 1000
        frame = Frame(index=0, pts=pts, time_base=live.time_base, image=live.picture())
        session.offer(frame, pts / 1000)
    session.finish()
    assert session.wait(PATIENCE)
    for toon in toons:
        session.note_shown(toon, toon.captured_at + 0.25)
    assert session.statistics().shown.p50 == pytest.approx(0.25)
