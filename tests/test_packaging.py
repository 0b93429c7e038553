"""The wheel, built from the sdist as an index would, and used with the source out of reach."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("stream", "export", "engines", "server")
MAX_BYTES = 24_000_000
SHIPPED = {".py", ".typed", ".json", ".toml", ".safetensors", ".onnx", ".html", ".css", ".js", ".txt"}


def run(*command: object, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={"PATH": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source tree → sdist → wheel."""
    folder = tmp_path_factory.mktemp("packaging")
    run("-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (sdist,) = folder.glob("toonstream-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    run(
        "-m",
        "hatchling",
        "build",
        "-t",
        "wheel",
        "-d",
        folder,
        cwd=folder / sdist.name.removesuffix(".tar.gz"),
    )
    (wheel,) = folder.glob("toonstream-*.whl")
    return wheel


def test_the_wheel_holds_every_module_and_every_file_of_the_model(wheel: Path) -> None:
    expected = {f"toonstream/{path.name}" for path in (ROOT / "src" / "toonstream").glob("*.*")}
    for folder in FOLDERS:
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in SHIPPED)
        expected |= {f"toonstream/{path.relative_to(ROOT).as_posix()}" for path in files}
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert expected <= inside
    assert "toonstream/py.typed" in inside
    assert "toonstream/export/models/toonlet/unet/diffusion_pytorch_model.safetensors" in inside
    assert {name.split("/")[0].split("-")[0] for name in inside} == {"toonstream"}
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= MAX_BYTES


def test_the_wheel_works_with_the_source_out_of_reach(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import importlib, pkgutil, toonstream\n"
        "from toonstream.export.checkpoints import open_model, shipped_model\n"
        "for info in pkgutil.walk_packages(toonstream.__path__, 'toonstream.'):\n"
        "    if not info.name.endswith('__main__'): importlib.import_module(info.name)\n"
        "print(toonstream.__file__)\n"
        "print(open_model(shipped_model()).path)\n"
    )
    output = run("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert all(Path(line).is_relative_to(tmp_path / "site") for line in output.splitlines())
