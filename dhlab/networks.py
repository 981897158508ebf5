"""Compact networks for signals, pictures and volumes: normalised ``(B, C, *space)`` in, logits out. And ONNX graphs."""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dhlab.errors import BadFileError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["NETWORKS", "ConvClassifier", "OnnxNet", "UNet", "open_onnx"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LINEAR = ("linear", "bilinear", "trilinear")
GROWTH = (1, 2, 4, 6, 8)


class UNet(nn.Module):
    """A small U-Net whose first convolution halves the size; its logits are enlarged back at the end.

    Batch normalisation, not group: a window's scores then do not depend on what else it sees, so overlapping windows
    agree and blend without seams.

    Parameters
    ----------
    dimensions
        Number of window axes: 1 signal, 2 picture, 3 volume.
    channels
        Input channels.
    classes
        Output channels.
    width
        Channels of the finest stage; deeper ones have 2, 4, 6 and 8 times as many.
    depth
        Number of stages, 1 to 5; each halves the size.

    References
    ----------
    Ronneberger, Fischer and Brox, "U-Net: Convolutional networks for biomedical image segmentation", MICCAI 2015.
    """

    task = "segmentation"

    def __init__(self, *, dimensions: int, channels: int, classes: int, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        widths = [width * growth for growth in GROWTH[:depth]]
        self.mode = LINEAR[dimensions - 1]
        self.down = nn.ModuleList(
            nn.Sequential(_convolve(dimensions, before, after, stride=2), _convolve(dimensions, after, after))
            for before, after in zip([channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(_convolve(dimensions, fine + coarse, fine) for fine, coarse in pairwise(widths))
        self.head = CONVOLUTIONS[dimensions - 1](width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes, *space)`` for ``(B, channels, *space)`` of any size."""
        space = x.shape[2:]
        stages = []
        for stage in self.down:
            x = stage(x)
            stages.append(x)
        for stage, fine in zip(reversed(self.up), stages[-2::-1], strict=True):
            coarse = nn.functional.interpolate(x, size=fine.shape[2:], mode="nearest")
            x = stage(torch.cat([fine, coarse], dim=1))
        return nn.functional.interpolate(self.head(x), size=space, mode=self.mode, align_corners=False)


class ConvClassifier(nn.Module):
    """A small convolutional classifier: stages that halve the size, the mean over space, one linear layer.

    Parameters
    ----------
    dimensions
        Number of window axes: 1 signal, 2 picture, 3 volume.
    channels
        Input channels.
    classes
        Output channels.
    width
        Channels of the finest stage; deeper ones have 2, 4, 6 and 8 times as many.
    depth
        Number of stages, 1 to 5; each halves the size.
    """

    task = "classification"

    def __init__(self, *, dimensions: int, channels: int, classes: int, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        widths = [width * growth for growth in GROWTH[:depth]]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(_convolve(dimensions, before, after, stride=2), _convolve(dimensions, after, after))
                for before, after in zip([channels, *widths], widths, strict=False)
            )
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, classes)`` for ``(B, channels, *space)`` of any size."""
        logits: Tensor = self.head(self.stages(x).flatten(2).mean(dim=2))
        return logits


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


def _convolve(dimensions: int, before: int, after: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        CONVOLUTIONS[dimensions - 1](before, after, 3, stride=stride, padding=1, bias=False),
        NORMS[dimensions - 1](after),
        nn.ReLU(inplace=True),
    )


NETWORKS: dict[str, type[UNet | ConvClassifier]] = {"unet": UNet, "cnn": ConvClassifier}
