"""Finding the files of parts: in folders, among files put by hand, in the hub's cache, on the hub.

Files are looked up where they already are, and only what is nowhere is downloaded; a part that is complete
never touches the network. What is missing is collected, so that one error can name all of it.
"""

import errno
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from toonstream.engines.store import cache_folder
from toonstream.errors import ModelError
from toonstream.export.parts.part import Part
from toonstream.export.parts.weights import PICKLED

__all__ = ["Located", "Locator"]


@dataclass(frozen=True, kw_only=True)
class Located:
    """A file that is there.

    Attributes:
        path: where.
        identity: changes when the content does: the hub's revision, or path, size and time of change.
        allow_pickle: whether it may be read where it is pickled.
    """

    path: Path
    identity: str
    allow_pickle: bool


class Locator:
    """Finds files, and remembers which it could not find.

    Args:
        download: get from the hub what is nowhere here; HF_HUB_OFFLINE forbids it too.
        allow_pickle: of all parts, whatever they say themselves.

    Attributes:
        missing: what was not found, each once, ready to be shown.
        unreachable: the hub was asked, or might not be asked, and did not answer.
    """

    def __init__(self, *, download: bool = True, allow_pickle: bool = False) -> None:
        self._download = download
        self._allow_pickle = allow_pickle
        self.missing: list[str] = []
        self.unreachable = False

    def find(self, part: Part, *names: str, required: bool = True) -> Located | None:
        """Find a file of a part under any of several names, the best first.

        Args:
            part: where to look.
            names: paths below the part's subfolder. Pickled ones are not downloaded without leave.
            required: note it as missing where it is not found.

        Raises:
            ModelError: the hub has no such repository, or does not give it out.
        """
        paths = [str(PurePosixPath(part.subfolder) / name) for name in names]
        allowed = part.allow_pickle or self._allow_pickle
        found = next(filter(None, (self._here(part, path, allowed) for path in paths)), None)
        if found is None and part.on_hub and self._download:
            wanted = [path for path in paths if allowed or not path.endswith(PICKLED)]
            found = next(filter(None, (self._from_hub(part, path, allowed) for path in wanted)), None)
        if found is None and required:
            self._miss(part, paths, allowed)
        return found

    def _here(self, part: Part, name: str, allowed: bool) -> Located | None:
        if not part.on_hub:
            root = Path(part.source)
            return _on_disk(root if root.is_file() else root / name, allowed)
        return _on_disk(_by_hand(part.source) / name, allowed) or _cached(part, name, allowed)

    def _from_hub(self, part: Part, name: str, allowed: bool) -> Located | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RemoteEntryNotFoundError,
            RepositoryNotFoundError,
        )

        if self.unreachable:
            return None
        network_error: type[BaseException] = HfHubHTTPError.__mro__[1]  # of whatever library the hub's uses
        try:
            with _quiet_hub():  # it tells every try of its own; what comes of them is told here
                hf_hub_download(part.source, name, revision=part.revision or None)
        except RemoteEntryNotFoundError:
            return None
        except GatedRepoError:
            raise ModelError(
                f"{part.source} is for those who accept its terms; do so on its page, then hf auth login"
            ) from None
        except RepositoryNotFoundError:
            raise ModelError(
                f"the hub has no {part.source}; correct the preset, or start a path with ./ or /"
            ) from None
        except (LocalEntryNotFoundError, network_error, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ModelError(
                    f"no room for {part.source}/{name}: make some, or name another folder in HF_HOME"
                ) from None
            self.unreachable = True
            return None
        return _cached(part, name, allowed)

    def _miss(self, part: Part, paths: Sequence[str], allowed: bool) -> None:
        pickled = [path for path in paths if path.endswith(PICKLED)]
        if not part.on_hub:
            source = Path(part.source)
            line = f"{source if source.suffix else source / paths[0]}"
        else:
            line = f"{part.source}/{paths[0]}"
        others = [PurePosixPath(path).name for path in paths[1:] if path not in pickled]
        if others:
            line += f" (or {', '.join(others)})"
        elif part.on_hub and len(pickled) == len(paths) and not allowed:
            line += " (pickled, and so not downloaded without --allow-pickle)"
        if line not in self.missing:
            self.missing.append(line)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _by_hand(source: str) -> Path:
    """Where a user may put a hub part's files."""
    return cache_folder() / "parts" / source


def _on_disk(path: Path, allowed: bool) -> Located | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    if not path.is_file():
        return None
    identity = f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    return Located(path=path, identity=identity, allow_pickle=allowed)


def _cached(part: Part, name: str, allowed: bool) -> Located | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ModuleNotFoundError:
        return None
    path = try_to_load_from_cache(part.source, name, revision=part.revision or None)
    if not isinstance(path, str):
        return None
    revision = Path(path).relative_to(Path(path).parents[len(PurePosixPath(name).parts)]).parts[0]
    return Located(path=Path(path), identity=f"{part.source}@{revision}/{name}", allow_pickle=allowed)
