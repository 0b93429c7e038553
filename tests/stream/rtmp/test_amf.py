"""AMF0 says what it was told, and does not trust what it hears."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toonstream.stream.rtmp import amf

values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1, max_size=9), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.lists(values, max_size=5))
def test_amf_says_what_it_was_told(told):
    assert amf.decode(amf.encode(*told)) == told


@given(st.binary(max_size=60))
def test_amf_that_is_nonsense_is_a_value_error_at_worst(data):
    with suppress(ValueError):
        amf.decode(data)


def test_amf_does_not_follow_a_server_into_any_depth():
    with pytest.raises(ValueError, match="objects in objects"):
        amf.decode(b"\x0a\0\0\0\1" * 500)
