"""`toonstream engines`, as a user calls it."""

import contextlib
import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from toonstream.cli import main
from toonstream.config import Settings, Size
from toonstream.engines.build import BuildJob, Built
from toonstream.engines.proof import Proof, keep_proof
from toonstream.engines.store import EngineStore
from toonstream.engines.tensorrt.engine import TensorRtEngine
from toonstream.errors import ModelError
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.export.reference import with_reference
from toonstream.stream.live.settings import LiveSettings
from toonstream.stream.serving import envelope_shapes, live_envelope, network_names, stream_envelope

BUILD = ("build", "toonlet", "--compute-capability", "8.9", "--size", "256x256")


def run(*words: str) -> tuple[int, str, str]:
    """Run the command; gives its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["engines", *words])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOONSTREAM_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def built(cache: Path) -> str:
    """Builds real TensorRT-RTX engines of every network of the shipped model; gives what was printed."""
    code, out, _ = run(*BUILD, "--engine", "tensorrt-rtx")
    assert code == 0
    return out


def test_every_network_of_the_shipped_model_is_built(built: str, cache: Path) -> None:
    names = set(open_model(shipped_model()).sources)
    lines = built.splitlines()
    assert {line.split()[0] for line in lines} == names
    assert all("built in" in line and str(cache) in line for line in lines)
    engines = list(EngineStore().engines())
    assert all(engine.intact() for engine in engines)
    assert {engine.label.removeprefix("toonlet ") for engine in engines} <= names
    assert sum(engine.size for engine in engines) > 50e6


def test_what_is_built_is_found_again(built: str) -> None:
    code, out, _ = run(*BUILD, "--networks", "unet,vae_decoder")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["unet", "vae_decoder"]
    assert all("was there" in line for line in out.splitlines())


def test_what_is_kept_is_listed_with_what_is_damaged(built: str) -> None:
    code, out, _ = run("list")
    assert code == 0
    (unet,) = (line for line in out.splitlines() if "toonlet unet" in line)
    assert "tensorrt-rtx" in unet
    assert "for 8.9, float32, 1x4x32x32x32" in unet
    assert "DAMAGED" not in out
    decoder = next(engine for engine in EngineStore().engines() if "vae_decoder" in engine.label)
    os.truncate(decoder.path, 100)
    assert "DAMAGED" in run("list")[1]
    code, out, err = run(*BUILD, "--networks", "vae_decoder")
    assert code == 0
    assert "is damaged; building it again" in err
    assert "DAMAGED" not in run("list")[1]


def test_an_engine_is_inspected(built: str) -> None:
    engine = next(engine for engine in EngineStore().engines() if engine.label == "toonlet unet")
    keep_proof(engine.path, "a card", Proof(output="output", error=0.01))
    keep_proof(engine.path, "another card", Proof(output="output", error=None))
    code, out, _ = run("inspect", engine.digest[:12])
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"toonlet unet  {engine.path}"
    assert lines[1].endswith("as it was built")
    words = [line.split() for line in lines]
    assert ["compute_capability", "8.9"] in words
    assert ["flags", "require_user_allocation"] in words
    assert ["sample", "1x1x32x32x32", "1x4x32x32x32", "1x4x32x32x32"] in words  # min, opt, max
    assert lines[-3:] == [
        "on a card: agrees with torch",
        "on another card: its output is not finite",
        "its layers show where there is a GPU to load it",
    ]


def test_inspect_says_which_key_it_wants(built: str) -> None:
    code, _, err = run("inspect")
    assert (code, "Give its key, as toonstream engines list has it" in err) == (2, True)
    code, _, err = run("inspect", "unknown")
    assert (code, "no engine has the key unknown; see toonstream engines list" in err) == (2, True)
    folder = next(iter(EngineStore().engines())).path.parent
    twin = folder.with_name(folder.name[:-1] + ("0" if folder.name[-1] != "0" else "1"))
    shutil.copytree(folder, twin)
    try:
        code, _, err = run("inspect", folder.name[:12])
    finally:
        shutil.rmtree(twin)
    assert (code, "2 keys begin with" in err) == (2, True)


def test_polygraphy_shows_the_layers_where_there_is_a_gpu(
    built: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it gets as far as that there is none."""
    engine = next(iter(EngineStore().engines()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked: list[list[str]] = []
    outcomes: list[subprocess.CompletedProcess[str]] = []
    run_process = subprocess.run

    def told(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        outcomes.append(run_process(words, capture_output=True, text=True, **options))
        return outcomes[0]

    monkeypatch.setattr(subprocess, "run", told)
    code, _, _ = run("inspect", engine.digest)
    assert asked[0][-6:] == ["model", str(engine.path), "--model-type", "engine", "--show", "layers"]
    assert code != 0
    said = outcomes[0].stdout + outcomes[0].stderr
    assert "Loading bytes from" in said
    assert "Could not deserialize engine" in said


def test_pruning_goes_by_age_use_and_size(built: str) -> None:
    before = len(list(EngineStore().engines()))
    assert run("prune", "--older-than", "1", "--unused", "1", "--keep", "10")[1].startswith("freed 0.0 MB")
    assert len(list(EngineStore().engines())) == before
    largest = max(EngineStore().engines(), key=lambda engine: engine.size)
    os.utime(largest.path.with_name("manifest.json"), (0, 0))
    assert "toonlet unet" in run("prune", "--unused", "30")[1]
    assert len(list(EngineStore().engines())) == before - 1
    run("prune", "--all")
    assert list(EngineStore().engines()) == []
    assert run("list")[1].startswith("0.0 MB in ")


@pytest.mark.parametrize("live", [False, True])
def test_what_attends_to_the_past_is_built_as_a_stream_wants_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch, *, live: bool
) -> None:
    """The very engines that `toonstream CLIP --remember 2 --reference PICTURE` looks for; and a live one."""

    def build(job: BuildJob, output: Path, **_: object) -> Built:
        output.write_bytes(b"engine")
        return Built(seconds=0.0, peak_bytes=None)

    monkeypatch.setattr("toonstream.engines.tensorrt.engine.run_build", build)
    words = ("--size", "64x48", "--remember", "2", "--reference")
    more = ("--live",) if live else ()
    code, out, _ = run("build", "toonlet", "--compute-capability", "8.9", *words, *more)
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()]
    assert "unet_reference" in names
    assert "unet" not in names
    model = with_reference(open_model(shipped_model()), engine="tensorrt-rtx")
    asked: dict[str, Any] = {"remember": 2, "reference": Path("style.png")}
    if live:
        envelope = live_envelope(model, LiveSettings(**asked, size=Size(exact=(64, 48))))
    else:
        envelope = stream_envelope(model, Settings(**asked).resolve(model.defaults), size=(64, 48))
    engine = TensorRtEngine("tensorrt-rtx", shapes=envelope_shapes(envelope), capability=(8, 9))
    assert all(engine.is_built(model.sources[name]) for name in network_names(model))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
def test_engines_are_verified_against_onnx_runtime(engine: str) -> None:
    code, out, _ = run(
        "verify", "toonlet", "--engine", engine, "--size", "64", "--networks", "vae_encoder,hint_outline"
    )
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:2]] == ["vae_encoder", "hint_outline"]
    assert f"{engine} against onnxruntime: within" in out


