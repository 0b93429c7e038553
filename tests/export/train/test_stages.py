"""The whole training, a few steps long, on a handful of made pictures: it runs, resumes and packs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.export.train import autoencoder, diffusion, words
from toonstream.export.train.__main__ import main
from toonstream.export.train.data import Pictures

ROWS = ["a/0"] * 4 + ["photo"] * 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `prepare` leaves it, of noise with large shapes."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (len(ROWS), 8, 8, 3), dtype=np.uint8)
    pictures = coarse.repeat(32, axis=1).repeat(32, axis=2)
    for name in ("source", "hosoda", "shinkai", "hayao", "flat"):
        np.save(folder / f"{name}.npy", pictures)
    np.save(folder / "done.npy", np.ones(len(ROWS), np.uint8))
    (folder / "groups.json").write_text(json.dumps(ROWS))
    return folder


def test_clips_move_as_their_flow_says(data: Path) -> None:
    pictures = Pictures(data)
    batch = pictures.clips(np.random.default_rng(3), size=2, frames=3, side=64, real=0.0)
    assert batch.target.shape == (2, 3, 3, 64, 64)
    assert batch.flow.shape == (2, 2, 2, 64, 64)
    assert batch.steady.shape == (2, 2, 1, 64, 64)
    assert batch.target.min() >= -1.0
    assert batch.target.max() <= 1.0
    assert batch.colour.min() >= 0.0
    assert batch.colour.max() <= 1.0


def test_batches_depend_on_the_seed_alone(data: Path) -> None:
    pictures = Pictures(data)
    one, again, other = (pictures.batch(np.random.default_rng(seed), size=2, side=64) for seed in (1, 1, 2))
    assert torch.equal(one.target, again.target)
    assert one.captions == again.captions
    assert not torch.equal(one.target, other.target)


def test_a_start_brings_its_tokenizer(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its embeddings are numbered by it; another training may number them otherwise."""
    monkeypatch.setattr(diffusion, "_FITTED", 1)
    start = shipped_model()
    vae = AutoencoderTiny.from_pretrained(start / "vae").float()
    diffusion.train_pictures(Pictures(data), vae, tmp_path, steps=0, size=2, seed=0, start=start)
    taken, own = (folder / "tokenizer" / "tokenizer.json" for folder in (tmp_path, start))
    assert taken.read_bytes() == own.read_bytes()


def test_all_stages_run_resume_and_pack(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    for stage in (autoencoder, diffusion):
        monkeypatch.setattr(stage, "_FITTED", 1)
    monkeypatch.setattr(words, "_STEPS", 1)

    def train(*more: str) -> None:
        monkeypatch.setattr("sys.argv", ["train", "--data", str(data), "--output", str(run), *more])
        main()

    train("--stage", "autoencoder", "--autoencoder-steps", "1")
    first = torch.load(run / "autoencoder" / "checkpoint.pt", weights_only=True)
    others = [f"--{stage}-steps=1" for stage in ("pictures", "motion", "decoder")]
    train("--autoencoder-steps", "2", *others)
    second = torch.load(run / "autoencoder" / "checkpoint.pt", weights_only=True)
    assert (first["step"], second["step"]) == (1, 2)
    assert second["losses"][0] == first["losses"][0]
    for stage in ("autoencoder", "pictures", "motion", "decoder"):
        assert (run / stage / "losses.png").stat().st_size > 1000
        assert (run / stage / "samples.png").stat().st_size > 1000
    model = open_model(run / "toonlet")
    assert model.size_multiple == 32
    assert model.latent_channels == 32
    assert set(model.defaults.controlnets) == {"outline", "colour"}
