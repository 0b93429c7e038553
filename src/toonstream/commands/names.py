"""What a command calls its output where no name is given."""

from pathlib import Path

from toonstream.errors import InputError

__all__ = ["beside"]


def beside(clip: Path, ending: str) -> Path:
    """Give the clip's own name, with another ending.

    Raises:
        InputError: it has none, as the folder one is in.
    """
    if not clip.name:
        raise InputError(f"{clip} is a directory: give the name of a clip in it")
    return clip.with_name(clip.stem + ending)
