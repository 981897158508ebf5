"""Compact networks for signals, pictures and volumes: normalised ``(B, C, *space)`` in, logits out. And ONNX graphs."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dhlab.errors import BadFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

__all__ = ["NETWORKS", "ConvClassifier", "OnnxNet", "UNet", "open_onnx", "recompute", "split_head"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LINEAR = ("linear", "bilinear", "trilinear")
GROWTH = (1, 2, 4, 6, 8)
HEADS = ("head", "heads", "fc", "classifier")
# Share of the activations that is computed again.
RECOMPUTED = {"low": 0.5, "mid": 0.75, "full": 1.0}


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


def split_head(net: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of the parameters of the body and of the head, the part that names classes.

    Parameters
    ----------
    net
        A network; its head is the child called ``head``, ``heads``, ``fc`` or ``classifier``, else the last child
        that has parameters.
    """
    children = [name for name, child in net.named_children() if any(True for _ in child.parameters())]
    head = next((name for name in reversed(children) if name in HEADS), children[-1] if children else "")
    names = [name for name, _ in net.named_parameters()]
    inside = [name for name in names if name.split(".")[0] == head]
    return [name for name in names if name not in set(inside)], inside


def recompute(net: nn.Module, level: str) -> Callable[[], None]:
    """Make parts of a network compute their activations again in the backward pass instead of keeping them.

    The result, the gradients and the batch statistics stay the same. Parts are stages and residual blocks; which of
    them hold most is seen in the first forward pass.

    Parameters
    ----------
    net
        The network; its forward methods are wrapped.
    level
        ``"low"``, ``"mid"`` or ``"full"``: parts that together hold half, three quarters or all of the activations.

    Returns
    -------
    callable
        Takes the wrapping out again.

    References
    ----------
    Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory cost", 2016.
    """
    units = _units(net)
    sizes: dict[nn.Module, int] = {}

    def measure(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        handle.remove()
        hooks = [
            leaf.register_forward_hook(lambda _m, _i, out, unit=unit: _add(sizes, unit, out))
            for unit in units
            for leaf in unit.modules()
            if not any(True for _ in leaf.children())
        ]
        was = {module: module.training for module in net.modules()}
        try:
            with torch.no_grad():
                net.eval()(inputs[0][:1])
        finally:
            for module, mode in was.items():
                module.training = mode
            for hook in hooks:
                hook.remove()
        left = RECOMPUTED[level] * sum(sizes.values())
        for unit in sorted(units, key=lambda unit: -sizes.get(unit, 0)):
            if left > 0:
                unit.forward = _Recomputed(unit)
                left -= sizes.get(unit, 0)

    def undo() -> None:
        handle.remove()
        for unit in units:
            unit.__dict__.pop("forward", None)

    handle = net.register_forward_pre_hook(measure)
    return undo


class _Recomputed:
    """The forward method of a module that keeps its input only."""

    def __init__(self, unit: nn.Module) -> None:
        self.unit = unit
        self.norms = [module for module in unit.modules() if isinstance(module, NORMS)]

    def __call__(self, *inputs: Tensor) -> Tensor:
        run: Callable[..., Tensor] = type(self.unit).forward
        if not (self.unit.training and torch.is_grad_enabled()):
            return run(self.unit, *inputs)
        again: Tensor = checkpoint(
            run, self.unit, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), self._still())
        )
        return again

    @contextmanager
    def _still(self) -> Iterator[None]:
        """Let the second pass count its batch in copies of the batch statistics: the first has counted it."""
        kept = [norm._buffers for norm in self.norms]
        for norm in self.norms:
            norm._buffers = {name: None if b is None else b.clone() for name, b in norm._buffers.items()}
        try:
            yield
        finally:
            for norm, buffers in zip(self.norms, kept, strict=True):
                norm._buffers = buffers


def _units(net: nn.Module) -> list[nn.Module]:
    """Return the stages and blocks of a network that may be computed again, from the outside inwards."""
    found: list[nn.Module] = []
    for child in net.children():
        inner = list(child.children())
        blocks = [c for c in inner if list(c.children()) and not isinstance(c, nn.Sequential)]
        if isinstance(child, nn.ModuleList) or (isinstance(child, nn.Sequential) and blocks):
            found += _units(child)
        elif inner:
            found.append(child)
    return found


def _add(sizes: dict[nn.Module, int], unit: nn.Module, output: Any) -> None:
    if isinstance(output, torch.Tensor):
        sizes[unit] = sizes.get(unit, 0) + output.numel()


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
