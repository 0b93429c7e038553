"""`toonstream export`, on the tiny model."""

import json
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import onnx
import pytest

from toonstream.cli import main
from toonstream.export.checkpoints import open_model


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with one ControlNet, not exported."""
    spec = spec_from_file_location("tiny", Path(__file__).parents[1] / "export" / "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    tiny = module_from_spec(spec)
    spec.loader.exec_module(tiny)
    folder: Path = tiny.write_model(tmp_path_factory.mktemp("tiny"))
    shutil.rmtree(folder / "controlnet_colour")
    for name, nested in (("model_index.json", None), ("toonstream.json", "controlnets")):
        content = json.loads((folder / name).read_text())
        del (content[nested] if nested else content)["colour" if nested else "controlnet_colour"]
        (folder / name).write_text(json.dumps(content))
    return folder


def test_a_model_is_exported_elsewhere_and_verified(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert main(["export", str(written), "-o", str(folder), "--verify"]) == 0
    said = capsys.readouterr()
    model = open_model(folder)
    assert all(path.is_file() for path in model.onnx_files.values())
    assert not list(written.rglob("*.onnx"))
    for name in model.sources:
        assert f"exporting {name} (" in said.err
        assert f"{name} took " in said.err
        assert any(line.startswith(f"{name} ") and line.endswith(" ok") for line in said.out.splitlines())

    stamps = {path: path.stat().st_mtime_ns for path in model.onnx_files.values()}
    damaged = model.onnx_files["vae_decoder"]
    graph = onnx.load(damaged, load_external_data=False)
    (last,) = (node for node in graph.graph.node if node.output[0] == "image")
    last.output[0] = "almost"
    graph.graph.node.append(onnx.helper.make_node("Sin", ["almost"], ["image"]))
    damaged.write_bytes(graph.SerializeToString())
    assert main(["export", str(folder), "--verify"]) == 2
    said = capsys.readouterr()
    assert "exporting" not in said.err
    assert said.err.startswith("toonstream: vae_decoder's image differ")
    assert "DIFFERS" in said.out
    kept = [path for path, stamp in stamps.items() if path != damaged and path.stat().st_mtime_ns == stamp]
    assert len(kept) == len(stamps) - 1


def test_float16_goes_beside_float32(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(written, folder)
    assert main(["export", str(folder), "--precision", "float16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(open_model(folder).sources)
    assert all(".float16.onnx  " in line and line.endswith(" kB") for line in lines)
    assert (folder / "vae" / "decoder.float16.onnx").is_file()
    assert not (folder / "vae" / "decoder.onnx").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/nowhere"], "/nowhere is not a folder"),
        (["/nowhere", "-o", "out"], "/nowhere is no model folder"),
        (["no-such-preset"], "no-such-preset"),
        ([], "see toonstream export --help"),
        (["x", "--precision", "int8"], "see toonstream export --help"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_folder_of_other_things_is_not_written_into(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert main(["export", str(written), "-o", str(tmp_path)]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert main(["export", str(written), "-o", str(tmp_path / "letter.txt")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
