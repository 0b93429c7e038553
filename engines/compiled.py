"""Networks as OpenVINO compiled them, kept from run to run: reading one takes a third of what compiling does.

One file for each network, set of shapes and machine: a checksum, and behind it what OpenVINO exports. A file
gets its name when it is whole, by one rename, so any number of processes may share the folder. Whatever goes
wrong with it only costs time.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["CompiledStore", "content_checksum"]

_SUFFIX = ".blob"
_CHECKSUM = hashlib.sha256
_CHECKSUM_SIZE = 32  # bytes
_LIMIT = 1 << 30  # bytes that the folder may take; the latest used stay
_LARGE = 64 << 20  # bytes; what is larger is told by its time and not by what is in it


class CompiledStore:
    """A folder of compiled networks.

    Args:
        folder: where; it is made when the first network is kept.
        limit: bytes that it may take. A network of more than a quarter of it is not kept.
    """

    def __init__(self, folder: Path, *, limit: int = _LIMIT) -> None:
        self._folder = folder
        self._limit = limit

    def find(self, key: Mapping[str, object]) -> bytes | None:
        """Give what was kept under a key; None where there is nothing, or it is damaged."""
        path = self._path(key)
        try:
            stored = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        checksum, content = stored[:_CHECKSUM_SIZE], stored[_CHECKSUM_SIZE:]
        return content if _CHECKSUM(content).digest() == checksum else None

    def keep(self, key: Mapping[str, object], content: bytes) -> None:
        """Keep a network, and let go of those that were not used for longest, where it gets too much."""
        if len(content) > self._limit // 4:
            return
        path = self._path(key)
        temporary = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.partial")
        with suppress(OSError):  # a full disk, a folder that may not be written: then nothing is kept
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with temporary.open("wb") as file:
                    file.write(_CHECKSUM(content).digest())
                    file.write(content)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            self._prune()

    def _path(self, key: Mapping[str, object]) -> Path:
        text = json.dumps(key, sort_keys=True)
        return self._folder / (hashlib.sha256(text.encode()).hexdigest()[:_CHECKSUM_SIZE] + _SUFFIX)

    def _prune(self) -> None:
        found = []
        for path in self._folder.iterdir():  # what a killed process left is counted, too
            with suppress(OSError):  # another process was quicker
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = 0
        for _, size, path in sorted(found, reverse=True):
            total += size
            if total > self._limit:
                with suppress(OSError):
                    path.unlink()


def content_checksum(files: Iterable[Path]) -> str:
    """Tell files by what is in them; large ones by their name, size and time."""
    digest = hashlib.sha256()
    for path in sorted(files):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size}\n".encode())
        if status.st_size > _LARGE:
            digest.update(f"{path.resolve()} {status.st_mtime_ns}\n".encode())
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()
