"""Files that are kept to save time: whoever reads one finds it whole, or as it was before, or not at all."""

import secrets
from contextlib import suppress
from pathlib import Path

__all__ = ["keep"]


def keep(path: Path, content: bytes) -> None:
    """Write a file by one rename; what cannot be written is not kept, and only costs time later."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    with suppress(OSError):  # a full disk, a folder that is gone, or may not be written
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
