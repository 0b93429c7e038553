"""What a clip is drawn by: a model, made ready for how it is wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from toonstream.config import RenderSettings, Settings
from toonstream.engines.select import engine_name
from toonstream.engines.tensorrt.flavour import apart
from toonstream.export.assemble import load_model
from toonstream.export.checkpoints import Model
from toonstream.export.loras import with_loras
from toonstream.export.reference import with_reference
from toonstream.stream.conditions import Conditions
from toonstream.stream.temporal.cuts import Scenes
from toonstream.stream.temporal.picture import read_picture

__all__ = ["Opened", "open_for", "prepare_frames"]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model, and how it is to draw.

    Attributes:
        model: with LoRAs put in, and with what attends to the past where anything is to.
        engine: what is to run it, by name.
        choices: settings with nothing left open, one for each that were given.
    """

    model: Model
    engine: str
    choices: Sequence[RenderSettings]


def open_for(modes: Sequence[Settings], *, say: Callable[[str], None] = lambda line: None) -> Opened:
    """Open the model that all these settings name.

    Args:
        modes: at least one; what concerns the model and the engine is the same in all of them. Several are
            compared: the engine that they begin on serves to the end.
        say: told what is done, where it takes a while.

    Raises:
        InputError: a reference picture or a setting is no use.
        ModelError: the model cannot be used.
        EngineError: there is no such engine.
    """
    common = modes[0]
    for settings in modes:
        if settings.reference is not None:
            read_picture(settings.reference)  # to find out before the work that it cannot be read
    engine = engine_name(common.engine)
    if len(modes) > 1:
        engine, _ = apart(engine)
    model = load_model(common.model, engine=engine, allow_pickle=common.allow_pickle, say=say)
    model = with_loras(model, common.loras, allow_pickle=common.allow_pickle)
    choices = [settings.resolve(model.defaults) for settings in modes]
    if any(chosen.attends for chosen in choices):
        model = with_reference(model, engine=engine, say=say)
    return Opened(model=model, engine=engine, choices=choices)


def prepare_frames(model: Model, size: tuple[int, int]) -> Scenes:
    """What makes of a clip's frames what the model takes, at `size` (width, height), scene by scene."""
    return Scenes(
        Conditions(
            model.defaults.controlnets,
            size=size,
            multiple=model.size_multiple,
            annotated=model.annotators,
        )
    )
