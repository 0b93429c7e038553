"""The way out where threads are left in FFmpeg, a network or the build of an engine."""

import os
import sys
from typing import NoReturn

__all__ = ["leave"]


def leave(code: int) -> NoReturn:
    """End the process at once: Python's own way out waits for such threads, or aborts over them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
