"""Debian's Chromium with a clip for a camera, and what is seen in it."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import cv2
import numpy as np
from av import VideoFrame
from playwright.async_api import Browser, Page, async_playwright

CHROMIUM = shutil.which("chromium")
ORANGE, AZURE, BLUE = (230, 120, 20), (25, 135, 235), (0, 0, 255)

FLAGS = """--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --mute-audio --disable-dev-shm-usage
    --use-fake-ui-for-media-stream --use-fake-device-for-media-stream""".split()  # noqa: SIM905 a command line

# What the toon looks like: 16 × 12 pixels of it, as RGB.
LOOK = """(id) => {
  const video = document.getElementById(id);
  if (!video.videoWidth) return null;
  const canvas = Object.assign(document.createElement('canvas'), {width: 16, height: 12});
  const context = canvas.getContext('2d');
  context.drawImage(video, 0, 0, 16, 12);
  return Array.from(context.getImageData(0, 0, 16, 12).data);
}"""


def write_camera(path: Path) -> Path:
    """An orange room and a white ball that moves in it, as raw 4:2:0 frames."""
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W320 H240 F30:1 Ip A1:1 C420mpeg2\n")
        for index in range(30):
            image = np.full((240, 320, 3), ORANGE, np.uint8)
            cv2.circle(image, (60 + index * 7, 70), 30, (255, 255, 255), -1)
            frame = VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            file.write(b"FRAME\n" + frame.to_ndarray().tobytes())
    return path


@asynccontextmanager
async def chromium(camera: Path) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*FLAGS, f"--use-file-for-fake-video-capture={camera}"]
        )
        yield browser
        await browser.close()


async def look(page: Page, video: str = "toon") -> np.ndarray:
    pixels = await page.evaluate(LOOK, video)
    assert pixels is not None
    return np.array(pixels, float).reshape(12, 16, 4)[..., :3]


def mostly(colour: tuple[int, int, int]) -> Callable[[np.ndarray], bool]:
    """The lower half, which the ball does not reach, is of this colour."""
    return lambda image: bool(np.abs(image[8:] - colour).max() < 30)


async def seen(page: Page, like: Callable[[np.ndarray], bool], video: str = "toon") -> np.ndarray:
    """Wait until the video looks like that."""
    async with asyncio.timeout(30):
        while not like(image := await look(page, video)):
            await asyncio.sleep(0.05)
    return image
