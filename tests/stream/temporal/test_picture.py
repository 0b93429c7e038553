"""Reference pictures: which files are taken, and what is seen of them."""

import sys
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from toonstream.errors import InputError
from toonstream.export.networks.base import spec
from toonstream.export.networks.reference import BIAS, EMPTY
from toonstream.stream.denoise import Denoiser, DenoiseSettings
from toonstream.stream.schedulers import make_scheduler
from toonstream.stream.temporal.picture import ReferencePicture, read_picture
from toonstream.stream.temporal.reference import FrameMemory, Remembering

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "timestep_spacing": "trailing"}
SCALES = {"outline": 0.8, "colour": 1.3}
TEXT = torch.rand(2, 77, 4, generator=torch.Generator().manual_seed(1))
LATENT = (4, 2)


def beside(name: str) -> ModuleType:
    """A module of the folder above: tests are no package and have no import path of their own."""
    found = spec_from_file_location(f"toonstream_tests_{name}", Path(__file__).parents[1] / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


offline = beside("offline")


class Attending:
    """A stand-in for the UNet: frames are moved by what they remember, and remembered as they are."""

    inputs = (
        spec("sample", "batch", "frames", 2, "h", "w"),
        spec(BIAS, "batch", "remembered"),
        spec("remembered_0_at_1", "batch", "remembered", "h", "w", 2),
    )
    outputs = ()

    def __init__(self) -> None:
        self._plain = offline.stand_in_networks()["unet"]
        self.calls: list[Mapping[str, Tensor]] = []

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.calls.append(tensors)
        given = {name: tensor for name, tensor in tensors.items() if not name.startswith("remembered")}
        output = self._plain(given)["output"]
        weights = tensors[BIAS].exp()[:, :, None, None, None]
        past = (weights * tensors["remembered_0_at_1"]).sum(1) / (1 + weights.sum(1))
        output = output + 0.3 * past.permute(0, 3, 1, 2).unsqueeze(1)
        return {"output": output, "features_0_at_1": tensors["sample"].permute(0, 1, 3, 4, 2)}


def encoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"latents": torch.nn.functional.avg_pool2d(tensors["image"], 8)[:, :2]}


def hints(image: np.ndarray) -> dict[str, Tensor]:
    picture = torch.from_numpy(image).permute(2, 0, 1) / 255
    return {"outline": picture, "colour": 1 - picture}


def networks() -> dict[str, object]:
    return {**offline.stand_in_networks(), "unet": Attending(), "vae_encoder": encoder}


def picture(made: Mapping[str, object], **more: object) -> ReferencePicture:
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    options: dict[str, object] = {
        "hints": hints, "networks": made, "scales": SCALES, "guidance": 2.0, "text": TEXT,
        "scheduler": make_scheduler(CONFIG, kind="euler", steps=3), "scale": 0.5, "shift": 0.1,
        **more,
    }  # fmt: skip
    return ReferencePicture(image, **options)  # type: ignore[arg-type]


def test_it_is_run_once_a_step_as_a_frame_that_remembers_nothing() -> None:
    made = networks()
    features = picture(made)(LATENT)
    calls = made["unet"].calls  # type: ignore[attr-defined]
    scheduler = make_scheduler(CONFIG, kind="euler", steps=3)
    assert len(calls) == len(features) == 3
    samples = []
    for step, (call, seen) in enumerate(zip(calls, features, strict=True)):
        assert call["sample"].shape == (2, 1, 2, *LATENT)
        assert call["timestep"].tolist() == [float(scheduler.timesteps[step])] * 2
        assert (call[BIAS] == EMPTY).all()
        assert not call["remembered_0_at_1"].any()
        assert torch.equal(call["text"], TEXT)
        assert call["residual_0"].abs().max() > 0
        assert seen["features_0_at_1"].shape == (2, 1, *LATENT, 2)
        # Latents, scaled as the stream's are, with the same noise at every step, as much as belongs to it.
        samples.append(call["sample"][0, 0] / scheduler.table[step, 0])
    sigmas = [float(sigma) for sigma in scheduler.table[:, -1]]
    noise = (samples[0] - samples[1]) / (sigmas[0] - sigmas[1])
    clean = samples[2] - sigmas[2] * noise
    torch.testing.assert_close(samples[1], clean + sigmas[1] * noise, rtol=1e-4, atol=1e-4)
    assert clean.abs().max() < 0.6  # an encoder's latents in [-1, 1], shifted and halved
    assert 0.5 < noise.std() < 1.6


