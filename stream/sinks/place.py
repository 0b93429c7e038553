"""A file that appears under its name only when it is whole."""

import os
import secrets
from itertools import chain, count
from pathlib import Path

from toonstream.errors import OutputError

__all__ = ["OutputPlace"]


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
        if source is not None and path.exists() and path.samefile(source):
            raise OutputError(f"{path} is the clip itself: give another name with -o")
        if path.is_dir():
            raise OutputError(f"{path} is a directory: give the name of a file in it with -o")
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is not a regular file: give another name with -o")
        if path.exists() and not os.access(path, os.W_OK):
            raise OutputError(
                f"{path} may not be written: change its permissions, or give another name with -o"
            )
        self.target = path.resolve()
        stem, suffix = self.target.stem, self.target.suffix
        self.temporary = self.target.with_name(f".{stem}.{secrets.token_hex(4)}.partial{suffix}")
        try:
            os.close(os.open(self.temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except OSError as error:
            if not path.parent.exists():
                raise OutputError(
                    f"{path.parent} does not exist: make that folder first, or choose another"
                ) from error
            raise OutputError(
                f"{path.parent} cannot be written to ({error.strerror}): choose another folder with -o"
            ) from error

    def commit(self) -> Path:
        """Give the temporary file the target's name, once its bytes are on the disk. Returns the target."""
        with self.temporary.open("rb") as file:
            os.fsync(file.fileno())
        self.temporary.replace(self.target)
        return self.target

    def keep_partial(self) -> Path:
        """Give the temporary file the first free name of the kind `clip.partial.mp4`, and return that."""
        stem, suffix = self.target.stem, self.target.suffix
        names = (f"{stem}.partial{number}{suffix}" for number in chain([""], count(2)))
        kept = next(path for path in map(self.target.with_name, names) if not path.exists())
        self.temporary.rename(kept)
        return kept

    def discard(self) -> None:
        """Remove the temporary file."""
        self.temporary.unlink(missing_ok=True)
