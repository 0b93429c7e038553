"""Prompt syntax: which words count for how much.

`(word)` counts 1.1 times, `((word))` 1.21 times, `(word:1.3)` 1.3 times, `[word]` 1.1 times less. A backslash
takes a bracket as it stands: `\\(`. Every text is a prompt: a bracket that closes nothing is a character like
any other, and one that is never closed reaches to the end.
"""

import re
from dataclasses import dataclass

__all__ = ["HEAVIEST", "Part", "parse_prompt"]

HEAVIEST = 10.0  # no word counts more, whatever the brackets say; nor less than its negative

_EMPHASIS = 1.1
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
    """Take a prompt apart; neighbours differ in weight, and none is empty."""
    texts: list[str] = []
    weights: list[float] = []
    round_opened: list[int] = []  # where, in `texts`, what is in each open bracket begins
    square_opened: list[int] = []

    def weigh(begin: int, factor: float) -> None:
        for index in range(begin, len(weights)):
            weights[index] = min(max(weights[index] * factor, -HEAVIEST), HEAVIEST)

    for match in _TOKEN.finditer(prompt):
        text, bracket = match["escaped"] or match[0], match["bracket"]
        if bracket == "(":
            round_opened.append(len(texts))
        elif bracket == "[":
            square_opened.append(len(texts))
        elif bracket == ")" and round_opened:
            weigh(round_opened.pop(), _EMPHASIS)
        elif bracket == "]" and square_opened:
            weigh(square_opened.pop(), 1.0 / _EMPHASIS)
        elif match["weight"] is not None and round_opened:
            weigh(round_opened.pop(), float(match["weight"]))
        else:
            texts.append(text)
            weights.append(1.0)
    for begin in round_opened:
        weigh(begin, _EMPHASIS)
    for begin in square_opened:
        weigh(begin, 1.0 / _EMPHASIS)
    return _merged(texts, weights)


def _merged(texts: list[str], weights: list[float]) -> tuple[Part, ...]:
    parts: list[Part] = []
    for text, weight in zip(texts, weights, strict=True):
        if parts and parts[-1].weight == weight:
            parts[-1] = Part(text=parts[-1].text + text, weight=weight)
        else:
            parts.append(Part(text=text, weight=weight))
    return tuple(parts)
