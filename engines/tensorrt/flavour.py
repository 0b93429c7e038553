"""The two flavours of TensorRT, and what each can do on which GPU.

TensorRT-RTX is what is tested here: its builder needs no GPU. The libraries of the full TensorRT could not be
installed where this was written: what is done for it alone follows its documentation.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from toonstream.engines.installed import installed_version
from toonstream.errors import EngineError

__all__ = ["FLAVOURS", "Flavour", "apart", "behind", "fitting"]

Capability = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """One flavour.

    Attributes:
        name: as `--engine` takes it. title: as its makers write it.
        module: to import. packages: it comes in one of them. remedy: the command that installs it.
        capabilities: what can be named to build for; empty where it builds for the GPU that is there alone.
        least: the oldest compute capability that it runs on.
        flags: of every build.
    """

    name: str
    title: str
    module: str
    packages: tuple[str, ...]
    remedy: str
    capabilities: tuple[Capability, ...]
    least: Capability
    flags: frozenset[str] = frozenset()

    @property
    def version(self) -> str | None:
        """The version that is installed, or None."""
        return installed_version(self.module, *self.packages)

    def load(self) -> Any:
        """Import the module.

        Raises:
            EngineError: it is not installed, or its libraries do not load.
        """
        try:
            return importlib.import_module(self.module)
        except ImportError:
            raise EngineError(f"{self.title} is not installed; run `{self.remedy}`") from None
        except (OSError, RuntimeError) as error:
            raise EngineError(f"{self.title} does not load ({error}); run `{self.remedy}`") from None

    def check(self, capability: Capability, *, gpu: bool) -> None:
        """Refuse a compute capability that cannot be built for.

        Args:
            capability: such as (8, 9).
            gpu: it is that of the GPU that is there.

        Raises:
            EngineError: it is too old, or cannot be named.
        """
        shown = ".".join(map(str, capability))
        if capability < self.least:
            least = ".".join(map(str, self.least))
            raise EngineError(
                f"compute capability {shown} is too old for {self.title}, which needs {least} or newer; "
                "use --engine torch"
            )
        if gpu or capability in self.capabilities:
            return
        if not self.capabilities:
            raise EngineError(
                f"{self.title} builds for the GPU that is there; leave out the compute capability"
            )
        known = ", ".join(f"{major}.{minor}" for major, minor in self.capabilities)
        raise EngineError(f"{self.title} cannot build for compute capability {shown}; name one of {known}")


FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour(
            name="tensorrt-rtx",
            title="TensorRT-RTX",
            module="tensorrt_rtx",
            packages=("tensorrt_rtx_cu13", "tensorrt_rtx_cu12", "tensorrt_rtx"),
            remedy="pip install 'toonstream[tensorrt-rtx]'",
            capabilities=((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)),
            least=(7, 5),
            # Runs then take no memory of their own, and can be recorded.
            flags=frozenset({"require_user_allocation"}),
        ),
        Flavour(
            name="tensorrt",
            title="TensorRT",
            module="tensorrt",
            packages=("tensorrt_cu13", "tensorrt_cu12", "tensorrt"),
            remedy="pip install tensorrt",
            capabilities=(),
            least=(7, 5),
        ),
    )
}


def fitting(capability: Capability) -> Flavour | None:
    """Give the installed flavour that is made for a GPU, the quicker one to build first; None for none."""
    for flavour in FLAVOURS.values():
        made = capability in flavour.capabilities if flavour.capabilities else capability >= flavour.least
        if made and flavour.version is not None:
            return flavour
    return None


def behind(name: str, flavour: Flavour) -> str:
    """Name an engine that serves until a flavour of TensorRT takes over, as in "torch+tensorrt-rtx"."""
    return f"{name}+{flavour.name}"


def apart(name: str) -> tuple[str, str | None]:
    """Give the name of the engine that serves at first, and of the one that is to take over, if any."""
    serving, behind_it, coming = name.partition("+")
    return serving, coming if behind_it else None
