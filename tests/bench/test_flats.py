"""The bench of flat areas finds a halo and a grid that are put there."""

from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def flats(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bench, as a module."""
    monkeypatch.syspath_prepend(BENCH)
    return import_module("flats")


def test_a_halo_is_found_where_it_is(flats: Any) -> None:
    picture, shapes = flats.scene(256, 0)
    away = cv2.distanceTransform(1 - shapes, cv2.DIST_L2, 5)
    assert np.abs(flats.excess(picture, picture, away)).max() == 0.0
    light = np.clip(picture + 10.0 * ((away > 2) & (away <= 6))[..., None], 0, 255).astype(np.uint8)
    lightness = flats.excess(light, picture, away)[:, 0]
    assert lightness[:2].min() > 3.0
    assert np.abs(lightness[2:]).max() < 0.1


def test_a_grid_is_found_and_noise_is_none(flats: Any) -> None:
    patches = np.random.default_rng(0).integers(100, 104, (8, 8)).astype(np.uint8)
    grid = np.kron(patches, np.ones((8, 8), np.uint8))[..., None].repeat(3, axis=2)
    everywhere = np.ones((64, 64), bool)
    border, within = flats.steps(grid, everywhere, 8)
    assert border > 0.5
    assert within == 0.0
    noise = np.random.default_rng(1).integers(100, 104, (64, 64, 1)).astype(np.uint8).repeat(3, axis=2)
    border, within = flats.steps(noise, everywhere, 8)
    assert border == pytest.approx(within, rel=0.2)


def test_every_style_has_a_row(flats: Any, capsys: pytest.CaptureFixture[str]) -> None:
    flats.main(["--size", "128"])
    rows = [line.split(" | ")[0].strip("| ") for line in capsys.readouterr().out.splitlines()]
    assert rows == ["style", "---", "hosoda", "shinkai", "hayao", "ink", "flat"]
