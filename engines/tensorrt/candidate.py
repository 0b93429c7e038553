"""TensorRT behind an engine that serves: built, loaded and proved beside it before it takes over."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from toonstream.engines.engine import EngineAround, Network, NetworkSource
from toonstream.engines.memory import LOWER
from toonstream.engines.proof import Proof, keep_proof, kept_proof, prove
from toonstream.engines.tensorrt.engine import TensorRtEngine
from toonstream.engines.weights import weights_checksum
from toonstream.errors import EngineError

__all__ = ["Candidate", "Export"]

_SPARE = 1 << 30  # bytes of the GPU's memory that are left to what serves
_WEIGHTS_DIGITS = 16  # of the checksum of weights that were put in


class Export(Protocol):
    """Gives a source with an ONNX file, exported first where there is none."""

    def __call__(self, source: NetworkSource, stop: threading.Event, /) -> NetworkSource:
        """Export it, if need be; gives up when `stop` is set.

        Raises:
            EngineError: it cannot be exported.
        """
        ...


def _free_memory() -> int:
    return int(torch.cuda.mem_get_info()[0])


class Candidate(EngineAround):
    """An engine that is to take over from another one, which has proved no network yet, or some.

    Args:
        engine: that it is about.
        sources: networks that a stream will load.
        export: gives them their ONNX files.
        say: is told how far it is.
        free: gives the bytes of the GPU's memory that nobody uses.
    """

    _engine: TensorRtEngine

    def __init__(
        self,
        engine: TensorRtEngine,
        sources: Sequence[NetworkSource],
        *,
        export: Export = lambda source, stop: source,
        say: Callable[[str], None] = lambda line: None,
        free: Callable[[], int] = _free_memory,
    ) -> None:
        super().__init__(engine)
        self._sources = sources
        self._export = export
        self._say = say
        self._free = free
        self._stop = threading.Event()
        self._seen: set[str] = set()  # networks that were asked for
        self._builds = False
        self._card = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"

    def close(self) -> None:
        """Give up the export or the build that is under way, and whatever would come after it."""
        self._stop.set()
        self._engine.close()

    def objection(self) -> str | None:
        """Say why it may not take over, where that was found out before; None where nothing is known."""
        for source in self._sources:
            proof = self._kept(source)
            if proof is not None and not proof.agrees:
                return self._refusal(source, proof)
        return None

    def load_proved(self) -> bool:
        """Load all networks where each is in the store and has proved itself; else none of them.

        Whatever is in the way is found again, and said, by those who load one by one.
        """
        proofs = (self._kept(source) for source in self._sources)
        if not all(proof is not None and proof.agrees for proof in proofs):
            return False
        try:
            self._engine.load_stored(self._sources)
        except EngineError:
            return False
        return True

    def load(self, source: NetworkSource) -> Network:
        """Load a network beside what serves, exported and built first where it is not.

        Raises:
            EngineError: as for the engine; and the GPU's memory is too small for both.
        """
        source = self._export(source, self._stop)
        self._seen.add(source.name)
        if not self._engine.is_built(source):
            self._build(self._engine.basis(source))
        stored = self._engine.stored(source)
        if stored is not None and 2 * stored.size + _SPARE > self._free():  # as much again to work in
            raise EngineError(
                f"{self._engine.label(source)}: not enough GPU memory for {self.name} beside torch; {LOWER}"
            )
        return self._engine.load(source)

    def _build(self, source: NetworkSource) -> None:
        if not self._builds:
            self._builds = True
            self._say(f"{self.name} is built for this card in the background, once; torch draws meanwhile")
        built = self._engine.build(source)
        place = f"{len(self._seen)} of {len(self._sources)}"
        self._say(f"{built.label}: built in {built.seconds:.0f} s ({place})")

    def judge(
        self, source: NetworkSource, serving: Network, network: Network, given: Mapping[str, Tensor]
    ) -> None:
        """Let a network prove itself, once on this card.

        Args:
            source: of the network.
            serving: what it is to take the place of.
            network: what `load` has given.
            given: what both are run on.

        Raises:
            EngineError: it may not take over.
        """
        source = self._export(source, self._stop)
        proof = self._kept(source)
        if proof is None:
            proof = prove(serving(given), network(given))
            stored = self._engine.stored(source)
            if stored is not None:
                keep_proof(stored.path, self._proved_as(source), proof)
        if not proof.agrees:
            raise EngineError(self._refusal(source, proof))

    def _kept(self, source: NetworkSource) -> Proof | None:
        if source.onnx is None:
            return None
        stored = self._engine.stored(source)
        return None if stored is None else kept_proof(stored.path, self._proved_as(source))

    def _proved_as(self, source: NetworkSource) -> str:
        """Name what a proof is of: this card, and weights that were put in."""
        weights = weights_checksum(source.weights)[:_WEIGHTS_DIGITS]
        return f"{self._card}, weights {weights}" if weights else self._card

    def _refusal(self, source: NetworkSource, proof: Proof) -> str:
        return (
            f"{self._engine.label(source)} in {self.name} does not compute on this card what torch does: "
            f"{proof}; `toonstream engines prune --all` forgets that"
        )
