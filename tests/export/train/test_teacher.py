"""The teacher is the published generator, and its colours are brought back to the source's."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from toonstream.export.train.teacher import CartoonGenerator, load_teacher, match_colours


@pytest.fixture(scope="module")
def generator() -> CartoonGenerator:
    torch.manual_seed(0)
    return CartoonGenerator().eval()


def test_it_has_the_published_size_and_names(generator: CartoonGenerator) -> None:
    state = generator.state_dict()
    assert 11.0e6 < sum(tensor.numel() for tensor in state.values()) < 11.3e6
    assert state["m.conv01_1.weight"].shape == (64, 3, 7, 7)
    assert state["m.in11_2.scale"].shape == (256,)
    assert state["m.deconv03_1.bias"].shape == (3,)


def test_it_draws_pictures_of_the_same_size(generator: CartoonGenerator) -> None:
    with torch.inference_mode():
        drawn = generator(torch.rand(1, 3, 32, 40) * 2 - 1)
    assert drawn.shape == (1, 3, 32, 40)
    assert drawn.abs().max() <= 1


def test_weights_come_back_from_a_half_precision_file(generator: CartoonGenerator, tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in generator.state_dict().items()}
    torch.save(halves, tmp_path / "teacher.pt")
    loaded = load_teacher(tmp_path / "teacher.pt")
    assert all(torch.equal(tensor.half(), halves[name]) for name, tensor in loaded.state_dict().items())


def test_a_tint_is_taken_out_and_lines_stay() -> None:
    random = np.random.default_rng(0)
    soft = cv2.GaussianBlur(random.integers(60, 200, (96, 96, 3)).astype(np.uint8), (0, 0), 9)
    source = np.asarray(soft, dtype=np.uint8)
    drawn = np.clip(source.astype(int) + np.array([40, -10, -25]), 0, 255).astype(np.uint8)
    drawn[:, 47:49] = 0
    matched = match_colours(drawn, source)

    def tint(image: np.ndarray) -> float:
        lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(float)
        goal = cv2.cvtColor(source, cv2.COLOR_RGB2LAB).astype(float)
        return float(np.abs((lab - goal)[:, 4:30, 1:].mean(axis=(0, 1))).max())

    assert tint(matched) < 0.25 * tint(drawn)
    assert matched[:, 47:49].mean() < 0.5 * matched[:, 20:30].mean()


def test_what_a_dark_shape_lacks_does_not_shine_around_it() -> None:
    source = np.full((128, 128, 3), (150, 185, 225), np.uint8)
    source[48:, 40:88] = (60, 70, 80)
    drawn = np.full_like(source, (190, 215, 190))
    drawn[48:, 40:88] = (150, 90, 60)
    lab = cv2.cvtColor(match_colours(drawn, source), cv2.COLOR_RGB2LAB).astype(float)
    beside, beyond = lab[96, 28:37], lab[96, 4:9]
    assert np.abs(beside - beyond.mean(axis=0)).max() <= 1.0
