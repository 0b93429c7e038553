"""Where built engines are kept: one folder, each engine under a key that holds everything it depends on.

    <folder>/<key>/engine          the built engine
    <folder>/<key>/manifest.json   its key in full, size, checksum, when it was built and how long that took
    <folder>/<key>/proofs.json     whether it may take over from torch, see `engines.proof`
    <folder>/.building/            what is being built; nothing here is ever taken for an engine
    <folder>/.locks/               one file per key, locked by the process that builds it
    <folder>/.checksums            of the weights that engines were built of, see `engines.checksums`

An engine gets its name when it is whole, by one rename. The lock is the operating system's: when a process is
killed, its lock is free at once.

An engine itself is read whole and held against its checksum each time that it is loaded: what has damaged it
need not show in its size or time.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import cast

from toonstream.engines.checksums import Checksums
from toonstream.engines.shapes import Triple
from toonstream.errors import EngineError

__all__ = ["EngineKey", "EngineStore", "StoredEngine", "cache_folder", "file_checksum", "to_prune"]

_DIGEST_LENGTH = 32  # hexadecimal digits
_CHUNK = 1 << 20  # bytes read at a time
_ENGINE = "engine"
_MANIFEST = "manifest.json"

Say = Callable[[str], None]


def cache_folder() -> Path:
    """Where toonstream keeps what it can make again: `$TOONSTREAM_CACHE`, or `~/.cache/toonstream`."""
    named = os.environ.get("TOONSTREAM_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "toonstream"


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """Everything that a built engine depends on.

    Attributes:
        onnx: checksum of the graph and of the weights that it points to.
        weights: checksum of the weights that take the place of some of them (LoRAs, styles); empty for none.
        shapes: of each input, by name.
        precision: that it computes in, such as "float16".
        flags: how it is built, such as "refit".
        flavour: tensorrt-rtx or tensorrt.
        version: of that.
        compute_capability: of the GPU it is for, such as "8.9".
    """

    onnx: str
    weights: str = ""
    shapes: Mapping[str, Triple]
    precision: str
    flags: frozenset[str] = field(default_factory=frozenset)
    flavour: str
    version: str
    compute_capability: str

    @property
    def digest(self) -> str:
        """The name that this key has in a store."""
        text = json.dumps(self.facts(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]

    def facts(self) -> dict[str, object]:
        """The key, ready for JSON."""
        shapes = {name: [list(shape) for shape in triple] for name, triple in self.shapes.items()}
        return asdict(self) | {"flags": sorted(self.flags), "shapes": shapes}


@dataclass(frozen=True, kw_only=True)
class StoredEngine:
    """An engine that is in a store.

    Attributes:
        digest: of its key. label: what it is, for people, such as "toonlet unet". key: as JSON has it.
        path: the file. size: in bytes. checksum: what the file's should be.
        built: when, in seconds since 1970. seconds: how long it took. used: when last.
    """

    digest: str
    label: str
    key: Mapping[str, object]
    path: Path
    size: int
    checksum: str
    built: float
    seconds: float
    used: float

    @property
    def largest_input(self) -> str:
        """What an engine is fastest at, for people: its finest input, as in "1x4x4x64x64"."""
        shapes = cast(Mapping[str, list[list[int]]], self.key["shapes"])
        largest = max((triple[1] for triple in shapes.values()), key=lambda shape: (len(shape), shape[-1]))
        return "x".join(map(str, largest))

    @property
    def whole(self) -> bool:
        """Whether the file is there and as long as what was built; it is not read."""
        try:
            return self.path.stat().st_size == self.size
        except OSError:
            return False

    def intact(self) -> bool:
        """Read the whole file, and say whether it is what was built."""
        try:
            return self.whole and file_checksum(self.path) == self.checksum
        except OSError:
            return False


class EngineStore:
    """A folder of built engines, shared by any number of processes.

    Args:
        folder: where; None is `engines` in `cache_folder()`. It is made when something is kept.

    Attributes:
        checksums: of the weights that engines are built of.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "engines"
        self.checksums = Checksums(self.folder / ".checksums")

    def find(self, key: EngineKey) -> StoredEngine | None:
        """Give the engine of a key, or None where there is none; it may be damaged."""
        return _read(self.folder / key.digest)

    def intact(self, key: EngineKey) -> StoredEngine | None:
        """Give the engine of a key, read whole; None where there is none that is what was built."""
        found = self.find(key)
        if found is None or not found.intact():
            return None
        with suppress(OSError):  # not ours to touch
            os.utime(found.path.with_name(_MANIFEST))
        return found

    def obtain(
        self,
        key: EngineKey,
        build: Callable[[Path], None],
        *,
        label: str,
        say: Say = lambda line: None,
    ) -> StoredEngine:
        """Give the engine of a key, built first where there is none that is intact.

        Args:
            key: of the engine.
            build: writes the engine to the path it is given. Of all processes that ask, one calls it, and the
                others wait.
            label: what it is, for people.
            say: is told what is waited for, and what was found damaged.

        Raises:
            EngineError: the folder cannot be written to; and what `build` raises.
        """
        try:
            lock = self._lock(key.digest)
            if not lock.take(wait=False):
                say(f"{label}: another process is building it; waiting")
                lock.take(wait=True)
            try:
                return self._checked(key, label, say) or self._build(key, build, label)
            finally:
                lock.release()
        except OSError as error:
            raise EngineError(
                f"{self.folder}: {error.strerror or error}; "
                "make room, or name another folder in TOONSTREAM_CACHE"
            ) from None

    def _checked(self, key: EngineKey, label: str, say: Say) -> StoredEngine | None:
        folder = self.folder / key.digest
        found = self.intact(key)
        if found is None and folder.exists():
            say(f"{label}: {folder / _ENGINE} is damaged; building it again")
        return found

    def _build(self, key: EngineKey, build: Callable[[Path], None], label: str) -> StoredEngine:
        """Build, with the lock held."""
        making = self.folder / ".building"
        making.mkdir(parents=True, exist_ok=True)
        for left in making.glob(f"{key.digest}-*"):  # by a build that was killed, since the lock is ours
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(mkdtemp(prefix=f"{key.digest}-", dir=making))
        try:
            begin = time.monotonic()
            path = folder / _ENGINE
            build(path)
            manifest = {
                "label": label,
                "key": key.facts(),
                "size": path.stat().st_size,
                "checksum": file_checksum(path),
                "built": time.time(),
                "seconds": round(time.monotonic() - begin, 1),
            }
            (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
            final = self.folder / key.digest
            if final.exists():
                shutil.rmtree(final)
            folder.rename(final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        built = _read(final)
        assert built is not None
        return built

    def engines(self) -> Iterator[StoredEngine]:
        """Give all engines, the latest used first; what is no engine is passed over."""
        found = (_read(path.parent) for path in self.folder.glob(f"*/{_MANIFEST}"))
        yield from sorted((engine for engine in found if engine), key=lambda engine: -engine.used)

    def remove(self, engine: StoredEngine) -> bool:
        """Remove an engine; gives False, and leaves it, where a process is building or checking it."""
        lock = self._lock(engine.digest)
        if not lock.take(wait=False):
            return False
        try:
            shutil.rmtree(engine.path.parent, ignore_errors=True)
        finally:
            lock.release()
        return True

    def sweep(self) -> int:
        """Remove what killed builds left, and what is seen to be damaged; gives the bytes that were freed.

        Engines are not read for it: that one with another content of the same length is damaged shows when it
        is loaded, or verified.
        """
        lefts = [(left, left.name.partition("-")[0]) for left in (self.folder / ".building").glob("*-*")]
        for folder in self.folder.glob("[!.]*/"):
            found = _read(folder)
            if found is None or not found.whole:
                lefts.append((folder, folder.name))
        freed = 0
        for left, digest in lefts:
            lock = self._lock(digest)
            if lock.take(wait=False):
                try:
                    freed += sum(path.stat().st_size for path in left.rglob("*") if path.is_file())
                    shutil.rmtree(left, ignore_errors=True)
                finally:
                    lock.release()
        return freed

    def _lock(self, digest: str) -> "_Lock":
        folder = self.folder / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        return _Lock(folder / f"{digest}.lock")


class _Lock:
    """The operating system's lock on a file; it goes with the process that holds it."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        # One that is not reentrant in this process either: two threads build once, as two processes do.
        self._lock = FileLock(path)

    def take(self, *, wait: bool) -> bool:
        """Take it; without waiting, gives False where another has it."""
        from filelock import Timeout

        try:
            self._lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Let it go."""
        self._lock.release()


def to_prune(
    engines: Iterable[StoredEngine],
    *,
    now: float,
    older_than: float | None = None,
    unused_for: float | None = None,
    keep_bytes: int | None = None,
) -> list[StoredEngine]:
    """Choose what to remove; nothing is chosen where no limit is given.

    Args:
        engines: all there are.
        now: seconds since 1970.
        older_than: seconds; what was built longer ago goes.
        unused_for: seconds; what was last used longer ago goes.
        keep_bytes: of what is left, the latest used stay while they fit in so many bytes.
    """
    gone, kept = [], 0
    for engine in sorted(engines, key=lambda engine: (-engine.used, engine.digest)):
        old = older_than is not None and now - engine.built > older_than
        unused = unused_for is not None and now - engine.used > unused_for
        if old or unused or (keep_bytes is not None and kept + engine.size > keep_bytes):
            gone.append(engine)
        else:
            kept += engine.size
    return gone


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read(folder: Path) -> StoredEngine | None:
    """Read what the manifest says; None where there is none, or none that can be read."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return StoredEngine(
            digest=folder.name,
            label=str(manifest["label"]),
            key=dict(manifest["key"]),
            path=folder / _ENGINE,
            size=int(manifest["size"]),
            checksum=str(manifest["checksum"]),
            built=float(manifest["built"]),
            seconds=float(manifest["seconds"]),
            used=(folder / _MANIFEST).stat().st_mtime,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
