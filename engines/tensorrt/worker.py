"""The process that builds one engine: `python -m toonstream.engines.tensorrt.worker`.

A flavour is chosen for a whole process when it is imported, and a build takes gigabytes that only the end of
a process gives back; so every build has a process of its own, see `engines.process`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toonstream.engines.process import Tell, work
from toonstream.engines.tensorrt.flavour import FLAVOURS
from toonstream.errors import EngineError

__all__ = ["build"]


def build(job: Mapping[str, Any], tell: Tell) -> None:
    """Build an engine.

    Args:
        job: `flavour`, `onnx` and `output` (paths), `shapes` (input → min, opt, max), `capability`
            (such as [8, 9], or None for the GPU that is there), `flags`.
        tell: is told `progress`.

    Raises:
        EngineError: it is refused.
    """
    flavour = FLAVOURS[job["flavour"]]
    runtime = flavour.load()
    log = _make_log(runtime)
    builder = runtime.Builder(log)
    if builder is None:
        raise EngineError(f"{flavour.title} does not start: {log.first()}")
    network = builder.create_network(_strongly_typed(runtime))
    parser = runtime.OnnxParser(network, log)
    if not parser.parse_from_file(job["onnx"]):
        raise EngineError(f"{flavour.title} refuses {job['onnx']}: {_refusal(parser)}; use --engine torch")
    config = builder.create_builder_config()
    if job["capability"] is not None:
        major, minor = job["capability"]
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(runtime.ComputeCapability, f"SM{major}{minor}"), 0)
    for flag in job["flags"]:
        config.set_flag(getattr(runtime.BuilderFlag, flag.upper()))
    profile = builder.create_optimization_profile()
    for name, triple in job["shapes"].items():
        profile.set_shape(name, *map(tuple, triple))
    config.add_optimization_profile(profile)
    config.progress_monitor = _make_monitor(runtime, tell)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise EngineError(f"{flavour.title} cannot build {job['onnx']}: {log.first()}; use --engine torch")
    with Path(job["output"]).open("wb") as file:
        file.write(built)


def _strongly_typed(runtime: Any) -> int:
    """Give the creation flag for a strongly typed network; where there is none, every network is."""
    flag = getattr(runtime.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _refusal(parser: Any) -> str:
    """Say in one line which node the parser stumbled over, and why."""
    error = parser.get_error(0)
    where = f"node {error.node_name()} ({error.node_operator()}): " if error.node_operator() else ""
    why = " ".join(error.desc().split())
    return where + ("it has no such operator" if why == "false" else why)


def _make_log(runtime: Any) -> Any:
    class Log(runtime.ILogger):  # type: ignore[misc]
        """Keeps what went wrong, instead of printing it."""

        def __init__(self) -> None:
            runtime.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= runtime.ILogger.ERROR:
                self.errors.append(" ".join(message.split()))

        def first(self) -> str:
            return self.errors[0] if self.errors else "it does not say why"

    return Log()


def _make_monitor(runtime: Any, tell: Tell) -> Any:
    class Monitor(runtime.IProgressMonitor):  # type: ignore[misc]
        """Tells every phase that has steps to speak of."""

        def __init__(self) -> None:
            runtime.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str, steps: int) -> None:
            self._steps[phase] = steps
            tell("progress", phase=phase, done=0, steps=steps)

        def step_complete(self, phase: str, step: int) -> bool:
            steps = self._steps[phase]
            if step * 20 // steps != (step + 1) * 20 // steps:
                tell("progress", phase=phase, done=step + 1, steps=steps)
            return True

        def phase_finish(self, phase: str) -> None:
            del self._steps[phase]

    return Monitor()


if __name__ == "__main__":
    sys.exit(work(build))
