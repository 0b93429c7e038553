"""Networks are compiled for just what is asked for later; what goes wrong is left to whoever needs them."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from toonstream.config import LoraChoice, Settings, Size
from toonstream.engines.compiling import Compiler, Graph
from toonstream.engines.openvino import OpenVinoEngine
from toonstream.errors import EngineError, InputError
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.stream.ahead import Calls, begin, prepare_unet
from toonstream.stream.render import render_clip
from toonstream.stream.sinks.file import FileSink

OPENVINO = Settings(engine="openvino")
GUIDED = replace(OPENVINO, steps=2, window=4, stride=2, guidance=2.0, style="ink", prompt="warm")


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """(network, shapes) → how often that was compiled."""
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path / "cache"))
    counted = Counter()
    compile_ = Graph._compile

    def count(graph, shapes):
        counted[graph._name, shapes] += 1
        return compile_(graph, shapes)

    monkeypatch.setattr(Graph, "_compile", count)
    return counted


@pytest.mark.parametrize(
    ("settings", "ahead"),
    [(OPENVINO, True), (GUIDED, True), (GUIDED, False)],
    ids=["default", "guided", "guided, as it loads"],
)
def test_a_run_compiles_each_network_once(settings, ahead, make_clip, tmp_path, compiled):
    clip = make_clip(seconds=4 / 24)  # one window
    begun = begin(clip, settings) if ahead else None
    assert ahead == (begun is not None)
    rendered = render_clip(clip, tmp_path / "toon.mp4", settings, begun=begun)
    assert rendered.progress.frames_committed == 4
    assert len(compiled) == 7
    assert set(compiled.values()) == {1}


def test_what_is_begun_changes_no_picture(make_clip, tmp_path, compiled, monkeypatch):
    clip = make_clip(seconds=0.3)
    settings = replace(OPENVINO, size=Size(short=96))
    drawn = []
    write = FileSink.write

    def note(sink, frame):
        drawn.append(frame.image)
        write(sink, frame)

    monkeypatch.setattr(FileSink, "write", note)
    for begun in (begin(clip, settings), None):
        render_clip(clip, tmp_path / "toon.mp4", settings, begun=begun)
    ones, others = np.array(drawn).reshape(2, 7, *drawn[0].shape)
    assert np.array_equal(ones, others)


def test_it_takes_no_torch(make_clip, tmp_path):
    program = (
        "import sys; from pathlib import Path; from toonstream.config import Settings\n"
        "from toonstream.stream.ahead import begin\n"
        "compiler = begin(Path(sys.argv[1]), Settings(engine='openvino')).compiler\n"
        "sys.exit(compiler is None or 'torch' in sys.modules)"
    )
    environment = {"TOONSTREAM_CACHE": str(tmp_path / "cache"), "PATH": ""}
    clip = make_clip(seconds=0.1)
    subprocess.run([sys.executable, "-c", program, clip], check=True, env=environment)


@pytest.mark.parametrize(
    "other",
    [
        {"engine": "onnxruntime"},
        {"engine": "torch"},
        {"model": "diffutoon"},
        {"loras": (LoraChoice(file="a.safetensors"),)},
        {"remember": 2},
        {"reference": Path("sheet.png")},
        {"prompt": "a word that is far too long to be sure " * 3},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_is_not_foreseen_is_not_begun(other, make_clip):
    assert begin(make_clip(seconds=0.1), replace(OPENVINO, **other)) is None


def test_on_a_machine_with_a_gpu_it_waits_for_the_choice(make_clip, tmp_path, monkeypatch):
    clip = make_clip(seconds=0.1)
    monkeypatch.setattr("toonstream.stream.ahead._GPUS", (tmp_path,))
    assert begin(clip, Settings()) is None
    monkeypatch.setattr("toonstream.stream.ahead._GPUS", (tmp_path / "none",))
    assert begin(clip, Settings()).compiler is not None


def test_without_openvino_nothing_is_begun(make_clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert begin(make_clip(seconds=0.1), Settings()) is None


@pytest.mark.parametrize("wrong", ["clip", "style"])
def test_what_is_wrong_is_told_by_the_run(wrong, make_clip, tmp_path):
    clip = tmp_path / "missing.mp4" if wrong == "clip" else make_clip(seconds=0.1)
    settings = replace(OPENVINO, style="nonesuch") if wrong == "style" else OPENVINO
    begun = begin(clip, settings)
    assert begun.compiler is None
    with pytest.raises(InputError, match=r"does not exist|has no style"):
        render_clip(clip, tmp_path / "toon.mp4", settings, begun=begun)


def test_a_network_that_is_refused_ahead_is_refused_when_it_is_needed(make_clip, tmp_path, monkeypatch):
    def refuse(graph, shapes):
        raise EngineError(f"no {graph._name}")

    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(Graph, "_compile", refuse)
    clip = make_clip(seconds=0.1)
    with pytest.raises(EngineError, match="no text_encoder"):
        render_clip(clip, tmp_path / "toon.mp4", OPENVINO, begun=begin(clip, OPENVINO))


CALLS = Calls(size=(64, 64), window=4, frames=3, sides=1, text=(77, 128), channels=16)
NAMES = ("unet", "hint_outline", "controlnet_outline")


def load(*names):
    model = open_model(shipped_model())
    engine = OpenVinoEngine()
    return {name: engine.load(model.sources[name]) for name in names}


def test_a_unet_that_is_refused_as_it_loads_is_not_told_then(monkeypatch):
    def refuse(graph, shapes):
        raise EngineError("no")

    monkeypatch.setattr(Graph, "_compile", refuse)
    thread = prepare_unet(load(*NAMES), CALLS, hint="outline")
    assert thread is not None
    thread.join()


def test_an_engine_that_does_not_compile_is_left_alone():
    networks = {**load(*NAMES), "unet": lambda tensors: tensors}
    assert prepare_unet(networks, CALLS, hint="outline") is None


def test_a_file_that_cannot_be_read_ahead_is_refused_to_the_reader_too(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing of the kind")
    compiler = Compiler()
    read = compiler.read_ahead("unet", path)
    for reads in (read, lambda: compiler.read("unet", path)):
        with pytest.raises(EngineError, match="cannot read"):
            reads()
