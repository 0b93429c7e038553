"""A bench is run with its folder in front of all others: none may stand where a package is looked for."""

import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from toonstream.engines.select import ENGINE_NAMES

BENCHES = Path(__file__).parents[2] / "bench"


def test_no_bench_is_named_like_a_package() -> None:
    benches = {path.stem for path in BENCHES.glob("*.py")}
    taken = {*packages_distributions(), *sys.stdlib_module_names, *ENGINE_NAMES}
    assert "rolling" in benches
    assert not benches & taken
