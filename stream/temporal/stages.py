"""What stands around the stylizer, from the settings.

frames → skipping → (deflicker ← keyframes ← stylizer): still frames come no further than the first, keyframes
alone reach the stylizer, and what is drawn between them is smoothed, too.
"""

import torch

from toonstream.config import RenderSettings
from toonstream.stream.conditions import Conditioned
from toonstream.stream.pipeline import Stylizing
from toonstream.stream.temporal.fastblend import Deflicker
from toonstream.stream.temporal.keyframes import Keyframes
from toonstream.stream.temporal.matching import FlowMatcher, Matcher, PatchMatcher
from toonstream.stream.temporal.skipping import Skipping
from toonstream.stream.temporal.steadying import Steadied

__all__ = ["in_stages"]

_PATIENCE = 24  # still frames in a row that wait for a toon: a clip has time, but memory is bounded


def in_stages(stylizer: Stylizing, settings: RenderSettings) -> Stylizing:
    """Put the stages that are asked for around a stylizer; itself where there are none."""
    stage = stylizer
    if settings.keyframes > 1:
        stage = Keyframes(stage, _matcher(settings, reach=0, fine=True), every=settings.keyframes)
    if settings.deflicker == "causal":
        stage = Steadied(stage, _matcher(settings, reach=1))
    elif settings.deflicker != "off":
        stage = Deflicker(
            stage,
            _matcher(settings, reach=settings.deflicker_window),
            window=settings.deflicker_window,
            accurate=settings.deflicker == "accurate",
        )
    if settings.skip is not None:
        stage = Skipping(stage, threshold=settings.skip, patience=_PATIENCE, alike=_of_one_scene)
    return stage


def _matcher(settings: RenderSettings, *, reach: int, fine: bool = False) -> Matcher:
    """Find matches as asked; `fine` where nothing is drawn that would make up for what is found coarsely."""
    if settings.matcher == "flow":
        return FlowMatcher(reach=reach, effort="medium", scale=1.0) if fine else FlowMatcher(reach=reach)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return PatchMatcher(device=device, seed=settings.seed)


def _of_one_scene(one: Conditioned, other: Conditioned) -> bool:
    return one.scene == other.scene
