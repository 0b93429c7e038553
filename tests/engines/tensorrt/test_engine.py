"""Building with TensorRT-RTX, which needs no GPU, and everything up to the point where one is needed."""

import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from enum import IntFlag
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from toonstream.engines.build import BuildJob, Built, run_build
from toonstream.engines.engine import NetworkSource
from toonstream.engines.shapes import Triple
from toonstream.engines.store import EngineStore, StoredEngine
from toonstream.engines.tensorrt.engine import TensorRtEngine, deserialise
from toonstream.engines.tensorrt.flavour import FLAVOURS, Flavour
from toonstream.engines.weights import read_weights, replace_weights
from toonstream.errors import EngineError
from toonstream.export.checkpoints import open_model, shipped_model

RTX = FLAVOURS["tensorrt-rtx"]
SHAPES = {"latents": Triple((1, 32, 8, 8), (1, 32, 32, 32), (1, 32, 32, 32))}


@pytest.fixture(scope="module")
def decoder() -> NetworkSource:
    return open_model(shipped_model()).sources["vae_decoder"]


def shapes_of(source: NetworkSource) -> Mapping[str, Triple]:
    return SHAPES


def engine(folder: Path, **more: object) -> TensorRtEngine:
    options = {"shapes": shapes_of, "store": EngineStore(folder), "capability": (8, 9), **more}
    return TensorRtEngine("tensorrt-rtx", **options)  # type: ignore[arg-type]


def job(path: Path, shapes: Mapping[str, Triple] | None = None) -> BuildJob:
    return BuildJob(
        label="toy", flavour="tensorrt-rtx", onnx=path, shapes=SHAPES if shapes is None else shapes,
        capability=(8, 9),
    )  # fmt: skip


def test_a_network_is_built_once_and_kept(decoder: NetworkSource, tmp_path: Path) -> None:
    said: list[str] = []
    builder = engine(tmp_path, model="toonlet", say=said.append)
    built = builder.build(decoder)
    assert built.intact()
    assert built.size > decoder.onnx.stat().st_size  # type: ignore[union-attr]
    assert built.key["compute_capability"] == "8.9"
    assert built.key["precision"] == "float32"
    assert built.key["flags"] == ["require_user_allocation"]  # its runs can be recorded
    assert any(line.startswith("toonlet vae_decoder: Building engine ") for line in said)
    said.clear()
    assert builder.build(decoder).built == built.built
    assert not said


def test_weights_that_are_put_in_have_a_key_of_their_own_and_going_back_the_old_one(
    decoder: NetworkSource, tmp_path: Path
) -> None:
    builder = engine(tmp_path)
    weights = read_weights(decoder)
    other = replace_weights(decoder, {name: weight * 0.5 for name, weight in weights.items()})
    back = replace_weights(other, weights)
    again = replace_weights(decoder, {name: weight * 0.5 for name, weight in weights.items()})
    assert builder.key(decoder) == builder.key(replace(decoder))
    assert builder.key(other) == builder.key(again)
    assert len({builder.key(source).digest for source in (decoder, other, back)}) == 3
    first, second = builder.build(decoder), builder.build(other)
    assert first.path != second.path
    assert builder.build(replace(other, weights={})).built == first.built


def test_loading_needs_a_gpu_and_says_so(decoder: NetworkSource, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"vae_decoder: TensorRT-RTX runs on an NVIDIA GPU.*--engine"):
        engine(tmp_path).load(decoder)
    with pytest.raises(EngineError, match=r"NVIDIA GPU.*or name a compute capability"):
        engine(tmp_path, capability=None)


def test_the_full_tensorrt_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="TensorRT is not installed; run `pip install tensorrt`"):
        TensorRtEngine("tensorrt", shapes=shapes_of, store=EngineStore(tmp_path))
    with pytest.raises(EngineError, match="TensorRT is not installed"):
        run_build(replace(job(Path("toy.onnx")), flavour="tensorrt", capability=None), tmp_path / "engine")


