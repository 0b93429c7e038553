"""From file to file, where something goes wrong on the way."""

from collections.abc import Callable
from pathlib import Path

import av
import pytest

from toonstream.config import Settings, Size
from toonstream.errors import OutputError
from toonstream.stream.frame import Frame
from toonstream.stream.render import render_clip
from toonstream.stream.sinks.file import FileSink

SMALL = Settings(engine="onnxruntime", size=Size(short=48))


def test_what_was_finished_before_a_failure_is_kept_and_named(
    make_clip: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FileSink.write

    def fills_up(self: FileSink, frame: Frame) -> None:
        if self.frames == 6:
            raise OutputError("the disk is full: make room")
        real(self, frame)

    monkeypatch.setattr(FileSink, "write", fills_up)
    (tmp_path / "toon.mp4").write_bytes(b"an older result")
    with pytest.raises(OutputError, match=r"the disk is full: make room; what was finished .*partial\.mp4"):
        render_clip(make_clip(seconds=0.5), tmp_path / "toon.mp4", SMALL)
    assert (tmp_path / "toon.mp4").read_bytes() == b"an older result"
    with av.open(str(tmp_path / "toon.partial.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6
