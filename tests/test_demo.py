from pathlib import Path

import av
import numpy as np
import pytest

from toonstream.demo import Scene, draw_scene, write_scene
from toonstream.errors import OutputError


def test_the_scene_moves_and_repeats_exactly() -> None:
    scene = Scene(width=96, height=54)
    backdrop = scene.backdrop()
    first, later = scene.frame(0, backdrop), scene.frame(12, backdrop)
    assert first.shape == (54, 96, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, scene.frame(0, Scene(width=96, height=54).backdrop()))
    assert np.abs(first.astype(int) - later).mean() > 5


def test_the_scene_looks_filmed() -> None:
    scene = Scene(width=320, height=180)
    image = scene.frame(0, scene.backdrop())
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 5000
    noise = image[:20, :20].astype(float) - image[:20, 1:21]
    assert 1 < noise.std() < 12


def test_the_clip_has_its_frames_and_its_sound(tmp_path: Path) -> None:
    write_scene(Scene(width=64, height=48, rate=12, seconds=1.0), tmp_path / "scene.mp4")
    with av.open(str(tmp_path / "scene.mp4")) as clip:
        assert sum(1 for _ in clip.decode(video=0)) == 12
    with av.open(str(tmp_path / "scene.mp4")) as clip:
        samples = np.concatenate([frame.to_ndarray()[0] for frame in clip.decode(audio=0)])
    assert len(samples) == pytest.approx(44_100, abs=2048)
    assert 0.02 < np.sqrt(np.mean(samples**2)) < 0.3


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="name another folder"):
        draw_scene(tmp_path / "file" / "demo")