def test_torch_is_compared_with_files_that_it_has_no_need_of(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def load(model: str, *, engine: str, say: object) -> None:
        asked.append(engine)
        raise ModelError("far enough")

    monkeypatch.setattr("toonstream.export.assemble.load_model", load)
    assert run("verify", "toonlet", "--engine", "torch")[2] == "toonstream: far enough\n"
    assert run("verify", "toonlet", "--engine", "openvino")[0] == 2
    assert asked == ["onnxruntime", "openvino"]


def test_an_engine_that_differs_is_told_by_the_exit_code() -> None:
    code, out, _ = run(
        "verify", str(shipped_model()), "--engine", "openvino", "--size", "64", "--networks", "vae_encoder",
        "--tolerance", "1e-12",
    )  # fmt: skip
    assert code == 1
    assert "DIFFERS" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required"),
        ("burn", "invalid choice: 'burn'"),
        ("build", "name a model, such as toonlet"),
        ("build toonlet", "runs on an NVIDIA GPU, and torch finds none here"),
        ("build toonlet --compute-capability 89", "'89' is no compute capability"),
        ("build toonlet --compute-capability 6.1", "too old for TensorRT-RTX"),
        ("build toonlet --compute-capability 9.0", "name one of 7.5"),
        ("build toonlet --engine openvino", "openvino needs no building ahead"),
        ("build toonlet --engine tensorrt --compute-capability 8.9", "TensorRT is not installed"),
        (
            "build toonlet --compute-capability 8.9 --networks vae",
            "has no network 'vae'; it has text_encoder",
        ),
        ("build toonlet --compute-capability 8.9 --window 99", "window 99"),
        ("build toonlet --compute-capability 8.9 --remember 99", "remember 99"),
        ("build toonlet --compute-capability 8.9 --live --remember 99", "remember 99"),
        ("build toonlet --compute-capability 8.9 --size big", "size"),
        ("build no/where --compute-capability 8.9", "no/where is not a folder"),
        ("verify toonlet --engine tensorflow", "unknown engine 'tensorflow'"),
        ("verify toonlet --engine tensorrt-rtx", "runs on an NVIDIA GPU, and torch finds none here"),
        ("prune", "say what to throw away"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(words: str, message: str) -> None:
    code, out, err = run(*words.split())
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_help_fits_on_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["engines", "--help"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 36
    assert max(map(len, lines)) <= 90
