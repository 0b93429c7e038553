from dataclasses import replace

import pytest

from toonstream.config import Size
from toonstream.errors import SettingError
from toonstream.stream.live.settings import LiveSettings, Plan, parse_latency


@pytest.mark.parametrize(
    ("text", "seconds"), [("400ms", 0.4), ("0.4s", 0.4), ("0.4", 0.4), (" 2 S ", 2.0), ("62.5 ms", 0.0625)]
)
def test_reads_latencies(text, seconds):
    assert parse_latency(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "fast", "-1s", "400 m", "1e3ms", "0ms", "5ms", "61s", "nan", "4" * 40])
def test_refuses_latencies_that_are_none(text):
    with pytest.raises(SettingError, match="ms"):
        parse_latency(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latency": 0.0}, "promise 20ms"),
        ({"latency": float("nan")}, "promise"),
        ({"blend": -1}, "blend -1"),
        ({"seed": -1}, "seed -1"),
        ({"steps": 0}, "steps 0"),
        ({"window": 4, "stride": 5}, "stride 5"),
        ({"guidance": 0.5}, "guidance 0.5"),
    ],
)
def test_refuses_settings_out_of_range(options, message):
    with pytest.raises(SettingError, match=message):
        LiveSettings(**options)


def test_what_is_left_open_is_the_models(live):
    render = LiveSettings(style="ink", prompt="a cat", seed=4).resolve(live.defaults)
    assert (render.prompt, render.window, render.stride, render.steps) == ("ink style, a cat", 4, 3, 1)
    assert render.seed == 4
    with pytest.raises(SettingError, match="no style 'oil'"):
        LiveSettings(style="oil").resolve(live.defaults)
    assert LiveSettings().size == Size(short=384, cap=True)


def test_a_plan_reads_well():
    plan = Plan(size=(512, 384), steps=2, window=4, stride=3, every=2)
    assert str(plan) == "512x384, 2 steps, window 4, stride 3, one frame in 2"
    assert plan.facts()["every"] == 2
    plan = Plan(size=(512, 384), steps=2, window=16, stride=12, mode="anchored")
    assert str(plan) == "512x384, 2 steps, window 16, 4 of it anchored"


def test_a_live_stream_is_anchored_or_a_wavefront(live):
    assert LiveSettings().resolve(live.defaults).mode == "wavefront"
    assert LiveSettings(mode="skewed").resolve(live.defaults).mode == "wavefront"
    anchored = LiveSettings(mode="anchored", window=8, overlap=3).resolve(live.defaults)
    assert (anchored.mode, anchored.window, anchored.stride) == ("anchored", 8, 5)
    with pytest.raises(SettingError, match="overlap 8"):
        LiveSettings(mode="anchored", window=8, overlap=8)


def test_a_live_stream_is_deflickered_by_what_was_sent_or_not_at_all(live):
    flickering = replace(live.defaults, deflicker="balanced")
    assert LiveSettings().resolve(flickering).deflicker == "causal"
    assert LiveSettings(deflicker="off").resolve(flickering).deflicker == "off"
    assert LiveSettings().resolve(replace(live.defaults, deflicker="off")).deflicker == "off"
    assert LiveSettings(deflicker="accurate").resolve(live.defaults).deflicker == "causal"
    plan = Plan(size=(512, 384), steps=1, window=4, stride=3, steady=True)
    assert str(plan) == "512x384, 1 steps, window 4, stride 3, deflickered"
