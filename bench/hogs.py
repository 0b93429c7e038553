"""Other programs that want the cores, for benches of what is left."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hogs"]


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """Keep so many processes busy, each in a session of its own, as other people's programs are.

    Linux shares the cores between sessions first, where it groups them, and then within each.
    """
    busy = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(busy, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
