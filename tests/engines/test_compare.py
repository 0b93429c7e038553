"""The comparator, with networks whose difference is known."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from toonstream.engines.compare import compare_networks
from toonstream.engines.engine import TensorSpec
from toonstream.errors import EngineError

GIVEN = {"x": torch.tensor([1.0, -4.0, 2.0])}
X = TensorSpec(name="x", dtype=torch.float32, shape=("n",))
SAME = TensorSpec(name="same", dtype=torch.float32, shape=("n",))
MOVED = TensorSpec(name="moved", dtype=torch.float32, shape=("n",))


@dataclass
class Moving:
    """Gives its input as it is, and moved."""

    by: float
    inputs: tuple[TensorSpec, ...] = (X,)
    outputs: tuple[TensorSpec, ...] = (SAME, MOVED)

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"same": tensors["x"].clone(), "moved": tensors["x"] + self.by}


def test_the_largest_difference_counts_against_the_largest_value() -> None:
    same, moved = compare_networks(Moving(0.0), Moving(0.1), GIVEN, tolerance=0.03)
    assert (same.output, same.error, same.passed) == ("same", 0.0, True)
    assert (moved.output, moved.passed) == ("moved", True)
    assert moved.error == pytest.approx(0.025)


def test_what_is_beyond_the_tolerance_does_not_pass() -> None:
    same, moved = compare_networks(Moving(0.0), Moving(0.1), GIVEN, tolerance=0.02)
    assert same.passed
    assert not moved.passed


def test_an_engine_may_compute_in_another_precision_than_the_reference() -> None:
    half = Moving(0.0, inputs=(replace(X, dtype=torch.float16),))
    assert all(found.passed for found in compare_networks(Moving(0.0), half, GIVEN, tolerance=0.01))


def test_without_polygraphy_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.comparator", None)
    with pytest.raises(EngineError, match="pip install 'polygraphy"):
        compare_networks(Moving(0.0), Moving(0.0), GIVEN, tolerance=1.0)
