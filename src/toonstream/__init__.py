"""toonstream: live action in, anime out, as it is filmed."""

__all__ = ["__version__"]

__version__ = "0.1.0"
