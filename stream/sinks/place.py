"""A file that appears under its name only when it is whole."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

from toonstream.errors import OutputError

__all__ = ["OutputPlace", "reported"]

_STEM = 50  # characters of a name that are kept in longer ones: file systems take 255 bytes


class OutputPlace:
    """A hidden temporary file beside the target, and the ways it can end.

    `commit` gives it the target's name in one step, replacing what was there; `keep_partial` gives it a name
    of its own with `.partial` in it, which never replaces anything; `discard` removes it. A process killed
    outright leaves the hidden file behind: `.clip.<8 hex digits>.partial.mp4`.

    Attributes:
        target: the final name, with links resolved, so that a link is written through and not replaced.
        temporary: where to write; it exists and is empty.
    """

    def __init__(self, path: Path, *, source: Path | None = None) -> None:
        """Check the target and make the temporary file.

        Raises:
            OutputError: nothing can be written there, or it is `source` itself under whatever name.
        """
        with reported(path, "choose another with -o"):
            self.target = _checked(path, source)
            stem, suffix = self.target.stem[:_STEM], self.target.suffix
            self.temporary = self.target.with_name(f".{stem}.{secrets.token_hex(4)}.partial{suffix}")
            os.close(os.open(self.temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))

    @property
    def is_taken(self) -> bool:
        """Whether something has the target's name already."""
        return self.target.exists()

    def commit(self) -> Path:
        """Give the temporary file the target's name, once its bytes are on the disk. Returns the target."""
        with self.temporary.open("rb") as file:
            os.fsync(file.fileno())
        self.temporary.replace(self.target)
        return self.target

    def keep_partial(self) -> Path:
        """Give the temporary file the first free name of the kind `clip.partial.mp4`, and return that."""
        stem, suffix = self.target.stem[:_STEM], self.target.suffix
        names = (f"{stem}.partial{number}{suffix}" for number in chain([""], count(2)))
        kept = next(path for path in map(self.target.with_name, names) if not path.exists())
        self.temporary.rename(kept)
        return kept

    def discard(self) -> None:
        """Remove the temporary file."""
        self.temporary.unlink(missing_ok=True)


@contextmanager
def reported(path: Path, advice: str) -> Iterator[None]:
    """Turn what the file system says of a path into an error with advice.

    Raises:
        OutputError: nothing can be written there.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.parent.exists():
            raise OutputError(
                f"{path.parent} does not exist: make that folder first, or choose another"
            ) from error
        raise OutputError(f"{path} cannot be written ({error.strerror}): {advice}") from error


def _checked(path: Path, source: Path | None) -> Path:
    """Where links lead to, if that can be written."""
    if source is not None and path.exists() and path.samefile(source):
        raise OutputError(f"{path} is the clip itself: give another name with -o")
    if path.is_dir():
        raise OutputError(f"{path} is a directory: give the name of a file in it with -o")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a regular file: give another name with -o")
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"{path} may not be written: change its permissions, or give another name with -o")
    return path.resolve()
