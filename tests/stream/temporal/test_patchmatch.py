"""The whole-picture PatchMatch against a plain one, brute force, and pictures whose field is known."""

from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from toonstream.stream.temporal.patchmatch import Compare, Matched, PatchMatchSettings, patch_match

Picture = NDArray[np.float64]  # (H, W, 3)
Field = NDArray[np.int64]  # (H, W, 2), rows and columns
QUICK = PatchMatchSettings(smallest=3, iterations=2, searches=2)


def noise(seed: int, height: int, width: int) -> Picture:
    """No two patches of it are alike."""
    return np.random.default_rng(seed).uniform(0, 255, (height, width, 3))


def texture(seed: int, height: int, width: int) -> Picture:
    """Soft blobs, as filmed pictures have them."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (height // 6 + 2, width // 6 + 2, 3))
    fine = noise(seed + 1, height, width)
    blobs = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(blobs + 0.1 * fine)


def match(
    targets: list[Picture],
    sources: list[Picture],
    styles: list[Picture],
    keys: list[tuple[int, int]],
    own: Picture | None = None,
    **options: object,
) -> Matched:
    tensors = (torch.from_numpy(np.stack(group)) for group in (targets, sources, styles))
    return patch_match(*tensors, keys=keys, own=None if own is None else torch.from_numpy(own), **options)


@pytest.mark.parametrize(
    ("size", "smallest", "compare"),
    [((13, 15), 1, "own"), ((13, 15), 1, "mean"), ((15, 13), 1, "others"), ((9, 12), 3, "own")],
)  # sides of odd length; two levels, and one
def test_it_finds_what_a_plain_one_finds(size: tuple[int, int], smallest: int, compare: Compare) -> None:
    quick = PatchMatchSettings(smallest=smallest, iterations=2, searches=2)
    targets = [noise(1, *size)] * 2
    sources = [np.roll(targets[0], (1, 2), (0, 1)) + noise(seed, *size) * 0.3 for seed in (2, 3)]
    styles = [noise(seed, *size) for seed in (4, 5)]
    own = noise(6, *size) if compare == "mean" else None
    found = match(targets, sources, styles, [(7, 8), (7, 6)], own, seed=9, compare=compare, settings=quick)
    fields, remapped = plain_patch_match(
        targets,
        sources,
        styles,
        keys=[(7, 8), (7, 6)],
        seed=9,
        compare=compare,
        own=own,
        settings=quick,
    )
    assert np.array_equal(found.field.numpy(), np.stack(fields))
    assert np.allclose(found.style.numpy(), np.stack(remapped))


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -4), (-5, 2)])
def test_a_picture_that_moved_is_found_where_it_went(down: int, right: int) -> None:
    wide, drawn = texture(1, 70, 79), texture(2, 70, 79)
    here = (slice(5, 65), slice(5, 74))
    there = (slice(5 - down, 65 - down), slice(5 - right, 74 - right))
    found = match([wide[here]], [wide[there]], [drawn[there]], [(0, 1)])
    inside = slice(10, -10), slice(10, -10)
    assert ((found.field[0].numpy() - still((60, 69)))[inside] == (down, right)).all()
    assert np.allclose(found.style[0].numpy()[inside], drawn[here][inside])


def test_a_picture_is_its_own_match() -> None:
    picture = texture(1, 45, 61)
    found = match([picture], [picture], [picture], [(3, 3)])
    assert np.array_equal(found.field[0].numpy(), still((45, 61)))
    assert np.allclose(found.style[0].numpy(), picture)


def test_it_comes_close_to_brute_force() -> None:
    """Summed over the picture, the errors are at most 1.5 times the least possible ones."""
    height, width, side = 26, 30, 5
    target, source = texture(1, height, width), np.rot90(texture(1, width, height)) + 10.0
    found = match([target], [source], [source], [(0, 1)], settings=PatchMatchSettings(guide_weight=1e6))
    patches = {
        name: np.array([patch(picture, y, x, side) for y in range(height) for x in range(width)]).reshape(
            height * width, -1
        )
        for name, picture in (("target", target), ("source", source))
    }
    squares = {name: (each**2).sum(axis=1) for name, each in patches.items()}
    errors = squares["target"][:, None] + squares["source"] - 2 * patches["target"] @ patches["source"].T
    field = found.field[0].numpy().reshape(-1, 2)
    reached = errors[np.arange(height * width), field[:, 0] * width + field[:, 1]]
    start = np.diagonal(errors)
    assert reached.sum() <= 1.5 * errors.min(axis=1).sum()
    assert reached.sum() < 0.5 * start.sum()


def test_random_numbers_belong_to_the_pair_and_not_to_its_company() -> None:
    pictures = [noise(seed, 26, 31) for seed in range(4)]
    keys = [(0, 1), (0, 2), (5, 1)]
    together = match([pictures[0]] * 3, pictures[1:], pictures[1:], keys, settings=QUICK)
    for number, key in enumerate(keys):
        alone = match([pictures[0]], [pictures[number + 1]], [pictures[number + 1]], [key], settings=QUICK)
        assert torch.equal(alone.field[0], together.field[number])
        assert torch.equal(alone.style[0], together.style[number])
    again = match([pictures[0]], [pictures[1]], [pictures[1]], [(0, 1)], settings=QUICK)
    other = match([pictures[0]], [pictures[1]], [pictures[1]], [(0, 1)], seed=1, settings=QUICK)
    assert torch.equal(again.field[0], together.field[0])
    assert not torch.equal(other.field, again.field)


def test_borders_are_not_pulled_to_black() -> None:
    """Uniform pictures remap to themselves, up to the corners."""
    target, source = np.full((30, 33, 3), 200.0), np.full((30, 33, 3), 190.0)
    style = np.full((30, 33, 3), 120.0)
    found = match([target], [source], [style], [(0, 1)])
    assert np.allclose(found.style.numpy(), 120.0)
    assert np.array_equal(found.field[0].numpy(), still((30, 33)))  # nothing is better than where it is


@pytest.mark.parametrize(("size", "levels"), [((256, 300), 4), ((52, 52), 2), ((51, 80), 1), ((5, 5), 1)])
def test_pictures_are_halved_until_patches_are_large_in_them(size: tuple[int, int], levels: int) -> None:
    assert PatchMatchSettings().levels(*size) == levels


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same() -> None:
    pictures = [torch.from_numpy(texture(seed, 64, 70))[None] for seed in range(3)]
    here = patch_match(*pictures, keys=[(0, 1)])
    there = patch_match(*(picture.cuda() for picture in pictures), keys=[(0, 1)])
    assert (there.field.cpu() == here.field).all(dim=-1).float().mean() > 0.99
    assert torch.allclose(there.style.cpu(), here.style, atol=5.0)


def plain_patch_match(
    targets: Sequence[Picture],
    sources: Sequence[Picture],
    styles: Sequence[Picture],
    *,
    keys: Sequence[tuple[int, int]],
    seed: int,
    compare: Compare,
    own: Picture | None,
    settings: PatchMatchSettings,
) -> tuple[list[Field], list[Picture]]:
    """PatchMatch in plain loops, one pixel and one patch after the other, as algorithms.md has it (§5)."""
    height, width, _ = targets[0].shape
    levels = max(1, int(np.floor(np.log2(min(height, width) / settings.largest))))
    random = [np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, *key])) for key in keys]
    reach = max(1, max(height >> (levels - 1), width >> (levels - 1)) // 2)
    fields: list[Field] = []
    for level in reversed(range(levels)):
        size = height >> level, width >> level
        here = [[shrunk(picture, size) for picture in group] for group in (targets, sources, styles)]
        drawn = None if own is None else shrunk(own, size)
        fields = [grown(field, size) for field in fields] or [still(size) for _ in targets]
        for iteration in range(settings.iterations):
            side = settings.largest - 2 * iteration
            votes = [voted(style, field, side) for style, field in zip(here[2], fields, strict=True)]
            for number, (target, source, style) in enumerate(zip(*here, strict=True)):
                wanted = reference(votes, number, compare, drawn)
                offsets = [
                    random[number].integers(-(radius := max(1, reach >> j)), radius + 1, (*size, 2), np.int32)
                    for j in range(settings.searches)
                ]
                fields[number] = improved(
                    fields[number], target, wanted, source, style, offsets, side, settings.guide_weight
                )
    remapped = [voted(style, field, settings.smallest) for style, field in zip(styles, fields, strict=True)]
    return fields, remapped


def improved(
    field: Field,
    target: Picture,
    wanted: Picture,
    source: Picture,
    style: Picture,
    offsets: Sequence[NDArray[np.int32]],
    side: int,
    guide_weight: float,
) -> Field:
    height, width, _ = target.shape

    def error(row: int, column: int, place: NDArray[np.int64]) -> float:
        guides = patch(target, row, column, side) - patch(source, *place, side)
        styles = patch(wanted, row, column, side) - patch(style, *place, side)
        return float(guide_weight * (guides**2).sum() + (styles**2).sum())

    def tried(candidates: Field) -> None:
        for row in range(height):
            for column in range(width):
                place = np.clip(candidates[row, column], 0, (height - 1, width - 1))
                found = error(row, column, place)
                if found < errors[row, column]:
                    field[row, column], errors[row, column] = place, found

    field = field.copy()
    errors = np.array([[error(y, x, field[y, x]) for x in range(width)] for y in range(height)])
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        candidates = field.copy()
        for row in range(height):
            for column in range(width):
                if 0 <= row - down < height and 0 <= column - right < width:
                    candidates[row, column] = field[row - down, column - right] + (down, right)
        tried(candidates)
    for offset in offsets:
        tried(field + offset)
    return field


def reference(votes: Sequence[Picture], number: int, compare: Compare, own: Picture | None) -> Picture:
    if compare == "own" or (compare == "others" and len(votes) == 1 and own is None):
        return votes[number]
    counted = [vote for other, vote in enumerate(votes) if compare == "mean" or other != number]
    return np.mean([*counted, *([] if own is None else [own])], axis=0)


def patch(picture: Picture, row: int, column: int, side: int) -> Picture:
    height, width, _ = picture.shape
    rows = np.clip(np.arange(row - side // 2, row + side // 2 + 1), 0, height - 1)
    columns = np.clip(np.arange(column - side // 2, column + side // 2 + 1), 0, width - 1)
    return picture[np.ix_(rows, columns)]


def voted(style: Picture, field: Field, side: int) -> Picture:
    height, width, _ = style.shape
    result = np.zeros_like(style)
    radius = side // 2
    for row in range(height):
        for column in range(width):
            found = [
                style[
                    np.clip(field[y, x, 0] - (y - row), 0, height - 1),
                    np.clip(field[y, x, 1] - (x - column), 0, width - 1),
                ]
                for y in range(max(0, row - radius), min(height, row + radius + 1))
                for x in range(max(0, column - radius), min(width, column + radius + 1))
            ]
            result[row, column] = np.mean(found, axis=0)
    return result


def still(size: tuple[int, int]) -> Field:
    return np.stack(np.mgrid[: size[0], : size[1]], axis=-1)


def grown(field: Field, size: tuple[int, int]) -> Field:
    coarse = field.shape[:2]
    result = still(size)
    for row in range(size[0]):
        for column in range(size[1]):
            at = row * coarse[0] // size[0], column * coarse[1] // size[1]
            for axis in range(2):
                moved = (field[at][axis] - at[axis]) * size[axis] / coarse[axis]
                place = result[row, column, axis] + int(np.floor(moved + 0.5))
                result[row, column, axis] = min(max(place, 0), size[axis] - 1)
    return result


def shrunk(picture: Picture, size: tuple[int, int]) -> Picture:
    """Average down, each result over all pixels that it has a part of."""
    height, width, _ = picture.shape

    def span(index: int, fine: int, coarse: int) -> slice:
        return slice(index * fine // coarse, -(-(index + 1) * fine // coarse))

    return np.array(
        [
            [
                picture[span(row, height, size[0]), span(column, width, size[1])].mean(axis=(0, 1))
                for column in range(size[1])
            ]
            for row in range(size[0])
        ]
    )
