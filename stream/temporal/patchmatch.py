"""PatchMatch: for every place of one picture, the place of another whose surroundings look most like it.

This is FastBlend's version of it, on whole pictures at a time and from coarse to fine. A field holds, for
every pixel of a target, a row and a column of a source. Two things are compared, patch by patch: the guides,
which are the frames as they were filmed, and the styles, which are what was drawn of them. The target's style
is voted for by the field itself: every pixel is in many patches, and becomes the mean of what the patches'
counterparts have there.

Not as in the code that FastBlend's authors published: fields keep their aim on sides of odd length, patches
at the border see its pixels repeated instead of black, and random numbers belong to a pair of frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Compare", "Matched", "PatchMatchSettings", "patch_match"]

Compare = Literal["own", "mean", "others"]

_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0))  # rows, columns
_CHUNK = {
    "cpu": 8192,
    "cuda": 1 << 20,
}  # pixels whose patches are compared at a time: as the caches are large
_KEY_BITS = 128


@dataclass(frozen=True, kw_only=True)
class PatchMatchSettings:
    """How hard to look.

    Attributes:
        smallest: side of the patches in the last iteration, in pixels, odd; each one before has 2 more.
        iterations: on every level.
        searches: random places tried in every iteration, each within half the reach of the one before.
        guide_weight: of the guides' difference over the styles'.
    """

    smallest: int = 5
    iterations: int = 5
    searches: int = 4
    guide_weight: float = 10.0

    @property
    def largest(self) -> int:
        """Side of the patches in the first iteration, in pixels."""
        return self.smallest + 2 * (self.iterations - 1)

    def levels(self, height: int, width: int) -> int:
        """How many sizes a picture is searched at: ⌊log2(short side / largest)⌋, at least 1."""
        return max(1, (min(height, width) // self.largest).bit_length() - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Matched:
    """What was found for each pair.

    Attributes:
        field: (N, H, W, 2) int64, the source's row and column for every pixel of the target.
        style: (N, H, W, 3), the source's style as the target has it, in [0, 255].
    """

    field: Tensor
    style: Tensor


def patch_match(
    targets: Tensor,
    sources: Tensor,
    styles: Tensor,
    *,
    keys: Sequence[tuple[int, int]],
    seed: int = 0,
    compare: Compare = "own",
    own: Tensor | None = None,
    settings: PatchMatchSettings | None = None,
) -> Matched:
    """Match N pairs at once, each as if it were alone unless `compare` says otherwise.

    Args:
        targets: the guides to be matched, (N, H, W, 3) float in [0, 255]; their device is where it is done.
        sources: the guides to look in, same shape.
        styles: of the sources, same shape.
        keys: of each pair, the numbers of target and source, which its random numbers belong to.
        seed: of all random numbers.
        compare: what a source's style should look like: "own", what its own field votes for; "mean", the mean
            of all votes, and "others", the mean of all the other votes, which makes the pairs one group, of
            one target.
        own: a style (H, W, 3) that counts among the votes of the group, as it is.
        settings: how hard to look.
    """
    settings = settings or PatchMatchSettings()
    height, width = targets.shape[1:3]
    levels = settings.levels(height, width)
    random = [
        np.random.Generator(np.random.Philox(key=seed % (1 << _KEY_BITS), counter=[0, 0, target, source]))
        for target, source in keys
    ]
    shortest = [side >> (levels - 1) for side in (height, width)]
    reach = max(1, max(shortest) // 2)
    field = None
    with torch.inference_mode():
        for level in reversed(range(levels)):
            size = height >> level, width >> level
            search = _Search(
                *(_shrunk(pictures, size) for pictures in (targets, sources, styles)),
                field=_places(len(targets), size, targets.device) if field is None else _grown(field, size),
                own=None if own is None else _shrunk(own[None], size)[0],
                compare=compare,
                settings=settings,
            )
            for iteration in range(settings.iterations):
                search.begin(settings.largest - 2 * iteration)
                for direction in _DIRECTIONS:
                    search.propagate(direction)
                for halvings in range(settings.searches):
                    radius = max(1, reach >> halvings)
                    offsets = [each.integers(-radius, radius + 1, (*size, 2), np.int32) for each in random]
                    search.jump(torch.from_numpy(np.stack(offsets)).to(targets.device))
            field = search.field
        assert field is not None
        return Matched(field=field, style=_vote(styles, field, settings.smallest))


class _Search:
    """One level: the fields so far and their errors, and what is tried to better them."""

    def __init__(
        self,
        targets: Tensor,
        sources: Tensor,
        styles: Tensor,
        *,
        field: Tensor,
        own: Tensor | None,
        compare: Compare,
        settings: PatchMatchSettings,
    ) -> None:
        self.field = field
        self._weight = settings.guide_weight**0.5
        self._targets = targets
        self._styles = styles
        self._sources = torch.cat([self._weight * sources, styles], dim=-1)
        self._own = own
        self._compare = compare

    def begin(self, side: int) -> None:
        """Begin an iteration with patches of `side` pixels: vote, and see how well the fields do."""
        wanted = torch.cat([self._weight * self._targets, self._reference(side)], dim=-1)
        self._wanted, self._found = _Patches(wanted, side), _Patches(self._sources, side)
        everywhere = torch.arange(self.field[..., 0].numel(), device=self.field.device)
        _, self._error = self._errors(everywhere, self.field.reshape(-1, 2), limit=None)

    def propagate(self, direction: tuple[int, int]) -> None:
        """Try what each pixel's neighbour would have it be; the direction is from that one to the pixel."""
        down, right = direction
        height, width = self.field.shape[1:3]
        to_rows, to_columns = (
            slice(max(0, by), side + min(0, by)) for by, side in ((down, height), (right, width))
        )
        from_rows, from_columns = (
            slice(max(0, -by), side + min(0, -by)) for by, side in ((down, height), (right, width))
        )
        candidate = self.field.clone()
        candidate[:, to_rows, to_columns] = self.field[:, from_rows, from_columns]
        candidate[:, to_rows, to_columns, 0] += down
        candidate[:, to_rows, to_columns, 1] += right
        self._try(candidate)

    def jump(self, offsets: Tensor) -> None:
        """Try places that lie (N, H, W, 2) rows and columns away."""
        self._try(self.field + offsets)

    def _try(self, candidate: Tensor) -> None:
        """Take a candidate where it is better, and only there."""
        height, width = candidate.shape[1:3]
        candidate[..., 0].clamp_(0, height - 1)
        candidate[..., 1].clamp_(0, width - 1)
        flat, field = candidate.reshape(-1, 2), self.field.reshape(-1, 2)
        where = (flat != field).any(dim=-1).nonzero()[:, 0]
        better, error = self._errors(where, flat[where], limit=self._error[where])
        where = where[better]
        self._error[where] = error
        field[where] = flat[where]

    def _errors(self, where: Tensor, places: Tensor, *, limit: Tensor | None) -> tuple[Tensor, Tensor]:
        """How much the targets' patches around the pixels `where` (K,) differ from those at `places` (K, 2).

        Returns:
            Which of the K are below their limit, and their errors.
        """
        height, width = self.field.shape[1:3]
        pair = torch.div(where, height * width, rounding_mode="floor")
        there = (pair * height + places[:, 0]) * width + places[:, 1]
        chunk = _CHUNK[where.device.type]
        below, errors = [], []
        for begin in range(0, len(where), chunk):
            part = slice(begin, begin + chunk)
            which, error = _differences(
                self._wanted, where[part], self._found, there[part], None if limit is None else limit[part]
            )
            below.append(which + begin)
            errors.append(error)
        if not errors:
            return where, self._error[where]
        return torch.cat(below), torch.cat(errors)

    def _reference(self, side: int) -> Tensor:
        """The style that each pair's target is taken to have."""
        votes = _vote(self._styles, self.field, side)
        if self._compare == "own":
            return votes
        total, count = votes.sum(dim=0, keepdim=True), len(votes)
        if self._own is not None:
            total, count = total + self._own, count + 1
        if self._compare == "mean":
            return (total / count).expand_as(votes)
        return (total - votes) / (count - 1) if count > 1 else votes


