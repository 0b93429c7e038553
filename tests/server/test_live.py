"""What clients may ask for."""

import pytest

from toonstream.errors import SettingError
from toonstream.server.live import Change, parse_change


def test_what_is_known_is_taken() -> None:
    values = {"prompt": "rain", "style": "", "steps": 2, "window": None, "latency": 1}
    assert parse_change(values) == Change(prompt="rain", style="", steps=2, latency=1)
    assert parse_change({}) == Change()
    assert parse_change({"deflicker": False}) == Change(deflicker=False)
    assert parse_change({"loras": {"ink": 1, "flat": -0.5}}).loras == {"ink": 1, "flat": -0.5}
    assert parse_change({"loras": {}}).loras == {}


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {"source": "http://192.168.0.1/"},
        {"steps": "2"},
        {"steps": True},
        {"steps": 1.5},
        {"prompt": 3},
        {"deflicker": 1},
        {"deflicker": "on"},
        {"prompt": "x" * 3000},
        {"latency": "400ms"},
        {"loras": ["ink"]},
        {"loras": {"ink": "strong"}},
        {"loras": {"ink": True}},
        {"loras": {"ink": 11}},
        {"loras": {"ink": float("nan")}},
        {"loras": {"ink": 10**400}},
        {"loras": {str(number): 1 for number in range(9)}},
    ],
    ids=str,
)
def test_everything_else_is_refused(values: object) -> None:
    with pytest.raises(SettingError):
        parse_change(values)
