"""ONNX graphs from anywhere as networks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dhlab.errors import BadFileError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["OnnxNet", "open_onnx"]


class OnnxNet(nn.Module):
    """An ONNX graph as a network: runs in onnxruntime on the CPU and pickles with its bytes.

    Parameters
    ----------
    graph
        The ONNX file's bytes, as `open_onnx` checked them.

    Raises
    ------
    BadFileError
        If onnxruntime refuses the graph, or a batch later.
    """

    def __init__(self, graph: bytes) -> None:
        super().__init__()
        self.graph = graph
        self._start()

    def _start(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised; onnxruntime would print them as well
        try:
            self.session = onnxruntime.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])
        except _refusals() as error:
            raise BadFileError(f"onnxruntime cannot run the graph: {str(error).strip()[:400]}") from error
        self.single = self.session.get_inputs()[0].shape[:1] == [1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the graph's first output for its only input, float32 on the device of `x`."""
        name = self.session.get_inputs()[0].name
        batch = x.detach().cpu().contiguous().numpy()
        parts = np.split(batch, len(batch)) if self.single else [batch]
        try:
            scores = np.concatenate([self.session.run(None, {name: part})[0] for part in parts])
        except _refusals() as error:
            shape = tuple(batch.shape)
            raise BadFileError(f"the ONNX graph fails on a batch {shape}: {str(error).strip()[:400]}") from error
        return torch.from_numpy(scores).to(x.device, torch.float32)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


def open_onnx(path: Path) -> OnnxNet:
    """Read an ONNX file that holds its whole graph and uses known operators.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    OnnxNet
        Ready to run; whether it fits a card is not checked.

    Raises
    ------
    BadFileError
        If the file is damaged, keeps weights elsewhere, uses an operator that is not known, or cannot run.
    """
    import onnx

    damaged: type[Exception] = import_module("google.protobuf.message").DecodeError
    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except damaged as error:
        raise BadFileError(f"{path} is no ONNX file, or a damaged one ({len(content)} bytes): {error}.") from error
    nodes = model.graph.node
    if not nodes:
        raise BadFileError(f"{path} holds no graph ({len(content)} bytes); expected an ONNX model.")
    tensors = [*model.graph.initializer, *(a.t for n in nodes for a in n.attribute if a.HasField("t"))]
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise BadFileError(
            f"{path} keeps its weights in other files; expected one that holds everything. "
            "Save it again with save_as_external_data=False."
        )
    own = {function.name for function in model.functions}
    unknown = {n.op_type for n in nodes if n.domain in ("", "ai.onnx") and not onnx.defs.has(n.op_type)} - own
    if unknown:
        raise BadFileError(f"{path} uses operators that ONNX does not know: {', '.join(sorted(unknown))}.")
    try:
        return OnnxNet(content)
    except BadFileError as error:
        raise BadFileError(f"{path}: {error}") from error


def _refusals() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented")
    return (runtime.RuntimeException, *(getattr(runtime, name) for name in names))
