"""Photos, clips and drawn scenes become arrays; a run that was cut off goes on."""

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from toonstream.export.train import prepare
from toonstream.export.train.data import Pictures
from toonstream.export.train.render import GRADES
from toonstream.export.train.teacher import CartoonGenerator

pytestmark = [  # of OpenVINO, which traces
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]
SMALL = {"SIDE": 48, "MARGIN": 4, "SHIFTS": ((0, 0),), "SEQUENCE": 2, "SEQUENCES": 2}


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two photos, a clip, and teachers with random weights; everything is prepared small."""
    for name, value in SMALL.items():
        monkeypatch.setattr(prepare, name, value)
    random = np.random.default_rng(0)
    for folder in ("photos", "clips", "teachers"):
        (tmp_path / folder).mkdir()
    for number in range(2):
        photo = random.integers(0, 256, (170, 200, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), photo)
    with av.open(str(tmp_path / "clips" / "moving.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height = 96, 80
        for _ in range(14):
            picture = random.integers(0, 256, (80, 96, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    torch.manual_seed(0)
    state = {key: value.half() for key, value in CartoonGenerator().state_dict().items()}
    for style in GRADES:
        torch.save(state, tmp_path / "teachers" / f"cartoongan_{style}_fp16_statedict.pt")
    return tmp_path


def run(assets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    output = assets / "data"
    folders = [word for name in ("photos", "clips", "teachers") for word in (f"--{name}", str(assets / name))]
    monkeypatch.setattr("sys.argv", ["prepare", *folders, "--scenes", "3", "-o", str(output)])
    prepare.main()
    return output


def test_a_cut_run_goes_on_and_scenes_are_flat(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = run(assets, monkeypatch)
    groups = json.loads((output / "groups.json").read_text())
    assert groups.count("photo") == 2
    assert groups.count("scene") == 3
    assert {group.split("/")[0] for group in groups} == {"photo", "scene", "moving"}
    first = {name: np.load(output / f"{name}.npy") for name in (*prepare.ARRAYS, "done")}
    assert first["done"].all()
    assert first["source"].shape == (len(groups), 48, 48, 3)

    redone = groups.index("scene")
    for name in (*prepare.ARRAYS, "done"):
        array = np.lib.format.open_memmap(output / f"{name}.npy", mode="r+")
        array[redone] = 0
    again = run(assets, monkeypatch)
    for name, array in first.items():
        assert np.array_equal(np.load(again / f"{name}.npy"), array), name

    pictures = Pictures(output)
    assert set(pictures.stills) >= {row for row, group in enumerate(groups) if group == "scene"}

    areas = next(prepare.scenes(1, 0)).areas
    assert areas is not None
    ground = areas[np.argmax((areas == 255).sum((1, 2)))] == 255
    for style in GRADES:
        steps = np.abs(np.diff(first[style][redone].astype(int), axis=1)).max(-1)
        assert steps[ground[:, 1:] & ground[:, :-1]].max() <= 4
