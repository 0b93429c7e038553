"""RAFT against what torchvision 0.28 made of the same weights, and files that are not RAFT."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from toonstream.errors import ModelError
from toonstream.stream.temporal.fusion import make_fusion
from toonstream.stream.temporal.raft import Raft, RaftFlow, load_raft


def network(*, large: bool = False) -> Raft:
    torch.manual_seed(0)
    return Raft(large=large)


def filled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that follow from their shapes and names, and are of a sensible size."""
    made = {}
    for name, tensor in state.items():
        places = torch.arange(tensor.numel()) ** 2 % 1009
        wave = torch.sin((places + len(name)).double()).float().reshape(tensor.shape)
        if name.endswith("num_batches_tracked"):
            made[name] = tensor
        elif name.endswith("running_var"):
            made[name] = 1.2 + wave
        elif name.endswith(("bias", "running_mean")):
            made[name] = 0.1 * wave
        elif tensor.dim() == 1:
            made[name] = 1 + 0.1 * wave
        else:
            made[name] = wave * (6 / tensor[0].numel()) ** 0.5
    return made


def waves(shift: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(136.0), indexing="ij")
    return torch.stack([torch.sin(0.11 * (x + shift) + 0.07 * y * colour) for colour in (1, 2, 3)])[None]


RECORDED = {  # of torchvision's raft_small and raft_large with these weights, after 3 updates; x, then y
    False: (
        (-2.1475, 3.83, 2.6613, -1.9815, -0.609, -7.9334, -2.2579, 2.4893, 7.8788),
        (-6.5262, -5.6599, -2.3272, -7.5425, -6.6027, -7.6435, 0.5711, -2.6116, -7.606),
    ),
    True: (
        (-3.2306, -4.4516, 0.9543, -1.4938, -1.5029, -1.6589, -0.8984, -0.7043, -0.2128),
        (-3.6783, 1.9924, 2.0849, -0.8935, 0.2515, -1.5197, -1.0713, 2.9955, 1.9516),
    ),
}


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_it_gives_what_torchvision_gives(large: bool) -> None:
    raft = network(large=large).eval()
    raft.load_state_dict(filled(raft.state_dict()))
    with torch.inference_mode():
        found = raft(waves(0), waves(3), rounds=3)
    assert found.shape == (1, 2, 128, 136)
    torch.testing.assert_close(
        found[0, :, 20::45, 15::50].flatten(1), torch.tensor(RECORDED[large]), rtol=1e-3, atol=2e-3
    )


@pytest.mark.parametrize("kind", [".safetensors", ".pth"])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_the_file_tells_which_of_the_two_it_is(tmp_path: Path, kind: str, large: bool) -> None:
    state = network(large=large).state_dict()
    path = tmp_path / f"raft{kind}"
    if kind == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    loaded = load_raft(path)._network.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[name], loaded[name].cpu()) for name in state)


def test_a_picture_of_any_size_has_flow_in_its_own_size() -> None:
    find = RaftFlow(network(), torch.device("cpu"))
    colour = np.random.default_rng(0).integers(0, 255, (37, 150, 3), dtype=np.uint8)
    found = find(colour, colour)
    assert found.shape == (37, 150, 2)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    grey = np.ascontiguousarray(colour[..., 0])
    assert np.array_equal(find(grey, grey), find(*[np.stack([grey] * 3, axis=-1)] * 2))


def test_what_is_not_raft_is_refused_in_one_line(tmp_path: Path) -> None:
    odd = tmp_path / "odd.safetensors"
    save_file({"weight": torch.zeros(3)}, odd)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"nothing of the kind")
    text = tmp_path / "layout.txt"
    text.write_text("raft_small 106 990162\nfeature_encoder.convnormrelu.0.weight (32, 3, 7, 7)\n")
    nested = tmp_path / "nested.pth"
    torch.save({"model": {"weight": torch.zeros(3)}}, nested)
    cases = {
        odd: "give weights of raft_small or raft_large",
        broken: "cannot be read",
        text: "cannot be read",
        nested: "holds no state dict",
        tmp_path / "missing.safetensors": "cannot be read",
        tmp_path / "missing.pth": "cannot be read",
    }
    for path, message in cases.items():
        with pytest.raises(ModelError, match=message) as caught:
            load_raft(path)
        assert "\n" not in str(caught.value)


def test_fusion_goes_by_it_where_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "raft.safetensors"
    save_file(network().state_dict(), path)
    fusing = make_fusion(1.0, steps=1, multiple=8, raft=path)
    assert fusing is not None
    assert isinstance(fusing._correspondences._search, RaftFlow)
