"""Captions made with the pictures: words, and what they change in them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toonstream.export.train.render import STYLES, Attributes

__all__ = ["Caption", "draw_caption", "draw_captions", "telling_phrases", "vocabulary_texts"]


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A prompt and the rendering it stands for.

    Attributes:
        text: the prompt.
        styles: weight of each style in the picture; they sum to 1.
        attributes: what else the words ask for.
    """

    text: str
    styles: dict[str, float]
    attributes: Attributes


_WORDS: tuple[tuple[tuple[tuple[str, ...], dict[str, Any]], ...], ...] = (
    (
        (("thick lines", "bold lines", "heavy outlines"), {"line": 0.96, "line_width": 2}),
        (("thin lines", "fine lines", "light outlines"), {"line": 0.38}),
        (("no lines", "no outlines", "without lines"), {"line": 0.0}),
    ),
    (
        (("few colors", "few colours", "posterized"), {"colours": 2}),
        (("many colors", "many colours", "soft shading"), {"colours": 0}),
    ),
    (
        (("vivid colors", "vivid", "saturated", "colorful"), {"saturation": 1.6}),
        (("muted colors", "muted", "desaturated", "pale colours"), {"saturation": 0.5}),
        (("black and white", "monochrome", "grayscale"), {"saturation": 0.0}),
    ),
    (
        (("warm", "warm colors", "warm light", "golden hour"), {"warmth": 1.0}),
        (("cool", "cold colors", "cool light", "cool colours"), {"warmth": -1.0}),
    ),
    (
        (("night", "at night", "moonlight"), {"night": True}),
        (("day", "daylight", "by day"), {"night": False}),
    ),
)
_ASKED = (0.5, 0.22, 0.26, 0.30, 0.20)  # how often a caption says anything about each of the above
_FILLERS = (
    "anime",
    "cartoon",
    "best quality",
    "a person",
    "a man",
    "a woman",
    "a child",
    "a face",
    "a street",
    "a dog",
    "an animal",
    "a landscape",
    "the sea",
    "indoors",
    "outdoors",
    "a movie still",
    "hand drawn",
    "drawing of a city",
    "people dancing",
    "a car on the road",
)
# How often each is all that two captions differ in; else the style is.
_ALONE = (0.22, 0.42, 0.12, 0.08, 0.05)
_ONE_THING = 0.6  # share of pairs that differ in one thing only
_EMPTY = 0.20  # share of the other captions left empty, for guidance
_TWO_STYLES = 0.18
_STYLE_WEIGHTS = (0.28, 0.20, 0.20, 0.16, 0.16)  # in the order of STYLES


def draw_caption(random: np.random.Generator) -> Caption:
    """Draw a caption; what an empty one stands for is drawn too, so that it means nothing in particular."""
    names = _names(random)
    if random.random() < _EMPTY:
        return Caption(text="", styles=_shares(names), attributes=Attributes())
    return _caption(names, _asked(random), random)


def draw_captions(random: np.random.Generator) -> tuple[Caption, Caption]:
    """Draw two captions for one picture.

    Often they differ in one thing only: what differs between the drawings is then what that word does.
    """
    if random.random() >= _ONE_THING:
        return draw_caption(random), draw_caption(random)
    names, asked = _names(random), _asked(random)
    others, other = names, list(asked)
    group = int(random.choice(len(_WORDS) + 1, p=[*_ALONE, 1.0 - sum(_ALONE)]))
    if group == len(_WORDS):
        others = _names(random)
    else:
        choices = [None, *range(len(_WORDS[group]))]
        choices.remove(asked[group])
        other[group] = choices[int(random.integers(len(choices)))]
    return _caption(names, asked, random), _caption(others, other, random)


def _names(random: np.random.Generator) -> list[str]:
    count = 2 if random.random() < _TWO_STYLES else 1
    return [str(name) for name in random.choice(STYLES, size=count, replace=False, p=_STYLE_WEIGHTS)]


def _shares(names: Sequence[str]) -> dict[str, float]:
    return dict.fromkeys(names, 1.0 / len(names))


def _asked(random: np.random.Generator) -> list[int | None]:
    """What a caption says about each group of words: the number of a choice, or nothing."""
    return [
        int(random.integers(len(choices))) if random.random() < asked else None
        for choices, asked in zip(_WORDS, _ASKED, strict=True)
    ]


def _caption(names: Sequence[str], asked: Sequence[int | None], random: np.random.Generator) -> Caption:
    words = [_style_words(names, random)]
    attributes = Attributes()
    for choices, number in zip(_WORDS, asked, strict=True):
        if number is not None:
            phrases, change = choices[number]
            words.append(_pick(phrases, random))
            attributes = replace(attributes, **change)
    if random.random() < 0.5:
        words += [_pick(_FILLERS, random) for _ in range(random.integers(1, 3))]
    if random.random() < 0.3:
        words = [words[index] for index in random.permutation(len(words))]
    return Caption(text=", ".join(words), styles=_shares(names), attributes=attributes)


def telling_phrases() -> list[tuple[str, ...]]:
    """The phrases for each choice that changes the picture."""
    return [
        phrases
        for choices in _WORDS
        for phrases, change in choices
        if replace(Attributes(), **change) != Attributes()
    ]


def vocabulary_texts() -> list[str]:
    """All phrases a caption may hold: what the tokenizer is trained on."""
    phrases = [phrase for choices in _WORDS for words, _ in choices for phrase in words]
    return [*phrases, *_FILLERS, *(f"{style} style" for style in STYLES), "and", "in the style of"]


def _style_words(names: Sequence[str], random: np.random.Generator) -> str:
    if len(names) == 2:
        return (
            f"{names[0]} and {names[1]} style"
            if random.random() < 0.5
            else ", ".join(f"{n} style" for n in names)
        )
    name = names[0]
    return _pick((f"{name} style", f"{name} style", name, f"in the style of {name}"), random)


def _pick(phrases: Sequence[str], random: np.random.Generator) -> str:
    return phrases[int(random.integers(len(phrases)))]
