"""The controller alone, and in the live core on a machine that takes simulated time."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.config import Size
from toonstream.stream.live.controller import Controller, Forecast, Forecaster, ladder
from toonstream.stream.live.costs import DELIVERED, STEADYING, Costs, Shape
from toonstream.stream.live.settings import LiveSettings, Plan
from toonstream.stream.live.statistics import Percentiles

WISH = Plan(size=(512, 384), steps=2, window=8, stride=4)
ORDER = ("every", "windowing", "steps", "size")  # the last gives way first


def known(**seconds: float) -> Costs:
    """A machine where a frame of 512x384 takes so long in each stage."""
    costs = Costs()
    for stage, each in seconds.items():
        for _ in range(10):
            costs.observe(stage, Shape(512, 384), each)
    return costs


def test_a_forecast_counts_the_look_ahead_at_the_rate_that_is_kept():
    costs = known(
        conditions=0.001, hint_outline=0.002, controlnet_outline=0.003, unet=0.004, vae_decoder=0.005
    )
    plan = Plan(size=(512, 384), steps=1, window=4, stride=2)
    burst = 4 * 0.004 + 2 * 0.003
    expected = Forecast(
        latency=pytest.approx(3 / 30 + 0.003 + burst + 0.005),
        load=pytest.approx((burst + 2 * 0.008) * 30 / 2),
    )
    forecast = Forecaster(costs, fps=30.0)
    assert forecast(plan) == expected
    halved = forecast(replace(plan, every=2))
    assert halved.latency == pytest.approx(3 / 15 + 0.003 + burst + 0.005)
    guided = forecast(replace(plan, steps=3, guidance=2.0, every=4))
    assert guided.latency == pytest.approx(4 * 7 / 30 + 0.003 + 3 * 2 * burst + 0.005)
    # Anchored, the number of steps adds work and no look-ahead.
    anchored = forecast(replace(plan, steps=3, guidance=2.0, every=4, mode="anchored"))
    assert anchored.latency == pytest.approx(4 * 1 / 30 + 0.003 + 3 * 2 * burst + 0.005)
    assert anchored.load == guided.load


def test_what_cannot_keep_up_takes_frames_in_as_it_can_and_they_wait_for_the_window_before():
    costs = known(unet=0.05)
    plan = Plan(size=(512, 384), steps=1, window=4, stride=2)
    forecast = Forecaster(costs, fps=30.0)(plan)
    assert forecast.load == pytest.approx(0.2 * 30 / 2)
    assert forecast.latency == pytest.approx(3 * 0.1 + 0.2 + 0.2)


def test_what_waits_for_other_frames_is_not_the_least():
    """The least of all is what makes frames the least old, however much it has to leave out."""
    costs = known(unet=0.25)
    controller = Controller(costs, replace(WISH, size=(128, 128)), promise=0.001)
    plan = controller.decide(fps=30.0, now=0.0).plan
    assert (plan.window, plan.stride) == (1, 1)


def test_how_old_frames_turn_out_counts_and_not_the_networks_alone():
    costs = known(unet=0.001)  # they take no time
    controller = Controller(costs, WISH, promise=0.8, multiple=32)
    first = controller.decide(fps=30.0, now=0.0).plan
    assert first == WISH
    now = 0.0
    for _ in range(8 * 30):
        now += 1 / 30
        controller.observe_latency(0.9, fps=30.0, now=now)
        plan = controller.decide(fps=30.0, now=now).plan
    assert (plan.window, plan.steps) < (WISH.window, WISH.steps)
    for _ in range(60 * 30):
        now += 1 / 30
        controller.observe_latency(0.05, fps=30.0, now=now)
        plan = controller.decide(fps=30.0, now=now).plan
    assert plan == WISH


def test_one_hiccup_changes_nothing_and_two_losses_in_a_row_do():
    controller = Controller(known(unet=0.001), WISH, promise=0.8, multiple=32)
    assert controller.decide(fps=30.0, now=0.0).plan == WISH
    controller.observe_loss(2.0, fps=30.0, now=1.0)
    assert controller.decide(fps=30.0, now=1.0, urgent=True).plan == WISH
    controller.observe_loss(2.0, fps=30.0, now=1.5)
    assert controller.decide(fps=30.0, now=1.5, urgent=True).plan.window < WISH.window


def test_what_is_asked_for_gives_way_in_the_stated_order():
    plans = list(ladder(WISH, multiple=32))
    assert plans[0] == WISH
    assert len(plans) == len(set(plans))
    found = {name: [] for name in ORDER}
    for plan in plans:
        values = {"every": plan.every, "windowing": (plan.window, plan.stride)}
        for name, value in (values | {"steps": plan.steps, "size": plan.size}).items():
            if value not in found[name]:
                found[name].append(value)
    places = [
        tuple(
            found[name].index(value)
            for name, value in zip(ORDER, (p.every, (p.window, p.stride), p.steps, p.size), strict=True)
        )
        for p in plans
    ]
    assert places == sorted(places)
    assert found["size"] == [(512, 384), (416, 320), (352, 256), (256, 192)]
    assert found["steps"] == [2, 1]
    assert found["windowing"][:4] == [(8, 4), (8, 6), (8, 8), (4, 2)]
    assert found["windowing"][-1] == (1, 1)


@given(
    st.builds(
        Plan,
        size=st.tuples(st.integers(16, 2000), st.integers(16, 2000)),
        steps=st.integers(1, 50),
        window=st.integers(1, 32),
        stride=st.just(1),
    )
)
@settings(max_examples=40, deadline=None)
def test_all_that_may_be_run_can_be_run(wish):
    plans = list(ladder(wish, multiple=32))
    assert plans[0] == wish
    for plan in plans:
        assert 1 <= plan.stride <= plan.window <= wish.window
        assert 1 <= plan.steps <= wish.steps
        assert min(plan.size) >= min(128, *wish.size)
        assert plan.size == wish.size or all(side % 32 == 0 for side in plan.size)
    assert plans[-1].window == plans[-1].steps == 1


def test_without_a_promise_what_is_asked_for_is_run_once_it_is_ready():
    controller = Controller(known(unet=10.0), WISH, promise=None)
    assert controller.decide(fps=30.0, now=0.0).plan == WISH
    other = replace(WISH, steps=1)
    controller.ask(other, promise=None)
    assert controller.decide(fps=30.0, now=1.0).plan == other


def test_size_gives_way_before_anything_else_and_frame_rate_last():
    quick, slow, slower = (
        Controller(known(unet=seconds), WISH, promise=0.8, multiple=32).decide(fps=30.0, now=0.0).plan
        for seconds in (0.001, 0.01, 0.3)
    )
    assert quick == WISH
    assert slow == replace(WISH, size=slow.size)
    assert slow.size < WISH.size
    assert slower.every > 1


def test_a_plan_that_is_not_ready_is_desired_and_another_is_run():
    controller = Controller(known(unet=0.01), WISH, promise=0.8, multiple=32)
    decision = controller.decide(fps=30.0, now=0.0, ready=lambda plan: plan.size == WISH.size)
    assert decision.plan == replace(WISH, stride=decision.plan.stride, steps=decision.plan.steps)
    assert decision.plan != WISH
    assert decision.desired == replace(WISH, size=decision.desired.size)


def test_what_cannot_be_built_is_left_out():
    controller = Controller(known(unet=0.01), WISH, promise=0.8, multiple=32)
    first = controller.decide(fps=30.0, now=0.0, ready=lambda plan: False).desired
    controller.bar(first)
    second = controller.decide(fps=30.0, now=1.0, ready=lambda plan: False).desired
    assert second.size != first.size
    only = Controller(known(unet=0.01), WISH, promise=None)
    only.bar(WISH)
    assert only.decide(fps=30.0, now=0.0).plan == WISH


def test_one_bad_decision_changes_nothing_and_two_do():
    costs = known(unet=0.005)
    controller = Controller(costs, WISH, promise=0.8, multiple=32)
    first = controller.decide(fps=30.0, now=0.0).plan
    assert controller.decide(fps=90.0, now=0.1).plan == first
    assert controller.decide(fps=90.0, now=0.2).plan != first


def test_when_nothing_fits_the_least_is_run_and_it_is_said():
    decision = Controller(known(unet=50.0), WISH, promise=0.1, multiple=32).decide(fps=30.0, now=0.0)
    assert not decision.kept
    assert decision.plan.every == 12
    assert decision.plan.window == 1


def latencies(machine, since: float = 0.0) -> list[float]:
    return [toon.committed_at - toon.captured_at for toon in machine.toons if toon.captured_at >= since]


def changes(machine, since: float = 0.0) -> list[str]:
    return [event.message for event in machine.events if event.kind == "plan" and event.at >= since]


def settings_for(promise: float) -> LiveSettings:
    return LiveSettings(latency=promise, size=Size(short=384))


@pytest.mark.parametrize(
    ("promise", "minutes", "odd"),
    [
        (0.2, 2.0, {}),
        (0.4, 1.0, {}),
        (1.0, 1.0, {}),
        (0.4, 1.0, {"power": 1.4}),
        (0.3, 1.0, {"overhead": 0.001}),
        (0.4, 1.0, {"builds": 3.0}),
    ],
)
def test_under_twice_the_load_it_can_bear_the_promise_is_kept_and_all_comes_back_after(
    live, promise, minutes, odd
):
    heavy = (10.0, 10.0 + 60.0 * minutes)
    machine = live.Machine(slowness=lambda now: 2.0 if heavy[0] <= now < heavy[1] else 0.4, **odd)
    machine.play(settings_for(promise), heavy[1])
    under_load = Percentiles.of(latencies(machine, since=heavy[0]))
    assert under_load.p99 <= 1.5 * promise
    assert under_load.p95 <= promise
    assert under_load.count >= 60.0 * minutes * 10  # not by dropping all
    middle = (heavy[0] + heavy[1]) / 2
    first, last = latencies(machine, since=middle)[:450], latencies(machine, since=heavy[1] - 15.0)
    assert Percentiles.of(last).p95 <= 1.05 * Percentiles.of(first).p95  # it does not grow
    machine.play(settings_for(promise), 60.0)
    assert machine.core.plan.every == 1
    assert machine.core.plan == machine.toons[0].plan
    assert Percentiles.of(latencies(machine, since=heavy[1] + 1.0)).p99 <= promise
    assert len(changes(machine, since=heavy[1])) <= 6
    if not machine.builds:
        assert not [event for event in machine.events if event.kind == "promise"]
    indices = [toon.toon.index for toon in machine.toons]
    assert indices == list(range(len(indices)))
    pts = [toon.toon.pts for toon in machine.toons]
    assert pts == sorted(set(pts))


@given(
    slowness=st.floats(0.05, 8.0),
    promise=st.floats(0.15, 1.5),
    fps=st.sampled_from([12.0, 24.0, 30.0, 60.0]),
    unevenness=st.floats(0.0, 0.4),
    power=st.floats(0.8, 1.5),
)
@settings(max_examples=6, deadline=None)
def test_under_an_even_load_it_settles_and_does_not_oscillate(
    live, slowness, promise, fps, unevenness, power
):
    machine = live.Machine(
        slowness=lambda now: slowness, fps=lambda now: fps, unevenness=unevenness, power=power
    )
    machine.play(settings_for(promise), 60.0)
    assert len(changes(machine, since=20.0)) <= 4
    if not [event for event in machine.events if event.kind == "promise"]:
        assert Percentiles.of(latencies(machine, since=5.0)).p99 <= 1.5 * promise


@given(
    steps=st.lists(st.tuples(st.floats(5.0, 20.0), st.floats(0.1, 3.0)), min_size=2, max_size=5),
    promise=st.floats(0.25, 1.0),
)
@settings(max_examples=6, deadline=None)
def test_under_a_load_that_changes_latency_stays_and_changes_are_few(live, steps, promise):
    ends, end = [], 0.0
    for seconds, slowness in steps:
        end += seconds
        ends.append((end, slowness))
    machine = live.Machine(slowness=lambda now: next((s for until, s in ends if now < until), 1.0))
    machine.play(settings_for(promise), end)
    assert len(changes(machine)) <= 8 * len(steps)
    waited = Percentiles.of(latencies(machine))
    assert waited.p95 <= 1.5 * promise


def test_an_endlessly_slow_machine_lets_nothing_pile_up(live):
    machine = live.Machine(slowness=lambda now: 60.0)
    machine.play(settings_for(0.2), 180.0)
    late = latencies(machine)
    assert [event.kind for event in machine.events].count("promise") == 1
    assert not machine.core.statistics().kept
    assert max(late[len(late) // 2 :]) <= max(late[: len(late) // 2])
    assert machine.core.plan.window == 1


def test_a_source_that_slows_down_is_followed(live):
    machine = live.Machine(fps=lambda now: 30.0 if now < 20 else 10.0)
    machine.play(settings_for(0.25), 60.0)
    # Three frames of look-ahead at 10 fps are more than was promised.
    assert machine.core.plan.window < 4
    assert Percentiles.of(latencies(machine, since=30.0)).p99 <= 0.25


def warm(machine) -> None:
    """What `SharedNetworks.warm_up` does before anyone waits: sizes that give way, and the least of all."""
    for size in ((512, 384), (416, 320), (352, 256), (256, 192)):
        machine.ready[size, 4, 3] = 0.0
    machine.ready[(256, 192), 1, 1] = 0.0


@pytest.mark.parametrize(
    ("promise", "odd"),
    [
        (0.2, {}),
        (0.3, {"turn": 0.1, "overhead": 0.002}),
        (0.4, {"turn": 0.05, "untimed": 1.0}),
        (0.3, {"turn": 0.1, "builds": 5.0}),
    ],
)
def test_where_other_programs_want_the_cores_latency_stays_and_all_comes_back_after(live, promise, odd):
    shares = (1.0, 0.3, 0.1, 0.5, 0.05)  # of the time, 15 s each
    machine = live.Machine(
        slowness=lambda now: 0.3, share=lambda now: shares[int(now / 15)] if now < 75 else 1.0, **odd
    )
    warm(machine)
    machine.play(settings_for(promise), 75.0)
    waited = Percentiles.of(latencies(machine))
    assert waited.p99 <= 1.5 * promise
    assert waited.count >= 5 * 75  # not by dropping all
    machine.play(settings_for(promise), 75.0)
    assert machine.core.plan == machine.toons[0].plan
    indices = [toon.toon.index for toon in machine.toons]
    assert indices == list(range(len(indices)))
    figures = machine.core.statistics()
    inside = machine.core.in_flight + machine.core.inbox.waiting
    assert figures.frames_in == figures.frames_out + figures.dropped + inside
    assert {drop.reason for drop in figures.drops if drop.place in ("window", "output")} <= {"late"}


def test_after_short_bursts_all_comes_back_soon(live):
    """A collapse goes down several rungs; that is one bad experience with what was better, and not three."""
    machine = live.Machine(
        slowness=lambda now: 0.3,
        share=lambda now: 0.05 if now < 100 and now % 20 > 17 else 1.0,
        turn=0.1,
        overhead=0.002,
    )
    warm(machine)
    machine.play(settings_for(0.3), 100.0)
    assert Percentiles.of(latencies(machine)).p99 <= 1.5 * 0.3
    machine.play(settings_for(0.3), 25.0)
    assert machine.core.plan == machine.toons[0].plan


@given(
    shares=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4),
    promise=st.floats(0.2, 1.0),
    turn=st.floats(0.005, 0.1),
    slowness=st.floats(0.1, 0.6),
)
@settings(max_examples=5, deadline=None)
def test_whatever_share_of_the_time_it_is_given_latency_does_not_grow(live, shares, promise, turn, slowness):
    machine = live.Machine(
        slowness=lambda now: slowness, share=lambda now: shares[int(now / 15) % len(shares)], turn=turn
    )
    warm(machine)
    machine.play(settings_for(promise), 60.0)
    waited = Percentiles.of(latencies(machine))
    said = [event for event in machine.events if event.kind == "promise"]
    assert waited.p95 <= 1.5 * promise or said
    assert waited.p99 <= 3.0 * promise


def test_a_machine_twice_too_slow_whose_cores_are_taken_too_lets_nothing_pile_up(live):
    machine = live.Machine(slowness=lambda now: 2.0, share=lambda now: 0.5, turn=0.05)
    warm(machine)
    machine.play(settings_for(0.4), 120.0)
    late = latencies(machine, since=10.0)
    assert Percentiles.of(late).p99 <= 1.5 * 0.4
    assert Percentiles.of(late[len(late) // 2 :]).p95 <= 1.2 * Percentiles.of(late[: len(late) // 2]).p95


def test_deflickering_gives_way_before_size_and_is_counted():
    costs = known(unet=0.004)
    for _ in range(10):
        costs.observe(STEADYING, DELIVERED, 0.01)
    wish = replace(WISH, steady=True)
    steady, plain = (Forecaster(costs, fps=30.0)(plan) for plan in (wish, WISH))
    assert steady.latency == pytest.approx(plain.latency + 0.01)
    assert steady.load == pytest.approx(plain.load + 0.01 * 30)
    plans = list(ladder(wish, multiple=32))
    assert plans[:3] == [wish, WISH, replace(wish, size=(416, 320))]
    assert len(plans) == len(set(plans)) == 2 * len(list(ladder(WISH, multiple=32)))
    controller = Controller(costs, wish, promise=0.8, multiple=32)
    assert controller.decide(fps=30.0, now=0.0).plan == WISH
    # What it takes is what it takes at the size that is delivered, and not less where less is drawn.
    small = replace(wish, size=(256, 192))
    assert Forecaster(costs, fps=30.0)(small).latency == pytest.approx(
        Forecaster(costs, fps=30.0)(replace(small, steady=False)).latency + 0.01
    )
    for number in range(300):  # the machine becomes quicker, and it is taken up again
        costs.observe(STEADYING, DELIVERED, 0.002)
        plan = controller.decide(fps=30.0, now=1.0 + number / 10).plan
    assert plan == wish
