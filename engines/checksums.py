"""Checksums of files that are large, kept from run to run: to read gigabytes of weights takes seconds.

A file is told by its path, links followed, and by its device, inode, size and time of change. One that has
changed is read again, and so is one that was written a moment ago: what is written twice within a tick of the
file system's clock does not show. Whatever is wrong with what was kept only costs time.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from toonstream.engines.keeping import keep

__all__ = ["Checksums"]

_KEPT = 256  # checksums, those of what was read last
_SETTLED_NS = 2_000_000_000  # after which a file that is written once more shows it by its time


class Checksums:
    """Checksums in a file, shared by any number of processes: of two that write at once, one's are kept.

    Args:
        path: of the file: a checksum of what follows, and JSON. Its folder is made when it is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, name: str, files: Iterable[Path], read: Callable[[], str]) -> str:
        """Give the checksum of files as they are, read first where it is not known.

        Args:
            name: what of the files it is of.
            files: that it depends on.
            read: reads them, and gives it.
        """
        paths = sorted(set(files))
        before = _told(name, paths)
        known = self._load().get(before)
        if known is not None:
            return known
        checksum = read()
        if _settled(paths) and _told(name, paths) == before:
            self._keep({**self._load(), before: checksum})  # others may have come meanwhile
        return checksum

    def _load(self) -> dict[str, str]:
        try:
            checksum, _, content = self._path.read_bytes().partition(b"\n")
        except OSError:
            return {}
        if hashlib.sha256(content).hexdigest().encode() != checksum:
            return {}
        kept: dict[str, str] = json.loads(content)
        return kept

    def _keep(self, kept: Mapping[str, str]) -> None:
        latest = dict(list(kept.items())[-_KEPT:])
        content = json.dumps(latest).encode()
        with suppress(OSError):  # then nothing is kept, and it is read again
            self._path.parent.mkdir(parents=True, exist_ok=True)
        keep(self._path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def _told(name: str, files: Iterable[Path]) -> str:
    """Tell files from others, without reading them."""
    digest = hashlib.sha256(f"{name}\n".encode())
    for path in files:
        facts = path.stat()
        told = (str(path.resolve()), facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        digest.update(f"{json.dumps(told)}\n".encode())
    return digest.hexdigest()


def _settled(files: Iterable[Path]) -> bool:
    latest = max((path.stat().st_mtime_ns for path in files), default=0)
    return time.time_ns() - latest > _SETTLED_NS
