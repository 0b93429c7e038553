"""The process that exports a model beside a stream: `python -m toonstream.export.worker`; see `beside`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toonstream.engines.process import Tell, work
from toonstream.export.assemble import export_for
from toonstream.export.reference import with_reference

__all__ = ["export"]


def export(job: Mapping[str, Any], tell: Tell) -> None:
    """Export what an engine wants of a model.

    Args:
        job: `engine`; `folder`, of the model; `attends`, whether to frames of the past, or a picture.
        tell: is told what is `said`.

    Raises:
        ModelError: the model cannot be used.
        EngineError: what exports it is not installed.
    """

    def say(line: str) -> None:
        tell("said", line=line)

    model = export_for(job["engine"], Path(job["folder"]), say=say)
    if job["attends"]:
        with_reference(model, engine=job["engine"], say=say)


if __name__ == "__main__":
    sys.exit(work(export))
