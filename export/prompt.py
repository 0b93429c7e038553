"""Prompt syntax: which words count for how much.

`(word)` counts 1.1 times, `((word))` 1.21 times, `(word:1.3)` 1.3 times, `[word]` 1.1 times less. A backslash
takes a bracket as it stands: `\\(`. Every text is a prompt: a bracket that closes nothing is a character like
any other, and one that is never closed reaches to the end.
"""

import re
from dataclasses import dataclass
from itertools import groupby

__all__ = ["HEAVIEST", "Part", "parse_prompt"]

HEAVIEST = 10.0  # no word counts more, whatever the brackets say; nor less than its negative

_EMPHASIS = 1.1
_HUGE = 1e300  # what brackets within one another come to at most on the way; it stays finite
_TOKEN = re.compile(
    r"""\\(?P<escaped>[\\()\[\]])
    | (?P<bracket>[()\[\]])
    | :\s*(?P<weight>[+-]?(?:[0-9]{1,4}(?:\.[0-9]{0,6})?|\.[0-9]{1,6}))\s*\)
    | [^\\()\[\]:]+ | [\\:]""",
    re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a prompt whose words count alike.

    Attributes:
        text: the words, without the brackets.
        weight: how much they count; 1 is as usual.
    """

    text: str
    weight: float = 1.0


def parse_prompt(prompt: str) -> tuple[Part, ...]:
    """Take a prompt apart, in linear time; neighbours differ in weight, and none is empty."""
    texts: list[tuple[str, int, int]] = []  # with the round bracket that each is in, and how many square ones
    factors, around = [1.0], [0]  # of each round bracket, with the one that it is in; the first is no bracket
    inside = squares = 0
    for match in _TOKEN.finditer(prompt):
        text, bracket = match["escaped"] or match[0], match["bracket"]
        if bracket == "(":
            factors.append(_EMPHASIS)
            around.append(inside)
            inside = len(factors) - 1
        elif bracket == "[":
            squares += 1
        elif bracket == ")" and inside:
            inside = around[inside]
        elif bracket == "]" and squares:
            squares -= 1
        elif match["weight"] is not None and inside:
            factors[inside] = float(match["weight"])
            inside = around[inside]
        else:
            texts.append((text, inside, squares))
    products = [1.0]
    for factor, outer in zip(factors[1:], around[1:], strict=True):
        products.append(_bounded(products[outer] * factor, _HUGE))
    weighed = (
        (text, _bounded(products[inside] * _EMPHASIS**-squares, HEAVIEST)) for text, inside, squares in texts
    )
    return tuple(
        Part(text="".join(text for text, _ in alike), weight=weight)
        for weight, alike in groupby(weighed, key=lambda each: each[1])
    )


def _bounded(weight: float, most: float) -> float:
    return min(max(weight, -most), most)
