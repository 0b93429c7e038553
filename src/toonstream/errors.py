"""Every error toonstream raises on purpose.

    ToonstreamError
    ├── InputError (ValueError)      a clip, a size, a prompt or a setting that cannot be used
    │   └── SettingError             an option, or options together, that make no sense
    ├── OutputError (OSError)        the result cannot be written where it should go
    ├── ModelError (ValueError)      a model folder or checkpoint that is incomplete or of another kind
    └── EngineError (RuntimeError)   an engine that is not there, or refuses a network

Messages are one line and say what to do about it. The command line prints them and exits with 2.
"""

__all__ = ["EngineError", "InputError", "ModelError", "OutputError", "SettingError", "ToonstreamError"]


class ToonstreamError(Exception):
    """The base of all errors that toonstream raises on purpose."""


class InputError(ToonstreamError, ValueError):
    """A clip, a size, a prompt or a setting that cannot be used."""


class SettingError(InputError):
    """An option, or several together, that make no sense."""


class OutputError(ToonstreamError, OSError):
    """The result cannot be written where it should go."""


class ModelError(ToonstreamError, ValueError):
    """A model folder or checkpoint that is incomplete or of another kind."""


class EngineError(ToonstreamError, RuntimeError):
    """An engine that is not there, or refuses a network."""
