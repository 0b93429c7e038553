"""Where a live stream comes from or goes to, in words: `rtmp://host/app/key`, `webcam:0`, `out.mp4`.

Addresses hold secrets: stream keys, passwords, tokens. What is shown of one is decided here and nowhere else.
"""

import re

__all__ = ["HIDDEN", "is_address", "redact", "scheme", "shown"]

HIDDEN = "***"

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://\S+")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_PREFIX = re.compile(r"(webcam|screen|hls|file):", re.IGNORECASE)
# What may stand in a path without being a secret: names, and nothing like `user=admin_password=…`.
_PLAIN = re.compile(r"[\w .,~-]*")


def scheme(address: str) -> str:
    """What stands before the colon, in small letters; empty for a path; `C:` is a drive."""
    found = _SCHEME.match(address) or _PREFIX.match(address)
    return found[1].lower() if found else ""


def is_address(text: str) -> bool:
    """Whether this names something live, and not just a file by its path."""
    return bool(scheme(text))


def shown(address: str) -> str:
    """The address as it may be shown to anyone.

    Of an RTMP address only host and application are left, of others no password, query or fragment, and
    no part of the path that looks like settings. Paths and devices are shown whole.
    """
    found = _SCHEME.match(address)
    if found is None or found[1].lower() == "file":
        return address
    kind = found[1].lower()
    rest = address[found.end() :]
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    tail = rest[len(authority) :]
    if "@" in tail:  # a password with a slash in it, or a key with an @: nobody can say
        return f"{kind}://{HIDDEN}"
    user, at, host = authority.rpartition("@")
    path, *more = re.split(r"[?#]", tail, maxsplit=1)
    if kind.startswith("rtmp"):
        _, _, rest_of_path = path.partition("/")
        application, slash, key = rest_of_path.partition("/")
        parts = [application, *([HIDDEN] if slash and key else [])]
    else:
        parts = path.lstrip("/").split("/") if path else []
    visible = "/".join(part if part == HIDDEN or _PLAIN.fullmatch(part) else HIDDEN for part in parts)
    return (
        f"{kind}://{HIDDEN + at if user else at}{host}"
        + ("/" + visible if path else "")
        + (f"?{HIDDEN}" if any(more) else "")
    )


def redact(text: str) -> str:
    """Replace every address in a text by what may be shown of it."""
    return _URL.sub(lambda found: shown(found[0]), text)
