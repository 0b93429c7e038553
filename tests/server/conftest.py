"""What the server's tests share: `stand_in`, and the bench's `link`, by their paths: they are no packages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "bench"))
