"""How large frames are drawn."""

from toonstream.config import Settings, Size
from toonstream.export.checkpoints import Defaults
from toonstream.stream.sources.file import SourceInfo

__all__ = ["padded_size", "rendered_size"]


def rendered_size(settings: Settings, defaults: Defaults, info: SourceInfo) -> tuple[int, int]:
    """Give the (width, height) in pixels that a clip is rendered at.

    Raises:
        SettingError: it cannot be rendered at what is asked for.
    """
    return (settings.size or Size(short=defaults.size, cap=True)).of(info.width, info.height)


def padded_size(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Round (width, height) up to multiples; the output is cropped back."""
    width, height = size
    return -(-width // multiple) * multiple, -(-height // multiple) * multiple
