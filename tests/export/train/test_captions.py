"""Captions mean what the picture shows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from toonstream.export.train.captions import draw_caption, draw_captions, vocabulary_texts
from toonstream.export.train.render import STYLES, Attributes


@given(st.integers(0, 2**32 - 1))
def test_a_caption_names_its_styles_and_nothing_else(seed: int) -> None:
    caption = draw_caption(np.random.default_rng(seed))
    assert sum(caption.styles.values()) == 1.0
    if caption.text:
        assert {
            style for style in STYLES if style in caption.text.split(" style")[0] or style in caption.text
        } >= set(caption.styles)
    else:
        assert caption.attributes == Attributes()


@given(st.integers(0, 2**32 - 1))
def test_attributes_follow_the_words(seed: int) -> None:
    caption = draw_caption(np.random.default_rng(seed))
    words = caption.text.split(", ")
    attributes = caption.attributes
    assert attributes.night == any(word in {"night", "at night", "moonlight"} for word in words)
    assert (attributes.warmth > 0) == any("warm" in word or word == "golden hour" for word in words)
    assert (attributes.line_width > 1) == any(
        word in {"thick lines", "bold lines", "heavy outlines"} for word in words
    )


def test_captions_are_drawn_alike_from_a_seed_and_differ_between_seeds() -> None:
    texts = [draw_caption(np.random.default_rng(seed)).text for seed in range(50)]
    assert texts == [draw_caption(np.random.default_rng(seed)).text for seed in range(50)]
    assert len(set(texts)) > 30
    assert "" in {draw_caption(np.random.default_rng(seed)).text for seed in range(100)}


def test_most_pairs_of_captions_differ_in_one_thing_at_most() -> None:
    alike = 0
    for seed in range(200):
        one, other = draw_captions(np.random.default_rng(seed))
        groups = {"style"} if one.styles != other.styles else set()
        for name, value in vars(one.attributes).items():
            if value != vars(other.attributes)[name]:
                groups.add(name.removesuffix("_width"))  # lines are one thing
        alike += len(groups) <= 1
    assert 110 <= alike < 190


def test_the_tokenizer_is_trained_on_every_style() -> None:
    assert {f"{style} style" for style in STYLES} <= set(vocabulary_texts())
