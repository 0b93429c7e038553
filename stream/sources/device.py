"""Cameras and screens, by the system's own name for them."""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import av

from toonstream.errors import InputError
from toonstream.stream.sources.live import Opening

__all__ = ["Camera", "Platform", "list_cameras", "list_screens", "platform", "screen", "webcam"]

_X_SOCKETS = Path("/tmp/.X11-unix")  # where X servers have them


@dataclass(frozen=True, kw_only=True)
class Platform:
    """How a system names its devices to FFmpeg.

    Attributes:
        cameras: FFmpeg's format for cameras.
        camera_url: from a camera's name to what is opened.
        screens: FFmpeg's format for the screen.
        screen_url: what is opened where nobody says which screen.
        advice: what to do where there is no screen.
    """

    cameras: str
    camera_url: str
    screens: str
    screen_url: str
    advice: str


_PLATFORMS = {
    "linux": Platform(
        cameras="v4l2",
        camera_url="{}",
        screens="x11grab",
        screen_url="$DISPLAY",
        advice="set DISPLAY, or name one as in screen::0; a Wayland session shows itself through a camera of"
        " OBS",
    ),
    "darwin": Platform(
        cameras="avfoundation",
        camera_url="{}:none",
        screens="avfoundation",
        screen_url="Capture screen 0:none",
        advice="allow the terminal to record the screen in the system's settings",
    ),
    "win32": Platform(
        cameras="dshow",
        camera_url="video={}",
        screens="gdigrab",
        screen_url="desktop",
        advice="log in to a desktop",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera that is there.

    Attributes:
        name: the system's, such as `/dev/video0`.
        description: what a person would recognise.
    """

    name: str
    description: str


def platform(name: str = sys.platform) -> Platform:
    """The system's ways.

    Raises:
        InputError: they are not known.
    """
    if name not in _PLATFORMS:
        raise InputError(f"cameras and screens of {name} are not known: take a file or an address")
    return _PLATFORMS[name]


def list_cameras(system: Platform) -> tuple[Camera, ...]:
    """The cameras that are there, in the system's order."""
    try:
        devices = av.enumerate_input_devices(system.cameras)
    except (ValueError, OSError):  # FFmpeg was built without, or may not look
        return ()
    # Loopback and metadata nodes list no media types; on Linux nothing does.
    return tuple(
        Camera(name=device.name, description=device.description)
        for device in devices
        if not device.media_types or "video" in device.media_types
    )


def list_screens(system: Platform, sockets: Path = _X_SOCKETS) -> tuple[str, ...]:
    """The screens that are there, as far as anybody can tell: those of X servers on this machine."""
    if system.screens != "x11grab" or not sockets.is_dir():
        return ()
    names = [path.name for path in sockets.iterdir()]
    numbers = sorted(int(name[1:]) for name in names if re.fullmatch(r"X\d+", name))
    return tuple(f":{number}" for number in numbers)


def webcam(
    wanted: str,
    *,
    system: Platform | None = None,
    cameras: Callable[[Platform], Sequence[Camera]] = list_cameras,
) -> Opening:
    """How to open a camera.

    Args:
        wanted: its number among those there are, its name, a part of its description, or nothing: the first.
        system: the system's ways, or None for this one's.
        cameras: finds the cameras.

    Raises:
        InputError: there is none like that; the message says which there are.
    """
    system = system or platform()
    there = cameras(system)
    if not there:
        raise InputError("no camera is found: plug one in, or allow this program to use it")
    found = _pick(wanted.strip() or "0", there)
    known = ", ".join(f"{number} ({camera.description})" for number, camera in enumerate(there))
    if found is None:
        raise InputError(f"there is no camera {wanted!r}: take one of {known}")
    return Opening(
        url=system.camera_url.format(found.name),
        shown=f"webcam:{found.name}",
        format=system.cameras,
        device=True,
        there=known,
    )


def screen(
    wanted: str,
    *,
    system: Platform | None = None,
    environment: Mapping[str, str] = os.environ,
    screens: Callable[[Platform], Sequence[str]] = list_screens,
) -> Opening:
    """How to open the screen.

    Args:
        wanted: which, in the system's words, or nothing: the usual one.
        system: the system's ways, or None for this one's.
        environment: where the usual one may be named.
        screens: finds the screens.

    Raises:
        InputError: there is none; the message says which there are.
    """
    system = system or platform()
    there = ", ".join(screens(system))
    url = wanted.strip() or system.screen_url
    if url.startswith("$"):
        url = environment.get(url[1:], "")
    if not url:
        found = f"take one of {there} as in screen:{there.split(',')[0]}" if there else system.advice
        raise InputError(f"no screen is found: {found}")
    return Opening(
        url=url,
        shown=f"screen:{wanted}",
        format=system.screens,
        options={"framerate": "30"},
        device=True,
        there=there,
    )


def _pick(wanted: str, there: Sequence[Camera]) -> Camera | None:
    """A camera by number, then by name, then by the words in its description."""
    if wanted.isdigit():
        by_name = [camera for camera in there if camera.name == f"/dev/video{int(wanted)}"]
        if by_name:
            return by_name[0]
        return there[int(wanted)] if int(wanted) < len(there) else None
    for camera in there:
        if wanted == camera.name or wanted.lower() in camera.description.lower():
            return camera
    return None
