"""ONNX Runtime: the engine that runs nearly everywhere."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from toonstream.engines.engine import NetworkSource, TensorSpec
from toonstream.engines.onnx_file import onnx_file
from toonstream.errors import EngineError

__all__ = ["OnnxRuntimeEngine", "OnnxRuntimeNetwork"]

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(int64)": torch.int64,
}
_QUIET = 3  # severity: errors only


class OnnxRuntimeEngine:
    """Runs networks with ONNX Runtime on the CPU, in float32.

    Raises:
        EngineError: ONNX Runtime is not installed.
    """

    name = "onnxruntime"
    per_shape = False

    def __init__(self) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise EngineError(
                "ONNX Runtime is not installed; run `pip install onnxruntime`, or use another engine"
            ) from None
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        self._runtime = onnxruntime
        # These have no base of their own.
        self._refusals = (
            state.Fail,
            state.InvalidArgument,
            state.InvalidGraph,
            state.InvalidProtobuf,
            state.NoSuchFile,
            state.NotImplemented,
            state.RuntimeException,
        )

    def load(self, source: NetworkSource) -> "OnnxRuntimeNetwork":
        """Open a session for a network's ONNX file.

        Raises:
            EngineError: there is no ONNX file, or ONNX Runtime refuses it.
        """
        path = onnx_file(source)
        options = self._runtime.SessionOptions()
        options.log_severity_level = _QUIET
        # Several sessions take turns on the same cores: threads that wait must sleep, not spin.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        values = [
            self._runtime.OrtValue.ortvalue_from_numpy(tensor.numpy()) for tensor in source.weights.values()
        ]
        if values:
            options.add_external_initializers(list(source.weights), values)
        try:
            session = self._runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except self._refusals as error:
            raise EngineError(f"ONNX Runtime refuses {path}: {error}; use --engine torch") from None
        return OnnxRuntimeNetwork(source.name, session, self._refusals)


class OnnxRuntimeNetwork:
    """A network in an ONNX Runtime session."""

    def __init__(self, name: str, session: Any, refusals: tuple[type[Exception], ...]) -> None:
        self._name = name
        self._session = session
        self._refusals = refusals
        self.inputs = tuple(_spec(value) for value in session.get_inputs())
        self.outputs = tuple(_spec(value) for value in session.get_outputs())

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once, on CPU tensors.

        Raises:
            EngineError: ONNX Runtime refuses these shapes.
        """
        given = {spec.name: tensors[spec.name].to(spec.dtype).contiguous().numpy() for spec in self.inputs}
        try:
            made = self._session.run(None, given)
        except self._refusals as error:
            raise EngineError(
                f"ONNX Runtime cannot run {self._name} on these shapes ({' '.join(str(error).split())}); "
                "export the model again with `toonstream export`, or use --engine torch"
            ) from None
        return {spec.name: torch.from_numpy(array) for spec, array in zip(self.outputs, made, strict=True)}


def _spec(value: Any) -> TensorSpec:
    return TensorSpec(name=value.name, dtype=_DTYPES[value.type], shape=tuple(value.shape))
