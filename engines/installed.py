"""What is installed, and what to say of the extra `export`, which a plain install goes without."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from toonstream.errors import EngineError

__all__ = ["INSTALL_EXPORT", "installed_version", "missing_for_torch", "with_export"]

INSTALL_EXPORT = "pip install 'toonstream[export]'"
_EXPORT = ("accelerate", "diffusers", "huggingface_hub", "onnx", "onnxscript", "transformers")
_TORCH = ("diffusers", "transformers")  # what the torch engine builds networks of


def installed_version(module: str, *packages: str) -> str | None:
    """Give a module's version; None where it is not installed, or does not load.

    Args:
        module: to look for; it is imported only where none of the packages has a version.
        packages: names that it may be installed under.
    """
    if importlib.util.find_spec(module) is None:
        return None
    for package in packages:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        return str(getattr(importlib.import_module(module), "__version__", "unknown"))
    except (ImportError, OSError, RuntimeError):
        return None


def missing_for_torch() -> str | None:
    """Say what the torch engine lacks; None where it lacks nothing. Imports nothing."""
    missing = [name for name in _TORCH if importlib.util.find_spec(name) is None]
    return _needs("the torch engine", " and ".join(missing)) if missing else None


@contextmanager
def with_export(what: str) -> Iterator[None]:
    """Turn the failed import of a package of the extra into an error that says how to get it.

    Args:
        what: needs it, as in "the export".

    Raises:
        EngineError: a package is missing, or does not go with the others.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXPORT:
            raise
        raise EngineError(_needs(what, package)) from None


def _needs(what: str, packages: str) -> str:
    return f"{what} needs {packages}; run `{INSTALL_EXPORT}`"
