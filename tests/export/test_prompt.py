import sys
from itertools import groupby, pairwise
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from toonstream.export.prompt import HEAVIEST, Part, parse_prompt


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("ink style, night: 2.5", [("ink style, night: 2.5", 1.0)]),
        ("a (cat) b", [("a ", 1.0), ("cat", 1.1), (" b", 1.0)]),
        ("((cat))", [("cat", 1.21)]),
        ("[cat]", [("cat", 1 / 1.1)]),
        ("(cat:1.3)", [("cat", 1.3)]),
        ("(cat : .5 )", [("cat ", 0.5)]),
        ("(cat:-1)", [("cat", -1.0)]),
        ("(a (cat:1.5) b:0.5)", [("a ", 0.5), ("cat", 0.75), (" b", 0.5)]),
        ("(a [b] c:2)", [("a ", 2.0), ("b", 2 / 1.1), (" c", 2.0)]),
        (r"smile \(closed eyes\)", [("smile (closed eyes)", 1.0)]),
        (r"(\[x\]\\:2)", [("[x]\\", 2.0)]),
        (r"C:\dir", [(r"C:\dir", 1.0)]),
        ("[from:to:0.5]", [("from:to:0.5", 1 / 1.1)]),
        ("[x:1.2)", [("x:1.2)", 1 / 1.1)]),  # square brackets take no number
        ("a) b]:1.2)", [("a) b]:1.2)", 1.0)]),
        ("a (b [c", [("a ", 1.0), ("b ", 1.1), ("c", 1.0)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:9999)", [("a", HEAVIEST)]),
        ("((a:9999):0.01)", [("a", HEAVIEST)]),
        ("(a:9999)" * 2, [("aa", HEAVIEST)]),
        ("((a:0.001):2000)", [("a", 2.0)]),
        ("(a [b) c] d", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1), (" d", 1.0)]),
        ("()[](:2)", []),
    ],
)
def test_what_counts_for_how_much(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert [(part.text, part.weight) for part in parse_prompt(prompt)] == [
        (text, pytest.approx(weight)) for text, weight in expected
    ]


def written(part: Part) -> str:
    """The part as a user would write it."""
    text = part.text
    for character in "\\()[]":
        text = text.replace(character, f"\\{character}")
    return text if part.weight == 1.0 else f"({text}:{part.weight:g})"


WEIGHTS = st.integers(-1000, 1000).map(lambda hundredths: hundredths / 100)
PARTS = st.builds(lambda text, weight: Part(text=text, weight=weight), st.text(min_size=1), WEIGHTS)


@given(st.lists(PARTS))
@example([Part(text="x:2", weight=1.0), Part(text=")", weight=2.0)])
def test_what_is_written_is_read_back(parts: list[Part]) -> None:
    wanted = [next(alike) for _, alike in groupby(parts, key=lambda part: part.weight)]
    assert list(parse_prompt("".join(map(written, wanted)))) == wanted


@given(st.one_of(st.text(), st.text("()[]:\\.-0123456789 a", max_size=60)))
def test_every_text_is_a_prompt(prompt: str) -> None:
    read = parse_prompt(prompt)
    assert all(part.text and abs(part.weight) <= HEAVIEST for part in read)
    assert all(one.weight != other.weight for one, other in pairwise(read))
    left = list("".join(part.text for part in read))
    for character in prompt:  # nothing is added, and what is left out is brackets, backslashes and weights
        if left and left[0] == character:
            left.pop(0)
        else:
            assert character in "()[]:\\.+-0123456789" or character.isspace()
    assert not left


@pytest.mark.parametrize("piece", ["(a", "[a", "((a:2)", "(a)[b]", "\\(", "a:"])
def test_a_long_prompt_takes_no_more_for_each_word_than_a_short_one(piece: str) -> None:
    def lines_run(repeats: int) -> int:
        count = 0

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal count
            count += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            parse_prompt(piece * repeats)
        finally:
            sys.settrace(before)
        return count

    assert lines_run(800) < 5 * lines_run(200)


@given(st.integers(1, 3000))
def test_deep_nesting_stays_finite(depth: int) -> None:
    (part,) = parse_prompt("(" * depth + "a" + ":999)" * depth)
    assert part == Part(text="a", weight=HEAVIEST)
