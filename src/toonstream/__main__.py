"""`python -m toonstream`."""

import sys

from toonstream.cli import main

if __name__ == "__main__":
    sys.exit(main())
