"""A small checkpoint, shaped as Stable Diffusion 1.5 with AnimateDiff and two ControlNets are."""

from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.engines.torch import TorchEngine
from toonstream.export.checkpoints import Model, open_model

_TESTS = Path(__file__).parents[1]


def _module(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"toonstream_tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", params=["joint", "frame"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The model, once for each reading of the group norms of motion modules; one has none in the middle."""
    sd15 = _module(_TESTS / "export" / "sd15.py")
    folder = tmp_path_factory.mktemp(f"sd15-{request.param}")
    return open_model(sd15.write_model(folder, motion_norm=request.param, mid=request.param == "joint"))


@pytest.fixture(scope="session")
def networks(model: Model) -> dict[str, Network]:
    """Its networks, as the stream runs them."""
    engine = TorchEngine()
    names = ["unet", *(name for name in model.sources if name.startswith(("hint_", "controlnet_")))]
    return {name: engine.load(model.sources[name]) for name in names}


def _as_diffusers_calls_it(
    forward: Any, module: Any, hidden: Tensor, _text: None = None, *others: Any, **named: Any
) -> Tensor:
    """The number of frames comes by name, or fifth."""
    result: Tensor = forward(module, hidden, named.get("num_frames") or others[2])
    return result


@pytest.fixture(scope="session")
def originals(model: Model) -> dict[str, Any]:
    """The networks as diffusers has them, from the same files; the original's motion modules where wanted."""
    from diffusers import AutoencoderKL, ControlNetModel, UNetMotionModel
    from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D

    kinds = {"unet": UNetMotionModel, "vae": AutoencoderKL}
    kinds |= {f"controlnet_{name}": ControlNetModel for name in model.defaults.controlnets}
    loaded = {
        name: kind.from_pretrained(model.path / name, torch_dtype=torch.float32).eval()
        for name, kind in kinds.items()
    }
    if model.defaults.motion_norm == "frame":
        forward = _module(_TESTS / "export" / "animatediff.py").original_forward
        for module in loaded["unet"].modules():
            if isinstance(module, AnimateDiffTransformer3D):
                module.forward = partial(_as_diffusers_calls_it, forward, module)
    return loaded
