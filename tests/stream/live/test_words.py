import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.stream.live.words import Words, WordTrack


def words(level: float, seed: int = 0) -> Words:
    return Words(text=torch.full((1, 2, 2), level), negative=torch.full((1, 2, 2), -level), seed=seed)


def level(given_words: Words) -> float:
    assert torch.equal(given_words.negative, -given_words.text)
    return given_words.text.flatten()[0].item()


def test_without_a_change_every_frame_has_the_same_words():
    first = words(1.0)
    track = WordTrack(first)
    assert all(track.next() is first for _ in range(5))
    assert not track.blending


def test_a_change_is_spread_evenly_over_the_next_frames_and_ends_in_the_very_words_asked_for():
    track = WordTrack(words(0.0))
    track.next()
    target = words(1.0, seed=7)
    track.change(target, frames=3)
    on_the_way = [track.next() for _ in range(3)]
    assert [level(each) for each in on_the_way] == [0.25, 0.5, 0.75]
    assert {each.seed for each in on_the_way} == {7}
    assert track.next() is track.next() is target


def test_a_change_over_no_frames_is_there_at_once():
    track = WordTrack(words(0.0))
    target = words(1.0)
    track.change(target, frames=0)
    assert track.next() is target


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 6), st.integers(0, 8)), max_size=8))
@settings(deadline=None)
def test_words_never_jump_further_than_a_change_allows(changes):
    track = WordTrack(words(0.0))
    before = level(track.next())
    for target, frames, passing in changes:
        track.change(words(target), frames=frames)
        step = abs(target - before) / (frames + 1)
        for _ in range(passing):
            now = level(track.next())
            assert abs(now - before) <= step + 1e-5
            before = now
        if passing > frames:
            assert before == torch.tensor(target).item()


def test_guidance_takes_both_sides_and_always_the_same_tensor():
    both = words(0.5)
    assert both.sides(1.0) is both.text
    assert both.sides(3.0) is both.sides(2.0)
    assert both.sides(2.0).tolist() == [[[-0.5, -0.5]] * 2, [[0.5, 0.5]] * 2]
