"""A part of a preset: what it is and where it lies."""

from dataclasses import dataclass

__all__ = ["Part"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One checkpoint.

    Attributes:
        source: a hub id (OWNER/NAME), or an absolute path of a folder or file.
        file: the file in the source, where it is one of its own and not a folder in diffusers' layout.
        subfolder: where in the source it lies.
        revision: of the hub's repository; empty is its main branch.
        config: a hub id or an absolute path of a folder with the `config.json` of a file whose network is not
            of Stable Diffusion 1.5's size.
        weight: how strongly a ControlNet or a LoRA counts.
        licence: of the weights.
        bytes: what has to be downloaded, about.
        allow_pickle: the user trusts the source, pickled as it may be.
        optional: the preset does without it where it can be had only pickled, and that is not allowed.
    """

    source: str
    file: str = ""
    subfolder: str = ""
    revision: str = ""
    config: str = ""
    weight: float = 1.0
    licence: str = ""
    bytes: int = 0
    allow_pickle: bool = False
    optional: bool = False

    @property
    def on_hub(self) -> bool:
        """Whether it is named by a hub id."""
        return is_hub_id(self.source)


def is_hub_id(source: str) -> bool:
    """Tell OWNER/NAME from a path, which starts with a root, a dot or a tilde."""
    return source.count("/") == 1 and not source.startswith(("/", ".", "~")) and "\\" not in source
