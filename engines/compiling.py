"""OpenVINO's part in which no tensor occurs: networks are read, and compiled for shapes.

It does without torch, whose import takes longer than to compile a small network: what is begun here on other
threads is done by the time that torch is there.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from toonstream.engines.compiled import CompiledStore, content_checksum
from toonstream.engines.store import cache_folder
from toonstream.errors import EngineError

__all__ = ["Compiler", "Graph", "Port", "Precision", "Shapes", "usual_compiler"]

Precision = Literal["auto", "float32", "bfloat16"]
Shapes: TypeAlias = tuple[tuple[int, ...], ...]  # of all inputs, in order


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or an output: name, element type as OpenVINO calls it, and axes, the free ones named."""

    name: str
    kind: str
    shape: tuple[int | str, ...]


class Compiler:
    """Reads networks and compiles them for the CPU. On any thread.

    Args:
        precision: what to compute in. `auto` is bfloat16 where the CPU has instructions for it, else float32.
        kept: where compiled networks are kept from run to run; None keeps none.
        at_once: networks that will run at a time, each on its share of the cores. But the UNet has them all:
            it takes most of the time, and what else there is to do is less than a core's work meanwhile.
        spare: cores that no network takes, for what must not wait: a network whose threads are interrupted
            one by one is late by all of that.

    Attributes:
        precision: what is computed in, float32 or bfloat16.

    Raises:
        EngineError: OpenVINO is not installed.
    """

    def __init__(
        self,
        *,
        precision: Precision = "auto",
        kept: CompiledStore | None = None,
        at_once: int = 1,
        spare: int = 0,
    ) -> None:
        try:
            import openvino
        except ImportError:
            raise EngineError(
                "OpenVINO is not installed; run `pip install openvino`, or use another engine"
            ) from None
        self._core = openvino.Core()
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "auto":
            precision = "bfloat16" if "BF16" in capabilities else "float32"
        self.precision = precision
        self._options = self._whole = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        }
        if at_once > 1 or spare:
            cores = max(1, _cores() - spare)
            # Not pinned: each would be, and all to the same first cores.
            self._whole = self._options | {"INFERENCE_NUM_THREADS": str(cores), "ENABLE_CPU_PINNING": "NO"}
            self._options = self._whole | {"INFERENCE_NUM_THREADS": str(max(1, cores // at_once))}
        self._kept = kept
        self._machine = {
            "version": openvino.get_version(),
            "device": self._core.get_property("CPU", "FULL_DEVICE_NAME"),
            "capabilities": sorted(capabilities),
            "cores": _cores(),
        }
        self._ahead: dict[Path, Future[Graph]] = {}

    def read(self, name: str, path: Path, *, change: Callable[[Any], None] | None = None) -> "Graph":
        """Read a network's ONNX file, or give what was read of it ahead.

        Args:
            name: of the network, for errors.
            path: of the file.
            change: what to do with OpenVINO's model of it; what was changed is not kept from run to run.

        Raises:
            EngineError: OpenVINO cannot read it.
        """
        ahead = self._ahead.pop(path, None) if change is None else None
        return self._read(name, path, change) if ahead is None else ahead.result()

    def read_ahead(self, name: str, path: Path) -> "Callable[[], Graph]":
        """Promise to read a file that `read` will be asked for; from then on that waits for it.

        Returns:
            What reads it, to be called once, on any thread; it raises what `read` will.
        """
        made: Future[Graph] = Future()
        self._ahead[path] = made

        def read() -> Graph:
            with _settling(made):
                made.set_result(self._read(name, path, None))
            return made.result()

        return read

    def _read(self, name: str, path: Path, change: Callable[[Any], None] | None) -> "Graph":
        try:
            model = self._core.read_model(path)
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot read {path}: {_first_line(error)}; use --engine torch"
            ) from None
        options = self._whole if name.startswith("unet") else self._options
        if change is not None:
            change(model)
            return Graph(name, self._core, model, options)
        graph = Graph(name, self._core, model, options)
        if self._kept is not None:
            key = {**self._machine, "options": options, "network": path.name}
            with suppress(OSError):  # what cannot be told from others is not kept
                graph.keep_in(self._kept, {**key, "content": _checksum(path)})
        return graph


class Graph:
    """A network that OpenVINO has read, to be compiled for shapes.

    Attributes:
        inputs: of it, in order.
        outputs: likewise.
    """

    def __init__(self, name: str, core: Any, model: Any, options: Mapping[str, str]) -> None:
        self._name = name
        self._core = core
        self._model = model
        self._options = options
        self._store: CompiledStore | None = None
        self._key: Mapping[str, object] = {}
        self._ahead: dict[Shapes, Future[Any]] = {}
        self.inputs = tuple(_port(port) for port in model.inputs)
        self.outputs = tuple(_port(port) for port in model.outputs)

    def keep_in(self, store: CompiledStore, key: Mapping[str, object]) -> None:
        """Look in a store before compiling, and keep there what was compiled; the key lacks the shapes."""
        self._store, self._key = store, key

    def shapes_given(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Say what shapes the outputs have for inputs of these shapes, without compiling.

        Raises:
            EngineError: OpenVINO refuses these shapes.
        """
        outputs = zip(self.outputs, self._reshaped(self._in_order(shapes)).outputs, strict=True)
        return {port.name: tuple(output.shape) for port, output in outputs}

    def compiled(self, shapes: Shapes) -> Any:
        """Compile for inputs of these shapes, or give what was compiled ahead.

        Raises:
            EngineError: OpenVINO refuses the network or these shapes.
        """
        ahead = self._ahead.pop(shapes, None)
        if ahead is not None:
            return ahead.result()
        kept = self._kept(shapes)
        if kept is not None:
            return kept
        compiled = self._compile(shapes)
        self._keep(shapes, compiled)
        return compiled

    def compile_ahead(self, shapes: Mapping[str, tuple[int, ...]]) -> "Callable[[], Callable[[], None]]":
        """Promise to compile for shapes that `compiled` will be asked for; from then on that waits for it.

        Returns:
            What compiles, to be called once, on any thread; it raises what `compiled` will. It gives what
            keeps the result for the next run, which can wait.
        """
        made: Future[Any] = Future()
        ordered = self._in_order(shapes)
        self._ahead[ordered] = made

        def compile_() -> Callable[[], None]:
            with _settling(made):
                kept = self._kept(ordered)
                compiled = self._compile(ordered) if kept is None else kept
                made.set_result(compiled)
            return partial(self._keep, ordered, compiled) if kept is None else lambda: None

        return compile_

    def _in_order(self, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
        return tuple(tuple(shapes[port.name]) for port in self.inputs)

    def _kept(self, shapes: Shapes) -> Any:
        found = None if self._store is None else self._store.find({**self._key, "shapes": shapes})
        if found is None:
            return None
        try:
            return self._core.import_model(found, "CPU", self._options)
        except RuntimeError:
            return None  # whatever is wrong with it, the network itself is there

    def _keep(self, shapes: Shapes, compiled: Any) -> None:
        if self._store is not None:
            self._store.keep({**self._key, "shapes": shapes}, _exported(compiled))

    def _compile(self, shapes: Shapes) -> Any:
        try:
            return self._core.compile_model(self._reshaped(shapes), "CPU", self._options)
        except RuntimeError as error:
            raise self._refusal(shapes, error) from None

    def _reshaped(self, shapes: Shapes) -> Any:
        from openvino import PartialShape

        model = self._model.clone()
        try:
            model.reshape({index: PartialShape(list(shape)) for index, shape in enumerate(shapes)})
        except RuntimeError as error:
            raise self._refusal(shapes, error) from None
        return model

    def _refusal(self, shapes: Shapes, error: RuntimeError) -> EngineError:
        return EngineError(
            f"OpenVINO refuses {self._name} for shapes {shapes}: {_first_line(error)}; use --engine torch"
        )


def usual_compiler(at_once: int = 1, *, spare: int = 0) -> Compiler:
    """Make a compiler in this machine's own precision, which keeps what it compiles in the user's cache.

    Args:
        at_once: see `Compiler`, as for `spare`.
        spare: likewise.

    Raises:
        EngineError: OpenVINO is not installed.
    """
    return Compiler(kept=CompiledStore(cache_folder() / "openvino"), at_once=at_once, spare=spare)


@contextmanager
def _settling(made: "Future[Any]") -> Iterator[None]:
    """Within it a result is made; whoever waits for it is told of a failure, too."""
    try:
        yield
    except BaseException as error:
        made.set_exception(error)
        raise


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _checksum(path: Path) -> str:
    """Of an ONNX file, and of whatever lies beside it: there are the weights."""
    return content_checksum(file for file in path.parent.iterdir() if file.is_file())


def _exported(compiled: Any) -> bytes:
    exported = compiled.export_model()
    return exported.getvalue() if hasattr(exported, "getvalue") else bytes(exported)


def _port(port: Any) -> Port:
    name = port.get_any_name()
    axes = enumerate(port.get_partial_shape())
    shape = tuple(f"{name}.{index}" if axis.is_dynamic else axis.get_length() for index, axis in axes)
    return Port(name=name, kind=port.get_element_type().get_type_name(), shape=shape)


def _first_line(error: Exception) -> str:
    """Give the first line that says something: OpenVINO's errors open with the names of its source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Exception from")), "unknown error")
