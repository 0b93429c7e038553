import inspect

import pytest

from toonstream import errors


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "ToonstreamError"])
def test_every_error_is_in_the_tree_and_inherits_a_builtin(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, errors.ToonstreamError)
    assert any(base.__module__ == "builtins" and base is not Exception for base in kind.__mro__[2:-2])
    assert name in (errors.__doc__ or "")


def test_all_errors_are_exported() -> None:
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert defined == set(errors.__all__)
