"""Checksums of files that are kept from run to run, and when they are not believed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toonstream.engines import checksums, weights
from toonstream.engines.checksums import Checksums
from toonstream.engines.engine import NetworkSource
from toonstream.engines.shapes import Triple
from toonstream.engines.store import EngineStore
from toonstream.engines.tensorrt.engine import TensorRtEngine
from toonstream.export.checkpoints import open_model, shipped_model

YESTERDAY = 86400.0  # seconds


class Reading:
    """Reads nothing, and counts how often it was asked to."""

    def __init__(self, gives: str = "a" * 64) -> None:
        self.gives = gives
        self.times = 0

    def __call__(self) -> str:
        self.times += 1
        return self.gives


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"weights")
    aged(path)
    return path


def aged(path: Path) -> None:
    """As if it had not been written just now."""
    when = path.stat().st_mtime - YESTERDAY
    os.utime(path, (when, when))


def test_a_file_is_read_once_over_two_runs(tmp_path: Path, file: Path) -> None:
    reading = Reading()
    for _ in range(2):
        assert Checksums(tmp_path / "kept").of("graph", [file], reading) == "a" * 64
    assert reading.times == 1
    Checksums(tmp_path / "kept").of("another graph", [file], reading)
    assert reading.times == 2


def touch(path: Path) -> None:
    os.utime(path, (1.0, 1.0))


def grow(path: Path) -> None:
    when = path.stat().st_mtime_ns
    path.write_bytes(b"more weights")
    os.utime(path, ns=(when, when))


def take_the_place(path: Path) -> None:
    """Of the same size, from the same time; another file."""
    when = path.stat().st_mtime_ns
    other = path.with_name("other")
    other.write_bytes(b"WEIGHTS")
    os.utime(other, ns=(when, when))
    other.replace(path)


@pytest.mark.parametrize("change", [touch, grow, take_the_place])
def test_a_file_that_changed_is_read_again(
    tmp_path: Path, file: Path, change: Callable[[Path], None]
) -> None:
    kept = Checksums(tmp_path / "kept")
    kept.of("graph", [file], Reading())
    change(file)
    reading = Reading("b" * 64)
    assert kept.of("graph", [file], reading) == "b" * 64
    assert reading.times == 1


def test_a_link_is_what_it_leads_to(tmp_path: Path, file: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    reading = Reading()
    kept = Checksums(tmp_path / "kept")
    for path in (file, link):
        kept.of("graph", [path], reading)
    assert reading.times == 1


def test_what_was_written_just_now_or_meanwhile_is_read_again(tmp_path: Path, file: Path) -> None:
    """Within a tick of the file system's clock, a second writing does not show."""
    kept, reading = Checksums(tmp_path / "kept"), Reading()
    os.utime(file)
    for _ in range(2):
        kept.of("graph", [file], reading)
    assert reading.times == 2
    aged(file)

    def changing() -> str:
        touch(file)
        return reading()

    kept.of("graph", [file], changing)
    kept.of("graph", [file], reading)
    assert reading.times == 4


@pytest.mark.parametrize("damage", [b"", b"nonsense", b'{"a": "b"}', "flipped", "a folder"])
def test_damage_is_passed_over(tmp_path: Path, file: Path, damage: bytes | str) -> None:
    path, reading = tmp_path / "kept", Reading()
    Checksums(path).of("graph", [file], reading)
    if damage == "flipped":
        path.write_bytes(path.read_bytes().replace(b"aaaa", b"aaab", 1))
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        assert isinstance(damage, bytes)
        path.write_bytes(damage)
    assert Checksums(path).of("graph", [file], reading) == "a" * 64
    assert reading.times == 2
    if damage != "a folder":
        assert Checksums(path).of("graph", [file], reading) == "a" * 64
        assert reading.times == 2
    assert [each.name for each in tmp_path.iterdir() if "partial" in each.name] == []


def test_only_those_of_what_was_read_last_are_kept(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "_KEPT", 2)
    kept, reading = Checksums(tmp_path / "kept"), Reading()
    for graph in ("one", "two", "three"):
        kept.of(graph, [file], reading)
    assert reading.times == 3
    kept.of("two", [file], reading)
    kept.of("three", [file], reading)
    assert reading.times == 3
    kept.of("one", [file], reading)
    assert reading.times == 4


def test_weights_are_read_once_for_the_keys_of_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a weight that changes makes another key."""
    shipped = open_model(shipped_model()).sources["vae_decoder"]
    assert shipped.onnx is not None
    folder = tmp_path / "vae"
    folder.mkdir()
    for path in shipped.onnx.parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    onnx = folder / shipped.onnx.name
    (file,) = {place.file for place in weights.stored_weights(onnx).values()}
    aged(file)
    read: list[Path] = []
    monkeypatch.setattr(weights, "_read_checksum", lambda graph, places: read.append(onnx) or "c" * 64)

    def key() -> str:
        source = NetworkSource(name="vae_decoder", onnx=onnx, build=torch.nn.Identity)
        shapes = {"latents": Triple((1, 32, 8, 8), (1, 32, 8, 8), (1, 32, 8, 8))}
        store = EngineStore(tmp_path / "engines")
        engine = TensorRtEngine("tensorrt-rtx", shapes=lambda source: shapes, store=store, capability=(8, 9))
        return engine.key(source).onnx

    assert key() == key() == "c" * 64
    assert len(read) == 1
    monkeypatch.undo()
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    assert key() == weights.network_checksum(onnx) != weights.network_checksum(shipped.onnx)
    onnx.write_bytes(onnx.read_bytes() + b"")
    assert key() == weights.network_checksum(onnx)
