"""Where a file may be written is found out before it is, and said in one line."""

from pathlib import Path

import pytest

from toonstream.errors import OutputError
from toonstream.stream.sinks.place import OutputPlace


def test_it_takes_the_targets_name_when_it_is_whole(tmp_path: Path) -> None:
    place = OutputPlace(tmp_path / "toon.mp4")
    assert not place.is_taken
    place.temporary.write_text("whole")
    assert place.commit().read_text() == "whole"
    assert place.is_taken
    assert [path.name for path in tmp_path.iterdir()] == ["toon.mp4"]


def test_a_long_name_that_the_file_system_takes_is_taken(tmp_path: Path) -> None:
    target = tmp_path / f"{'n' * 251}.mp4"
    OutputPlace(target).commit()
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    kept = OutputPlace(target).keep_partial()
    assert kept.name == f"{'n' * 50}.partial.mp4"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("n" * 300 + ".mp4", "File name too long"),
        ("file/toon.mp4", "Not a directory"),
        ("nowhere/toon.mp4", "does not exist"),
    ],
)
def test_what_cannot_be_written_is_said(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=says):
        OutputPlace(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
