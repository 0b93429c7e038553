"""TensorRT as an engine: builds what is not in the store, loads what is, and puts weights in by refit."""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from toonstream.engines.build import TIMEOUT_SECONDS, BuildJob, run_build
from toonstream.engines.engine import NetworkSource
from toonstream.engines.memory import LOWER, out_of_memory
from toonstream.engines.onnx_file import onnx_file
from toonstream.engines.shapes import Triple
from toonstream.engines.store import EngineKey, EngineStore, StoredEngine
from toonstream.engines.tensorrt.flavour import FLAVOURS, Flavour
from toonstream.engines.tensorrt.network import TensorRtNetwork
from toonstream.engines.weights import computed_precision, network_checksum, rewrite, weights_checksum
from toonstream.errors import EngineError

__all__ = ["Shapes", "TensorRtEngine", "deserialise"]

Shapes = Callable[[NetworkSource], Mapping[str, Triple]]
"""Gives the shapes that a network will be called with, by input."""

_Find = Callable[[NetworkSource], StoredEngine]


class TensorRtEngine:
    """Builds and runs networks with one flavour of TensorRT.

    Args:
        flavour: tensorrt-rtx or tensorrt.
        shapes: of every network that will be built.
        store: where built engines are kept; None is the usual folder.
        capability: the compute capability to build for; None is that of the GPU that is there. Engines for
            the GPU that is there are built refittable; one that was built elsewhere, and is not, does too.
        model: put before each network's name where people read it.
        say: is told how far builds are, one line at a time.
        timeout: seconds that one build may take.

    Raises:
        EngineError: the flavour is not installed, or there is no GPU and no compute capability is named.
    """

    def __init__(
        self,
        flavour: str,
        *,
        shapes: Shapes,
        store: EngineStore | None = None,
        capability: tuple[int, int] | None = None,
        model: str = "",
        say: Callable[[str], None] = lambda line: None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self._flavour = FLAVOURS[flavour]
        version = self._flavour.version
        if version is None:
            raise EngineError(f"{self._flavour.title} is not installed; run `{self._flavour.remedy}`")
        self._version = version
        self._here = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
        named = capability or self._here
        if named is None:
            raise EngineError(
                f"{self._flavour.title} runs on an NVIDIA GPU, and torch finds none here; "
                "take another --engine, or name a compute capability to build for another machine"
            )
        self._flavour.check(named, gpu=named == self._here)
        self._capability = named
        self._flags = self._flavour.flags | ({"refit"} if named == self._here else set())
        self._shapes = shapes
        self._store = store or EngineStore()
        self._model = model
        self._say = say
        self._timeout = timeout
        self._stop = threading.Event()
        self._keys: dict[tuple[Path, str], EngineKey] = {}
        self._loaded: dict[str, TensorRtNetwork] = {}

    @property
    def name(self) -> str:
        """As `--engine` takes it."""
        return self._flavour.name

    @property
    def per_shape(self) -> bool:
        """It compiles kernels and records graphs."""
        return True

    @property
    def precision(self) -> str:
        """What it computes in: what a network was exported in."""
        return "the precision of the export"

    def close(self) -> None:
        """Give up the build that is under way, and every later one."""
        self._stop.set()

    def key(self, source: NetworkSource) -> EngineKey:
        """Everything that the engine of a network depends on.

        Raises:
            EngineError: there is no ONNX file.
        """
        onnx, weights = onnx_file(source), weights_checksum(source.weights)
        if (onnx, weights) not in self._keys:  # even a graph alone takes a while to read
            self._keys[onnx, weights] = self._key(source, onnx, weights)
        return self._keys[onnx, weights]

    def _key(self, source: NetworkSource, onnx: Path, weights: str) -> EngineKey:
        return EngineKey(
            onnx=network_checksum(onnx, kept=self._store.checksums),
            weights=weights,
            shapes=self._shapes(source),
            precision=computed_precision(onnx),
            flags=self._flags,
            flavour=self._flavour.name,
            version=self._version,
            compute_capability=".".join(map(str, self._capability)),
        )

    def label(self, source: NetworkSource) -> str:
        """What a network's engine is, for people."""
        return f"{self._model} {source.name}".strip()

    def basis(self, source: NetworkSource) -> NetworkSource:
        """Give what of a network is built: without weights that were put in, where those go in by refit."""
        return replace(source, weights={}) if source.weights and "refit" in self._flags else source

    def stored(self, source: NetworkSource) -> StoredEngine | None:
        """Give the engine that a network can be loaded from without a build, which may be one to refit.

        Raises:
            EngineError: there is no ONNX file.
        """
        if (basis := self.basis(source)) is not source:
            plain = self._store.find(self._stored_key(basis))
            if plain is not None and plain.whole and _can_be_refitted(plain):
                return plain
        stored = self._store.find(self._stored_key(source))
        return stored if stored is not None and stored.whole else None

    def is_built(self, source: NetworkSource) -> bool:
        """Say whether a network can be loaded without a build.

        Raises:
            EngineError: there is no ONNX file.
        """
        return self.stored(source) is not None

    def load_stored(self, sources: Iterable[NetworkSource]) -> None:
        """Load networks at once that `load` will be asked for, without building any.

        Raises:
            EngineError: as for `load`; and one is not in the store, or is damaged. Then none is loaded.
        """
        runtime = self._flavour.load()
        loaded = {self.key(source).digest: self._load(runtime, source, self._intact) for source in sources}
        self._loaded.update(loaded)

    def _stored_key(self, source: NetworkSource) -> EngineKey:
        """Give the key under which a network's engine is in the store, or will be."""
        key = self.key(source)
        built_elsewhere = replace(key, flags=self._flavour.flags)
        if self._store.find(key) is None and self._store.find(built_elsewhere) is not None:
            return built_elsewhere
        return key

    def build(self, source: NetworkSource) -> StoredEngine:
        """Give a network's engine from the store, built first where it is not there. Needs no GPU.

        Raises:
            EngineError: it is refused, or the store cannot be written to.
        """
        label = self.label(source)
        key = self._stored_key(source)

        def make(output: Path) -> None:
            with TemporaryDirectory(dir=output.parent) as folder:
                job = BuildJob(
                    label=label,
                    flavour=self._flavour.name,
                    onnx=rewrite(source, Path(folder)) if source.weights else onnx_file(source),
                    shapes=key.shapes,
                    # A GPU that no build can be named for gets one without a name.
                    capability=self._capability if self._capability in self._flavour.capabilities else None,
                    flags=key.flags,
                )
                run_build(job, output, say=self._say, timeout=self._timeout, stop=self._stop)

        return self._store.obtain(key, make, label=label, say=self._say)

    def load(self, source: NetworkSource) -> TensorRtNetwork:
        """Give a network that is ready to run, its engine built first where it is not in the store.

        Weights that were put in go into the engine of the network without them where that can be refitted,
        and into an engine of their own otherwise.

        Raises:
            EngineError: there is no GPU, or the GPU, the engine or the memory does not do.
        """
        if self._here is None:
            raise EngineError(
                f"{source.name}: {self._flavour.title} runs on an NVIDIA GPU, and torch finds none here; "
                "take another --engine"
            )
        ready = self._loaded.pop(self.key(source).digest, None)
        return ready or self._load(self._flavour.load(), source, self.build)

    def _load(self, runtime: Any, source: NetworkSource, find: _Find) -> TensorRtNetwork:
        if (basis := self.basis(source)) is not source:
            stored = find(basis)
            engine = deserialise(runtime, self._flavour, stored)
            if _can_be_refitted(stored) and _refit(runtime, engine, source):
                return self._network(source, engine, stored)
        stored = find(source)
        return self._network(source, deserialise(runtime, self._flavour, stored), stored)

    def _intact(self, source: NetworkSource) -> StoredEngine:
        stored = self._store.intact(self._stored_key(source))
        if stored is None:
            raise EngineError(f"{self.label(source)} is not built")
        return stored

    def _network(self, source: NetworkSource, engine: Any, stored: StoredEngine) -> TensorRtNetwork:
        device = torch.device("cuda", torch.cuda.current_device())
        kernels = stored.path.with_name("kernels")
        with out_of_memory(source.name):
            return TensorRtNetwork(source.name, engine, device=device, kernels=kernels)


def deserialise(runtime: Any, flavour: Flavour, stored: StoredEngine) -> Any:
    """Load a stored engine onto the GPU.

    Args:
        runtime: the flavour's module.
        flavour: which it is.
        stored: the engine.

    Raises:
        EngineError: it is for another GPU or version, the driver is too old, or the memory is too small.
    """
    content = stored.path.read_bytes()
    loader = runtime.Runtime(runtime.Logger(runtime.Logger.INTERNAL_ERROR))
    if hasattr(loader, "get_engine_validity"):
        _, reasons = loader.get_engine_validity(content)
        reason = _first_reason(runtime, int(reasons), stored)
        if reason:
            raise EngineError(f"{stored.label}: {reason}")
    engine = loader.deserialize_cuda_engine(content)
    if engine is None:
        made = f"{stored.key['flavour']} {stored.key['version']} and {stored.key['compute_capability']}"
        raise EngineError(
            f"{stored.label}: {flavour.title} does not load the engine at {stored.path}, built for {made}: "
            f"it is of another machine, or memory is short; remove {stored.path.parent}, or {LOWER}"
        )
    return engine


def _first_reason(runtime: Any, reasons: int, stored: StoredEngine) -> str:
    """Say what TensorRT-RTX has against an engine; empty for nothing that stops it."""
    kinds = runtime.EngineInvalidityDiagnostics
    again = f"remove {stored.path.parent}, and it is built again for this one"
    texts = {
        kinds.INSUFFICIENT_GPU_MEMORY: f"not enough GPU memory for the engine; {LOWER}",
        kinds.OLD_CUDA_DRIVER: "the GPU's driver is too old for this engine; update the driver",
        kinds.OLD_CUDA_RUNTIME: "the CUDA runtime is too old for this engine; update torch",
        kinds.UNSUPPORTED_CC: f"the engine was built on another machine, for another GPU; {again}",
        kinds.VERSION_MISMATCH: f"the engine was built on another machine, by another version; {again}",
        kinds.MALFORMED_ENGINE: f"the engine is damaged; remove {stored.path.parent}, and it is built again",
    }
    return next((text for kind, text in texts.items() if reasons & int(kind)), "")


def _can_be_refitted(stored: StoredEngine) -> bool:
    return "refit" in cast(list[str], stored.key["flags"])


def _refit(runtime: Any, engine: Any, source: NetworkSource) -> bool:
    """Put a source's weights into an engine that is loaded; False where it cannot be done for all of them."""
    log = runtime.Logger(runtime.Logger.INTERNAL_ERROR)
    refitter = runtime.Refitter(engine, log)
    with TemporaryDirectory() as folder:
        parser = runtime.OnnxParserRefitter(refitter, log)
        return bool(
            parser.refit_from_file(str(rewrite(source, Path(folder)))) and refitter.refit_cuda_engine()
        )
