"""Peak memory of a short and a long clip: `python bench/memory.py [--frames 101 2000]`.

Each clip is rendered in a process of its own; the goal is a ratio of at most 1.05. Both lengths leave the
same rest of a stride, so that both runs, or neither, have a shorter last window. And both find the networks
compiled, by a run before them: to compile takes more memory than to draw, and would hide what grows.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from toonstream.demo import Scene, write_scene

_RATE = 24  # frames a second
_CHILD = (
    "import resource, sys; from toonstream.cli import main\n"
    "code = main(sys.argv[1:])\n"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    "sys.exit(code)"
)


def peak_bytes(frames: int, *, width: int, height: int, folder: Path, options: list[str]) -> int:
    """Render a clip of so many frames in a fresh process, and give its peak resident memory."""
    clip = folder / f"{frames}.mp4"
    write_scene(Scene(width=width, height=height, rate=_RATE, seconds=frames / _RATE), clip)
    words = [str(clip), "-q", "-o", str(folder / "toon.mp4"), *options]
    environment = {**os.environ, "TOONSTREAM_CACHE": str(folder / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", _CHILD, *words], check=True, capture_output=True, text=True, env=environment
    )
    unit = 1 if sys.platform == "darwin" else 1024
    return int(result.stdout) * unit


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--frames", type=int, nargs=2, default=(101, 2000), help="lengths to compare (101 2000)"
    )
    parser.add_argument("--size", type=int, nargs=2, default=(128, 96), help="width and height (128 96)")
    known, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        _, *peaks = [
            peak_bytes(
                frames, width=known.size[0], height=known.size[1], folder=Path(folder), options=options
            )
            for frames in (known.frames[0], *known.frames)
        ]
    for frames, peak in zip(known.frames, peaks, strict=True):
        print(f"{frames:6} frames  {peak / 2**20:8.1f} MiB at the peak")
    print(f"ratio {peaks[1] / peaks[0]:.3f} (goal: at most 1.05)")


if __name__ == "__main__":
    main()
