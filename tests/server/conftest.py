"""What the server's tests share: `stand_in` is imported by its path, since tests are no packages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
