"""What several folders of tests share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

# A core for each worker: torch's threads would stand in one another's way, at five times the cost. It is read
# when torch is imported, and goes on to the commands that tests run.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from toonstream.demo import Scene, write_scene

HERE = Path(__file__).parent
COMPUTED = (
    *(HERE / folder for folder in ("export", "stream/temporal")),
    *(HERE / "stream" / f"test_{name}.py" for name in ("denoise", "rolling", "schedulers", "window")),
)  # where nothing runs in real time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is computed is right the first time, or wrong."""
    for item in items:
        if any(item.path.is_relative_to(place) for place in COMPUTED):
            item.add_marker(pytest.mark.flaky(reruns=0))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps what is kept from run to run out of the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("TOONSTREAM_CACHE", str(folder))
        yield folder


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """Writes a short filmed-looking clip with sound; keywords are those of `Scene`."""

    def make(name: str = "clip.mp4", **scene: object) -> Path:
        path = tmp_path / name
        write_scene(Scene(**{"width": 64, "height": 48, "seconds": 0.5, **scene}), path)
        return path

    return make
