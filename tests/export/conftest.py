"""Models and checkpoints, written once a session; tests must not change them."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from toonstream.export.checkpoints import Model, open_model
from toonstream.export.onnx import export_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = _beside("tiny").write_model(tmp_path_factory.mktemp("tiny"))
    export_model(folder)
    return open_model(folder)


@pytest.fixture(scope="session")
def sd15(sd15_networks: Any, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model shaped as Stable Diffusion 1.5 with AnimateDiff, and its full autoencoder; not exported."""
    return open_model(sd15_networks.write_model(tmp_path_factory.mktemp("sd15"), motion_norm="frame"))


@pytest.fixture(scope="session")
def sd15_networks() -> Any:
    """What makes its networks: `sd15.py`."""
    return _beside("sd15")


@pytest.fixture(scope="session")
def writing() -> Any:
    """What writes checkpoints in every layout: `small.py`."""
    return _beside("small")


@pytest.fixture(scope="session")
def small(writing: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Small checkpoints in every layout."""
    return writing.write_small(tmp_path_factory.mktemp("small"))


def _beside(name: str) -> ModuleType:
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
