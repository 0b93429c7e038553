"""Whether an engine computes on this card what the one that serves computes there.

What nobody has seen running on a card does not take over on its word. It is run on what the networks that
serve were just given, and may take over where what comes out is finite and alike. That is asked once: what
came of it is kept beside the engine, for the card it was run on.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from toonstream.engines.keeping import keep
from toonstream.errors import EngineError

__all__ = ["TOLERANCE", "Proof", "keep_proof", "kept_proof", "kept_proofs", "prove"]

TOLERANCE = 3e-2  # of the largest value: what half precision alone makes of a deep network's outputs is less
_LEAST = torch.finfo(torch.float16).tiny  # below it, half precision says little
_FILE = "proofs.json"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What came of running a network beside the one that it is to take the place of.

    Attributes:
        output: that differs most.
        error: of it, max |difference| / max |what serves gives|; None where it is not finite.
    """

    output: str
    error: float | None

    @property
    def agrees(self) -> bool:
        """Whether it may take over."""
        return self.error is not None and self.error <= TOLERANCE

    def __str__(self) -> str:
        """What it gives, for people."""
        if self.error is None:
            return f"its {self.output} is not finite"
        return f"its {self.output} is {self.error:.1e} off, and {TOLERANCE:g} would do"


def prove(serving: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> Proof:
    """Compare what two networks made of the same inputs.

    Args:
        serving: of the one that serves.
        made: of the other one; on the same device or on another.

    Raises:
        EngineError: what serves gives nothing to compare with.
    """
    worst = Proof(output=next(iter(serving)), error=0.0)
    for name, expected in serving.items():
        right, given = expected.float(), made[name].to(expected.device).float()
        if not bool(right.isfinite().all()):
            raise EngineError(f"the {name} of what serves is not finite: there is nothing to compare with")
        if right.shape != given.shape or not bool(given.isfinite().all()):
            return Proof(output=name, error=None)
        error = float((given - right).abs().max()) / max(float(right.abs().max()), _LEAST)
        if worst.error is None or error > worst.error:
            worst = Proof(output=name, error=error)
    return worst


def kept_proof(engine: Path, name: str) -> Proof | None:
    """Give what is kept beside an engine under a name; None where there is nothing, or it is damaged."""
    return kept_proofs(engine).get(name)


def kept_proofs(engine: Path) -> dict[str, Proof]:
    """Give all that is kept beside an engine, by name; what is damaged is left out."""
    try:
        kept = json.loads(engine.with_name(_FILE).read_text(encoding="utf-8"))
        return {name: _read(facts) for name, facts in kept.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _read(facts: Mapping[str, object]) -> Proof:
    error = facts["error"]
    return Proof(output=str(facts["output"]), error=None if error is None else float(str(error)))


def keep_proof(engine: Path, name: str, proof: Proof) -> None:
    """Keep a proof beside an engine, with which it goes; where that cannot be, it is asked for again."""
    content = {each: asdict(kept) for each, kept in {**kept_proofs(engine), name: proof}.items()}
    keep(engine.with_name(_FILE), json.dumps(content, indent=2).encode())
