import io
import sys
from importlib.metadata import PackageNotFoundError

import cv2
import pytest
import torch

from toonstream.doctor import examine, findings


def test_a_healthy_machine_is_ready() -> None:
    report = io.StringIO()
    assert examine(report) == 0
    text = report.getvalue()
    for topic in (
        "python",
        "cpu",
        "memory",
        "torch",
        "av",
        "openvino",
        "onnxruntime",
        "codecs",
        "model",
        "gpu",
    ):
        assert any(topic in line.split()[:3] for line in text.splitlines()), topic
    assert "--engine openvino" in text or "--engine torch" in text
    assert text.endswith("ready: try toonstream demo\n")


@pytest.mark.parametrize("module", ["av", "cv2", "tokenizers"])
def test_what_is_missing_comes_with_its_fix(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    report = io.StringIO()
    assert examine(report) == 1
    text = report.getvalue()
    assert f"MISSING {module}" in text
    assert "fix: pip install" in text
    assert text.endswith("not ready: see the fixes above\n")


def test_what_only_exports_need_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert examine(io.StringIO()) == 0
    (finding,) = (finding for finding in findings() if finding.topic == "diffusers")
    assert "toonstream[export]" in finding.fix
    assert not finding.needed


def test_a_gpu_that_would_be_left_alone_comes_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    found = {finding.topic: finding for finding in findings()}
    assert found["would use"].text == "--engine openvino, and not the GPU"
    assert found["torch"].text.startswith("the torch engine needs diffusers; run")
    for topic in ("would use", "torch"):
        assert found[topic].fix == "pip install 'toonstream[export]'"
        assert not found[topic].needed


def test_what_comes_behind_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toonstream.engines.select.engine_name", lambda name: "torch+tensorrt-rtx")
    (finding,) = (finding for finding in findings() if finding.topic == "would use")
    assert finding.text == (
        "--engine torch, and tensorrt-rtx once it is built and agrees with that on this card"
    )


def test_opencv_under_another_name_is_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.version", unknown)
    (finding,) = (finding for finding in findings() if finding.topic == "cv2")
    assert finding.text == cv2.__version__
    assert not finding.fix
