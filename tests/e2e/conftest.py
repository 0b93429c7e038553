"""What these tests share is imported by its path, since tests are no packages."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "server"), str(Path(__file__).parent)]
