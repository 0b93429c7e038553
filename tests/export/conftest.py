"""The tiny model, written and exported once a session; tests must not change it."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from toonstream.export.checkpoints import Model, open_model
from toonstream.export.onnx import export_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    spec = spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    assert spec is not None
    assert spec.loader is not None
    tiny = module_from_spec(spec)
    spec.loader.exec_module(tiny)
    folder: Path = tiny.write_model(tmp_path_factory.mktemp("tiny"))
    export_model(folder)
    return open_model(folder)