class _Patches:
    """The patches of pictures (N, H, W, C), in rows: a patch is `side` rows of `side` pixels."""

    def __init__(self, pictures: Tensor, side: int) -> None:
        padded = _bordered(pictures, side // 2)
        count, rows, columns, channels = padded.shape
        self.side = side
        self._width = columns - side + 1
        self._height = rows - side + 1
        # Every row of every patch lies in one piece: to fetch it is to copy it.
        runs = padded.as_strided(
            (count, rows, self._width, side * channels),
            (rows * columns * channels, columns * channels, channels, 1),
        )
        self._runs = runs.reshape(-1, side * channels)

    def begin(self, where: Tensor) -> Tensor:
        """Where the patches around the pixels `where` (K,), counted over all pictures, begin."""
        skipped = torch.div(where, self._height * self._width, rounding_mode="floor") * (self.side - 1)
        return where + skipped * self._width

    def row(self, begin: Tensor, number: int) -> Tensor:
        """One row of the patches that begin there: (K, side · C)."""
        return self._runs.index_select(0, begin + number * self._width)


def _differences(
    one: _Patches, at: Tensor, other: _Patches, there: Tensor, limit: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Summed squares of the differences between K patches of two pictures, where they are below a limit.

    Most of what is tried is far off, which the first rows tell: the rest of it is not looked at.

    Returns:
        Which of the K they are, and their sums.
    """
    which = torch.arange(len(at), device=at.device)
    at, there = one.begin(at), other.begin(there)
    middle = one.side // 2
    total = None
    for number in sorted(range(one.side), key=lambda number: abs(number - middle)):
        row = one.row(at, number).sub_(other.row(there, number)).square_().sum(dim=-1)
        total = row if total is None else total + row
        if limit is not None:
            below = (total < limit).nonzero()[:, 0]
            which, total, limit = which[below], total[below], limit[below]
            at, there = at[below], there[below]
    assert total is not None
    return which, total


def _vote(styles: Tensor, field: Tensor, side: int) -> Tensor:
    """The mean of what the patches' counterparts have in each place, (N, H, W, C) as the styles."""
    count, height, width, channels = styles.shape
    patches = _Patches(styles, side)
    pair = torch.arange(count, device=field.device).reshape(-1, 1, 1)
    where = patches.begin(((pair * height + field[..., 0]) * width + field[..., 1]).reshape(-1))
    edge = side - 1
    total = styles.new_zeros(count, height + edge, width + edge, channels)
    for down in range(side):
        run = patches.row(where, down).reshape(count, height, width, side, channels)
        for right in range(side):
            total[:, down : down + height, right : right + width] += run[..., right, :]
    radius = side // 2
    voters = [_within(length, radius, styles) for length in (height, width)]
    return total[:, radius : radius + height, radius : radius + width] / torch.outer(*voters)[..., None]


def _within(length: int, radius: int, like: Tensor) -> Tensor:
    """How many places of a line are at most `radius` away from each of them."""
    place = torch.arange(length, device=like.device)
    return (place.clamp(max=radius) + (length - 1 - place).clamp(max=radius) + 1).to(like.dtype)


def _bordered(pictures: Tensor, by: int) -> Tensor:
    """Repeat the border's pixels of (N, H, W, C)."""
    channels_first = F.pad(pictures.permute(0, 3, 1, 2), (by,) * 4, mode="replicate")
    return channels_first.permute(0, 2, 3, 1).contiguous()


def _shrunk(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Average (N, H, W, C) down to (height, width)."""
    if tuple(pictures.shape[1:3]) == size:
        return pictures
    return F.adaptive_avg_pool2d(pictures.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1).contiguous()


def _grown(field: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a field to a finer level: pixels are moved as far as the coarse one that they are part of."""
    coarse = field.shape[1:3]
    axes = [torch.arange(fine, device=field.device) for fine in size]
    from_row, from_column = (axis * was // fine for axis, was, fine in zip(axes, coarse, size, strict=True))
    moved = field - _places(len(field), coarse, field.device)
    moved = moved[:, from_row][:, :, from_column]
    for axis, (was, fine) in enumerate(zip(coarse, size, strict=True)):
        moved[..., axis] = torch.div(2 * moved[..., axis] * fine + was, 2 * was, rounding_mode="floor")
    grown = moved + _places(len(field), size, field.device)
    for axis, fine in enumerate(size):
        grown[..., axis].clamp_(0, fine - 1)
    return grown


def _places(count: int, size: Sequence[int], device: torch.device) -> Tensor:
    """The field that leads every pixel to itself, (count, H, W, 2)."""
    rows, columns = (torch.arange(side, device=device) for side in size)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).repeat(count, 1, 1, 1)