@pytest.mark.parametrize(
    ("flavour", "capability", "message"),
    [
        ("tensorrt-rtx", (6, 1), r"6\.1 is too old for TensorRT-RTX, which needs 7\.5.*--engine torch"),
        ("tensorrt-rtx", (9, 0), r"cannot build for compute capability 9\.0; name one of 7\.5, .*12\.1"),
        ("tensorrt", (8, 9), r"builds for the GPU that is there; leave out"),
    ],
)
def test_a_gpu_that_cannot_be_built_for_is_refused(
    flavour: str, capability: tuple[int, int], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        FLAVOURS[flavour].check(capability, gpu=False)
    if capability != (6, 1):
        FLAVOURS[flavour].check(capability, gpu=True)


def graph(folder: Path, operator: str) -> Path:
    nodes = [
        helper.make_node("Relu", ["latents"], ["positive"], name="fine"),
        helper.make_node(operator, ["positive"], ["out"], name="/block/odd"),
    ]
    given = helper.make_tensor_value_info("latents", TensorProto.FLOAT, [1, 32, "h", "w"])
    made = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "toy", [given], [made]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path = folder / "toy.onnx"
    onnx.save(model, path)
    return path


def test_a_file_that_is_refused_names_the_node_and_the_way_on(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"refuses .*toy\.onnx: node /block/odd \(Det\).*--engine torch"):
        run_build(job(graph(tmp_path, "Det")), tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_shapes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    wrong = {"latents": Triple((1, 4, 8, 8), (1, 4, 8, 8), (1, 4, 8, 8))}
    with pytest.raises(EngineError, match=r"cannot build.*latents.*--engine torch") as error:
        run_build(job(graph(tmp_path, "Relu"), wrong), tmp_path / "engine")
    assert "\n" not in str(error.value)


def test_a_build_can_be_stopped_and_has_a_time_limit(tmp_path: Path) -> None:
    path = graph(tmp_path, "Relu")
    stop = threading.Event()
    stop.set()
    with pytest.raises(EngineError, match="toy: the build was stopped"):
        run_build(job(path), tmp_path / "engine", stop=stop)
    with pytest.raises(EngineError, match=r"takes too long.*--timeout"):
        run_build(job(path), tmp_path / "engine", timeout=0.0)
    assert not (tmp_path / "engine").exists()


def test_a_process_that_dies_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(EngineError, match="toy: the process of the build ended with 3"):
        run_build(job(graph(tmp_path, "Relu")), tmp_path / "engine")


def test_the_building_process_ends_when_nobody_listens(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "toonstream.engines.tensorrt.worker"]
    # It waits for its job; what asked for it goes away instead.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) != 0


def stored(folder: Path) -> StoredEngine:
    path = folder / "engine"
    path.write_bytes(b"engine")
    key = {"flavour": "tensorrt-rtx", "version": "1.7", "compute_capability": "8.9"}
    return StoredEngine(
        digest="d", label="toonlet unet", key=key, path=path, size=6, checksum="", built=0.0, seconds=1.0,
        used=0.0,
    )  # fmt: skip


class Reasons(IntFlag):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


def runtime(reasons: int, loaded: object = None) -> SimpleNamespace:
    """A stand-in for TensorRT's module, which finds `reasons` against every engine."""
    loader = SimpleNamespace(
        get_engine_validity=lambda content: (2, reasons),
        deserialize_cuda_engine=lambda content: loaded,
    )
    return SimpleNamespace(
        Runtime=lambda log: loader,
        Logger=type("Logger", (), {"INTERNAL_ERROR": 0, "__init__": lambda self, severity: None}),
        EngineInvalidityDiagnostics=Reasons,
    )


@pytest.mark.parametrize(
    ("reasons", "message"),
    [
        (Reasons.UNSUPPORTED_CC, "another machine, for another GPU"),
        (Reasons.VERSION_MISMATCH, "another machine, by another version"),
        (Reasons.OLD_CUDA_DRIVER, "update the driver"),
        (Reasons.INSUFFICIENT_GPU_MEMORY | Reasons.UNSUPPORTED_CC, "not enough GPU memory.*--size, --window"),
        (Reasons.MALFORMED_ENGINE, "damaged"),
        (Reasons(0), "does not load.*built for tensorrt-rtx 1.7 and 8.9"),
    ],
)
def test_an_engine_that_does_not_load_says_why(reasons: Reasons, message: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=f"toonlet unet: .*{message}"):
        deserialise(runtime(reasons), RTX, stored(tmp_path))


def test_an_engine_that_loads_is_given(tmp_path: Path) -> None:
    assert deserialise(runtime(0, loaded="loaded"), RTX, stored(tmp_path)) == "loaded"


def test_the_real_runtime_refuses_without_a_gpu(decoder: NetworkSource, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    built = engine(tmp_path).build(decoder)
    with pytest.raises(EngineError, match="does not load the engine"):
        deserialise(RTX.load(), RTX, built)


class Loaded:
    """Stands in for a deserialised engine: knows the ONNX file that it was refitted from."""

    refitted: str | None = None


class Refitting:
    """Stands in for TensorRT's module on a GPU; `takes` says whether engines can be refitted."""

    def __init__(self, *, takes: bool) -> None:
        outer = self
        self.weights: list[bytes] = []

        class Refitter:
            def __init__(self, engine: Loaded, log: object) -> None:
                self.engine = engine

            def refit_cuda_engine(self) -> bool:
                return True

        class OnnxParserRefitter:
            def __init__(self, refitter: Refitter, log: object) -> None:
                self.engine = refitter.engine

            def refit_from_file(self, path: str) -> bool:
                weights = next(Path(path).parent.glob("*.safetensors")).read_bytes()
                outer.weights.append(weights)
                self.engine.refitted = path
                return takes

        self.Refitter, self.OnnxParserRefitter = Refitter, OnnxParserRefitter
        self.Logger = type("Logger", (), {"INTERNAL_ERROR": 0, "__init__": lambda self, severity: None})
        self.Runtime = lambda log: SimpleNamespace(deserialize_cuda_engine=lambda content: Loaded())


@pytest.mark.parametrize("refittable", [True, False])
def test_a_network_with_other_weights_is_built_where_it_can_be_refitted(
    decoder: NetworkSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refittable: bool
) -> None:
    """With a LoRA a stream begins on the engine that was built without it."""

    def build(job: BuildJob, output: Path, **_: object) -> Built:
        output.write_bytes(b"engine")
        return Built(seconds=0.0, peak_bytes=None)

    monkeypatch.setattr("toonstream.engines.tensorrt.engine.run_build", build)
    name, weight = next(iter(read_weights(decoder).items()))
    other = replace_weights(decoder, {name: weight + 1})
    elsewhere = engine(tmp_path)  # for a GPU that is not here
    with monkeypatch.context() as gpu:
        gpu.setattr(torch.cuda, "is_available", lambda: True)
        gpu.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
        here = engine(tmp_path, capability=None)
    assert not here.is_built(other)
    (here if refittable else elsewhere).build(decoder)
    assert here.is_built(decoder)
    assert here.is_built(other) == refittable
    assert not elsewhere.is_built(other)
    here.build(other)
    assert here.is_built(other)


@pytest.mark.parametrize("takes", [True, False])
def test_on_a_gpu_weights_go_in_by_refit_and_where_they_do_not_by_another_build(
    decoder: NetworkSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: bool
) -> None:
    built: list[BuildJob] = []

    def build(job: BuildJob, output: Path, **_: object) -> Built:
        built.append(job)
        output.write_bytes(b"engine")
        return Built(seconds=0.0, peak_bytes=None)

    runtime = Refitting(takes=takes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(Flavour, "load", lambda flavour: runtime)
    monkeypatch.setattr("toonstream.engines.tensorrt.engine.run_build", build)
    monkeypatch.setattr(
        "toonstream.engines.tensorrt.engine.TensorRtNetwork", lambda name, engine, **_: engine
    )
    serving = engine(tmp_path, capability=None)
    name, weight = next(iter(read_weights(decoder).items()))
    other = replace_weights(decoder, {name: weight + 1})
    first = serving.load(decoder)
    assert first.refitted is None  # type: ignore[attr-defined]
    assert [job.flags for job in built] == [frozenset({"refit", "require_user_allocation"})]
    changed = serving.load(other)
    assert len(runtime.weights) == 1
    assert read_weights(other)[name].numpy().tobytes() in runtime.weights[0]
    assert (changed.refitted is not None) == takes  # type: ignore[attr-defined]
    assert len(built) == (1 if takes else 2)
    # And back: an engine that nothing was put into.
    back = serving.load(decoder)
    assert back.refitted is None  # type: ignore[attr-defined]
    assert back is not first
    assert len(built) == (1 if takes else 2)
