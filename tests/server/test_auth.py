"""Who may do what."""

from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.server.auth import RateLimiter, bearer, host_allowed, origin_allowed, token_matches


def test_tokens_are_compared_whole() -> None:
    assert token_matches("secret", "secret")
    assert token_matches(None, None)
    assert token_matches("anything", None)
    assert not token_matches(None, "secret")
    assert not token_matches("secre", "secret")
    assert not token_matches("sécret", "secret")


def test_a_bearer_token_is_read_from_its_header() -> None:
    assert bearer("Bearer abc") == "abc"
    assert bearer("bearer  abc ") == "abc"
    assert bearer("Basic abc") is None
    assert bearer("Bearer") is None
    assert bearer(None) is None


def test_pages_of_our_own_and_of_those_named_may_come() -> None:
    assert origin_allowed(None, "example.org", ())
    assert origin_allowed("https://example.org", "example.org", ())
    assert origin_allowed("http://localhost:8080", "localhost:8080", ())
    assert not origin_allowed("http://localhost:9999", "localhost:8080", ())
    assert not origin_allowed("null", "example.org", ())
    assert origin_allowed("https://other.org", "example.org", ("https://other.org",))
    assert origin_allowed("https://other.org", "example.org", ("*",))


def test_on_loopback_a_foreign_name_is_no_name_of_ours() -> None:
    for name in ("localhost:1", "127.0.0.1", "[::1]:8080", "127.0.0.2"):
        assert host_allowed(name, "127.0.0.2")
    for name in ("evil.example:8080", "", "localhost.evil.example", "[::1"):
        assert not host_allowed(name, "127.0.0.1")


@settings(deadline=None)
@given(
    rate=st.floats(0.1, 50), burst=st.floats(1, 20), steps=st.lists(st.floats(0, 3), min_size=1, max_size=80)
)
def test_never_more_than_the_rate_and_a_burst(rate: float, burst: float, steps: list[float]) -> None:
    now = 0.0
    limiter = RateLimiter(rate, burst, clock=lambda: now)
    passed = 0
    for step in steps:
        now += step
        wait = limiter.take("a")
        passed += wait == 0.0
        assert passed <= burst + rate * now + 1e-6
        assert 0.0 <= wait <= 1.0 / rate + 1e-9


def test_addresses_are_counted_apart_and_forgotten_in_time() -> None:
    limiter = RateLimiter(1.0, 1.0, clock=lambda: 0.0, addresses=2)
    assert limiter.take("a") == 0.0
    assert limiter.take("a") > 0.0
    assert limiter.take("b") == 0.0
    assert limiter.take("c") == 0.0  # "a" is forgotten
    assert limiter.take("a") == 0.0
