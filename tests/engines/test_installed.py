"""What is installed, under whatever name, and what is said of the extra where it is not."""

import sys
from pathlib import Path

import pytest

from toonstream.engines.installed import installed_version, with_export
from toonstream.engines.tensorrt.flavour import FLAVOURS
from toonstream.errors import EngineError


def install(folder: Path, module: str, content: str, *packages: tuple[str, str]) -> None:
    (folder / f"{module}.py").write_text(content)
    for package, version in packages:
        info = folder / f"{package}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")


def test_a_module_has_the_version_of_the_package_that_it_came_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "toolkit", "raise RuntimeError('nobody is to import it')", ("toolkit_cu12", "10.3"))
    assert installed_version("toolkit", "toolkit_cu13", "toolkit-cu12") == "10.3"


@pytest.mark.parametrize(
    ("content", "version"),
    [
        ("__version__ = '1.2'", "1.2"),
        ("", "unknown"),
        ("raise OSError('libcudart is not there')", None),
        ("import a_module_that_is_not_there", None),
    ],
)
def test_without_a_package_a_module_says_its_version_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, version: str | None
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "toolkit", content)
    monkeypatch.delitem(sys.modules, "toolkit", raising=False)
    assert installed_version("toolkit", "toolkit_cu13") == version
    monkeypatch.delitem(sys.modules, "toolkit", raising=False)


def test_a_module_that_is_not_there_has_no_version() -> None:
    assert installed_version("a_module_that_is_not_there", "pytest") is None


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_cu12", "tensorrt_cu13"])
def test_tensorrt_may_be_installed_under_several_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "tensorrt", "raise RuntimeError('nobody is to import it')", (package, "10.16.1"))
    assert FLAVOURS["tensorrt"].version == "10.16.1"


def test_a_missing_package_of_the_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with (
        pytest.raises(EngineError, match=r"^unet needs diffusers; run `pip install 'toonstream\[export\]'`$"),
        with_export("unet"),
    ):
        import diffusers  # noqa: F401
    with pytest.raises(ModuleNotFoundError), with_export("unet"):
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")
