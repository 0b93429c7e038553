import signal
import subprocess
import sys
from pathlib import Path

import pytest

from toonstream import __version__
from toonstream.cli import main
from toonstream.export.checkpoints import open_model, shipped_model

HEAVY = ("torch", "av", "cv2", "numpy", "openvino", "onnxruntime", "diffusers", "transformers")


def help_text(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    return capsys.readouterr().out


def test_help_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    lines = help_text(capsys).splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80


def test_what_has_no_room_on_it_has_a_screen_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help-consistency"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  --mode M") for line in lines)
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80


def test_help_names_the_styles_of_the_model_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert ", ".join(open_model(shipped_model()).defaults.styles) in help_text(capsys)


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"toonstream {__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["x.mp4", "--steps", "0"], ["x.mp4", "--bogus"], []])
def test_nothing_heavy_is_imported_before_the_arguments_are_checked(words: list[str]) -> None:
    code = (
        "import sys; from toonstream.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        f"sys.exit(bool(set({HEAVY!r}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=False)
    assert result.returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name a clip, or try toonstream demo"),
        (["a.mp4", "b.mp4"], "one clip at a time"),
        (["a.mp4", "--bogus"], "unrecognized arguments: --bogus; see toonstream --help"),
        (["a.mp4", "--steps", "many"], "invalid int value: 'many'"),
        (["a.mp4", "--steps", "0"], "take 1 to 50"),
        (["a.mp4", "--window", "4", "--stride", "5"], "the window's 4"),
        (["a.mp4", "--stride", "0"], "stride 0"),
        (["a.mp4", "--window", "99"], "take 1 to 32 frames"),
        (["a.mp4", "--size", "8000x8000"], "16 to 4096"),
        (["a.mp4", "--engine", "abacus"], "invalid choice: 'abacus'"),
        (["missing.mp4"], "missing.mp4 does not exist"),
        (["missing.mp4", "--style", "nonesuch"], "has no style 'nonesuch'"),
        (["missing.mp4", "--model", "nowhere"], "there is no model 'nowhere', take one of toonlet, "),
        (["missing.mp4", "--model", "diffuton"], "did you mean diffutoon or diffutoon-fast?"),
        (["missing.mp4", "--model", "./nowhere"], "nowhere is not a folder"),
        (["missing.mp4", "--contact-sheet", "nowhere/sheet.png"], "nowhere is not a folder"),
        (["a.mp4", "--deflicker", "very"], "invalid choice: 'very'"),
        (["a.mp4", "--deflicker-window", "0"], "take 1 to 30 frames on each side"),
        (["a.mp4", "--keyframes", "0"], "draw every frame (1), up to every 30th"),
        (["a.mp4", "--skip", "-1"], "take 0 (exact repetitions) to 255 levels"),
        (["a.mp4", "--skip", "nan"], "take 0 (exact repetitions) to 255 levels"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.startswith("toonstream: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_debug_shows_where_an_error_came_from() -> None:
    with pytest.raises(ValueError, match="steps 0"):
        main(["a.mp4", "--steps", "0", "--debug"])


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert main([str(tmp_path / "missing.mp4")]) == 2
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