def test_its_noise_is_its_own_and_the_same_again() -> None:
    first, again, other = (picture(networks(), seed=seed)(LATENT)[0]["features_0_at_1"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.5


def test_the_middle_is_taken_in_the_shape_of_the_frames() -> None:
    seen: list[np.ndarray] = []

    def watch(image: np.ndarray) -> dict[str, Tensor]:
        seen.append(image)
        return hints(image)

    wide = np.zeros((16, 96, 3), np.uint8)
    wide[:, 32:64] = 200
    options = {"hints": watch, "networks": networks(), "scales": SCALES, "guidance": 2.0, "text": TEXT}
    look_at = ReferencePicture(wide, scheduler=make_scheduler(CONFIG, kind="ddim", steps=1), **options)
    look_at((4, 2))
    look_at((6, 12))
    assert [image.shape for image in seen] == [(32, 16, 3), (48, 96, 3)]
    assert (seen[0] == 200).all()
    assert [int(seen[1][24, column, 0]) for column in (24, 48, 72)] == [200, 200, 200]


@pytest.mark.parametrize("mode", ["wavefront", "skewed", "anchored"])
def test_streams_remember_in_every_mode(mode: str) -> None:
    def stream(remembering: Remembering | None, *, cut: bool = False) -> list[Tensor]:
        made = networks()
        scheduler = make_scheduler(CONFIG, kind="ddim", steps=2)
        memory = None
        if remembering is None:
            made["unet"] = offline.stand_in_networks()["unet"]
        else:
            memory = FrameMemory(
                made["unet"], remembering=remembering, steps=2, sides=2, device=torch.device("cpu"),
                look_at=picture(made, scheduler=scheduler),
            )  # fmt: skip
        denoiser = Denoiser(
            made, scheduler=scheduler, text=TEXT[1:], negative_text=TEXT[:1], latent_channels=2,
            reference=memory,
            settings=DenoiseSettings(
                window=4, stride=2, steps=2, guidance=2.0, mode=mode, controlnet_scales=SCALES,
            ),
        )  # fmt: skip
        committed = []
        for index in range(11):
            if cut and index == 6:
                committed += denoiser.cut()
            image = np.random.default_rng(index).integers(0, 256, (32, 16, 3), dtype=np.uint8)
            committed += denoiser.push(hints(image))
        return [frame.latents for frame in committed + denoiser.finish()]

    plain, remembered = stream(None), stream(Remembering(sink=1, recent=2))
    assert len(plain) == len(remembered) == 11
    assert (remembered[0] - plain[0]).abs().max() > 1e-3  # the picture
    nearly_nothing = stream(Remembering(sink=1, recent=2, strength=1e-9, picture_strength=1e-9))
    torch.testing.assert_close(nearly_nothing, plain, rtol=1e-4, atol=1e-4)
    # What a scene remembers ends with it: the second one is what it is without the first's weight.
    scenes = stream(Remembering(sink=1, recent=2), cut=True)
    weightless = stream(Remembering(sink=1, recent=2, strength=1e-9), cut=True)
    assert torch.equal(scenes[0], remembered[0])
    torch.testing.assert_close(scenes[6], weightless[6], rtol=1e-4, atol=1e-4)
    assert (scenes[10] - weightless[10]).abs().max() > 1e-4


def write(path: Path, image: np.ndarray) -> Path:
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def test_pictures_are_read_in_colour_upright_and_on_white(tmp_path: Path) -> None:
    blue = np.full((4, 6, 3), (255, 0, 0), np.uint8)  # BGR, as OpenCV has it
    assert (read_picture(write(tmp_path / "blue.png", blue)) == (0, 0, 255)).all()
    assert read_picture(write(tmp_path / "grey.png", blue[..., 1])).shape == (4, 6, 3)
    for depth in (np.uint8, np.uint16):
        clear = np.zeros((4, 6, 4), depth)
        clear[:2, :, 3] = np.iinfo(depth).max
        read = read_picture(write(tmp_path / "clear.png", clear))
        assert read.dtype == np.uint8
        assert (read[:2] == 0).all()
        assert (read[2:] == 255).all()


def test_what_is_no_picture_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sheet\.png: No such file or directory; give a picture"):
        read_picture(tmp_path / "sheet.png")
    with pytest.raises(InputError, match="Is a directory"):
        read_picture(tmp_path)
    for content in (b"", b"words", b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "words.png").write_bytes(content)
        with pytest.raises(InputError, match=r"words\.png is not a picture; give a PNG"):
            read_picture(tmp_path / "words.png")
