"""What was compiled is read again instead, to the same bits; whatever is wrong with it is compiled anew."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from toonstream.engines.compiled import CompiledStore, content_checksum
from toonstream.engines.compiling import Compiler
from toonstream.engines.engine import NetworkSource
from toonstream.engines.openvino import OpenVinoEngine
from toonstream.errors import EngineError


@pytest.fixture
def store(tmp_path: Path) -> CompiledStore:
    return CompiledStore(tmp_path / "kept")


def load(toy: NetworkSource, store: CompiledStore, monkeypatch: pytest.MonkeyPatch, **options):
    """The network, and a list that grows by every compilation."""
    network = OpenVinoEngine(compiled=store, **options).load(toy)
    compiled = []
    core = network.graph._core

    class Core:
        def compile_model(self, *words):
            compiled.append(words)
            return core.compile_model(*words)

        def import_model(self, *words):
            return core.import_model(*words)

    monkeypatch.setattr(network.graph, "_core", Core())
    return network, compiled


def given(network, side: int = 8):
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.randn(1, 3, side, side, generator=generator), "count": torch.ones(1).long()}


def blobs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "kept").iterdir())


def test_what_was_compiled_once_is_read_by_the_next_process(toy, store, tmp_path, monkeypatch):
    first, compiled = load(toy, store, monkeypatch)
    made = first(given(first))["blurred"]
    assert len(compiled) == len(blobs(tmp_path)) == 1
    second, compiled = load(toy, store, monkeypatch)
    assert torch.equal(second(given(second))["blurred"], made)
    assert compiled == []
    second(given(second, 10))
    assert len(compiled) == 1
    assert len(blobs(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "another file"])
def test_a_damaged_file_is_compiled_again_and_replaced(damage, toy, store, tmp_path, monkeypatch):
    first, _ = load(toy, store, monkeypatch)
    made = first(given(first))["blurred"]
    (path,) = blobs(tmp_path)
    whole = path.read_bytes()
    broken = {"cut": whole[:-100], "empty": b"", "another file": b"x" * 500}
    path.write_bytes(broken.get(damage, whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]))
    second, compiled = load(toy, store, monkeypatch)
    assert torch.equal(second(given(second))["blurred"], made)
    assert len(compiled) == 1
    assert len(blobs(tmp_path)) == 1
    third, compiled = load(toy, store, monkeypatch)
    third(given(third))
    assert compiled == []


def test_content_that_openvino_does_not_know_is_compiled_again(toy, store, tmp_path, monkeypatch):
    monkeypatch.setattr(CompiledStore, "find", lambda self, key: b"of another version")
    network, compiled = load(toy, store, monkeypatch)
    network(given(network))
    assert len(compiled) == 1


def test_other_weights_another_precision_or_file_are_not_mixed_up(toy, store, tmp_path, monkeypatch):
    network, _ = load(toy, store, monkeypatch)
    network(given(network))
    other, compiled = load(toy, store, monkeypatch, precision="bfloat16")
    other(given(other))
    kept = len(blobs(tmp_path))
    assert kept == 1 + len(compiled)  # this machine's own precision may be that one
    copied = tmp_path / "elsewhere" / toy.onnx.name
    copied.parent.mkdir()
    for file in toy.onnx.parent.iterdir():
        if file.is_file():
            (copied.parent / file.name).write_bytes(file.read_bytes())
    same, compiled = load(replace(toy, onnx=copied), store, monkeypatch)
    same(given(same))
    assert compiled == []  # wherever it lies, it is the same
    (copied.parent / "more").write_bytes(b"weights, perhaps")
    changed, compiled = load(replace(toy, onnx=copied), store, monkeypatch)
    changed(given(changed))
    assert len(compiled) == 1


@pytest.mark.parametrize("what", ["a file", "a folder that may not be written"])
def test_a_place_that_cannot_be_used_costs_nothing_but_time(what, toy, tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    if what == "a file":
        folder.write_text("not a folder")
    else:
        folder.mkdir(mode=0o500)
        if os.geteuid() == 0:
            monkeypatch.setattr(Path, "replace", _refused)
    network, compiled = load(toy, CompiledStore(folder), monkeypatch)
    assert network(given(network))["blurred"].shape[-1] == 8
    assert len(compiled) == 1


def _refused(*words):
    raise PermissionError(13, "Permission denied")


def test_the_folder_stays_small_and_keeps_what_was_used_last(tmp_path):
    store = CompiledStore(tmp_path / "kept", limit=1000)
    for number in range(4):
        store.keep({"number": number}, bytes(200))
        os.utime(store._path({"number": number}), (number, number))
    assert store.find({"number": 0}) == bytes(200)  # used now
    store.keep({"number": 4}, bytes(200))
    assert [store.find({"number": number}) is not None for number in range(5)] == [
        True,
        False,
        True,
        True,
        True,
    ]
    store.keep({"number": 5}, bytes(251))
    assert store.find({"number": 5}) is None


def test_files_are_told_by_content_and_large_ones_by_time(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    first = content_checksum([path])
    os.utime(path, (1, 1))
    assert content_checksum([path]) == first
    path.write_bytes(b"abd")
    assert content_checksum([path]) != first
    monkeypatch.setattr("toonstream.engines.compiled._LARGE", 2)
    first = content_checksum([path])
    os.utime(path, (2, 2))
    assert content_checksum([path]) != first


def test_two_threads_compile_once(toy, store, monkeypatch):
    network, compiled = load(toy, store, monkeypatch)
    made = [threading.Thread(target=network.prepare, args=(given(network),)) for _ in range(4)]
    for thread in made:
        thread.start()
    for thread in made:
        thread.join()
    network(given(network))
    assert len(compiled) == 1


def test_a_shape_that_is_refused_is_refused_again(toy, store, monkeypatch):
    network, _ = load(toy, store, monkeypatch)
    wrong = {**given(network), "image": torch.zeros(1, 5, 8, 8)}
    for _ in range(2):
        with pytest.raises(EngineError, match="refuses toy"):
            network.prepare(wrong)


def test_output_shapes_are_known_without_compiling(toy, store, monkeypatch):
    network, compiled = load(toy, store, monkeypatch)
    expected = {name: tuple(made.shape) for name, made in network(given(network)).items()}
    compiled.clear()
    shapes = {name: tuple(tensor.shape) for name, tensor in given(network).items()}
    assert network.graph.shapes_given(shapes) == expected
    assert compiled == []


def test_beside_others_a_network_has_its_share_of_the_cores_and_the_unet_all(toy, monkeypatch):
    monkeypatch.setattr("toonstream.engines.compiling._cores", lambda: 2)

    def threads(network: str, **options: int) -> int:
        graph = Compiler(precision="float32", **options).read(network, toy.onnx)
        return graph.compiled(((1, 3, 8, 8), (1,))).get_property("INFERENCE_NUM_THREADS")

    assert threads("vae_decoder", at_once=2) == 1
    assert threads("unet", at_once=2) == 2
    assert threads("unet", at_once=1, spare=1) == threads("vae_decoder", at_once=2, spare=1) == 1
