"""Annotators by what the `config.json` beside their weights says.

    {"model_type": "informative_drawings"}   outline: `sk_model.pth` of the lineart annotator
    {"model_type": "hed"}                    softedge: `ControlNetHED.pth`
    {"model_type": "depth_anything", …}      depth: the file of Depth-Anything-V2-Small-hf as it is

The weights are the published ones, by their published names.
"""

from collections.abc import Mapping
from typing import Any

from toonstream.errors import ModelError
from toonstream.export.networks.annotators.annotator import Annotator
from toonstream.export.networks.annotators.depth import DepthAnything
from toonstream.export.networks.annotators.outline import InformativeDrawings
from toonstream.export.networks.annotators.softedge import HolisticEdges

__all__ = ["make_annotator"]


def make_annotator(config: Mapping[str, Any]) -> Annotator:
    """Make an annotator without its weights.

    Args:
        config: as in `config.json`; what it leaves out is as in the published checkpoint.

    Raises:
        ModelError: the config is for something else, or lacks what the network needs.
    """
    sizes = {name: value for name, value in config.items() if name != "model_type"}
    kind = config.get("model_type")
    try:
        match kind:
            case "informative_drawings":
                return Annotator(InformativeDrawings(**sizes))
            case "hed":
                return Annotator(HolisticEdges(**sizes))
            case "depth_anything":
                return Annotator(DepthAnything(config))
    except (KeyError, TypeError) as error:
        raise ModelError(f"the {kind} annotator's config.json does not describe one ({error})") from None
    raise ModelError(
        f"there is no annotator {kind!r}; use one of informative_drawings, hed, depth_anything in config.json"
    )
