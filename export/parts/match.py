"""Finding a network's tensors in a file of any layout, and saying what is amiss where they are not there."""

from collections.abc import Iterable, Mapping

from toonstream.errors import ModelError
from toonstream.export.parts.family import describe
from toonstream.export.parts.layouts import Layout
from toonstream.export.parts.weights import Weights

__all__ = ["match"]

_NAMED = 3  # missing tensors that an error names


def match(
    weights: Weights, wanted: Mapping[str, Iterable[int]], layouts: Iterable[Layout], *, what: str
) -> dict[str, str]:
    """Find out what each wanted tensor is called in a file.

    Args:
        weights: the file.
        wanted: name → shape of every tensor of the network. Sides of length 1 at the end do not count: the
            same attention is stored as a convolution in one layout and as a matrix in another.
        layouts: the names that files of this kind use; the one that fits best is taken.
        what: is wanted, for the error.

    Raises:
        ModelError: tensors are missing, or have other shapes.
    """
    named = [{name: layout(name) for name in wanted} for layout in layouts]
    best = max(named, key=lambda names: sum(name in weights.shapes for name in names.values()))
    missing = sorted(name for name in best.values() if name not in weights.shapes)
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ModelError(
            f"{weights.path} lacks {len(missing)} of the {len(best)} tensors of {what} "
            f"({', '.join(missing[:_NAMED])}{more}); it looks like {describe(weights.shapes)}"
        )
    for name, found in best.items():
        shape, expected = weights.shapes[found], tuple(wanted[name])
        if _trimmed(shape) != _trimmed(expected):
            raise ModelError(
                f"{weights.path}: {found} is {list(shape)} where {what} has {list(expected)}; "
                f"it looks like {describe(weights.shapes)}"
            )
    return best


def _trimmed(shape: Iterable[int]) -> tuple[int, ...]:
    sides = list(shape)
    while sides and sides[-1] == 1:
        sides.pop()
    return tuple(sides)
