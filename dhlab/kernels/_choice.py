"""Which form of a kernel runs, decided anew at each call."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import torch

from dhlab import env
from dhlab.errors import BadValueError, MissingDependencyError
from dhlab.kernels import _cpu

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["choose"]


def choose(tensor: Tensor, *, covered: bool = True) -> Literal["triton", "cpu", "torch"]:
    """Return the form of a kernel that runs on a tensor.

    ``DHLAB_KERNELS=auto`` takes Triton for tensors on a GPU where Triton is installed, the C form for tensors on the
    CPU where the package was built with a compiler, else the PyTorch reference; ``triton``, ``cpu`` and ``torch`` name
    one. Graphs under export take the reference, which is what ONNX can hold.

    Parameters
    ----------
    tensor
        The main operand, any shape; its device decides.
    covered
        Whether the C form knows this case (types, layout); if not, ``auto`` and ``cpu`` take the reference on the CPU.

    Returns
    -------
    str
        ``"triton"``, ``"cpu"`` or ``"torch"``.

    Raises
    ------
    MissingDependencyError
        If the form asked for is not installed.
    BadValueError
        If the form asked for cannot run where the tensor is: Triton outside a GPU and Triton's interpreter, C on a GPU.
    """
    choice = env.get("DHLAB_KERNELS")
    if choice == "torch" or torch.compiler.is_exporting():
        return "torch"
    if choice == "triton" or (choice == "auto" and tensor.is_cuda):
        if find_spec("triton") is None:
            if choice == "auto":
                return "torch"
            raise MissingDependencyError("DHLAB_KERNELS=triton, but Triton is not installed: pip install 'dhlab[gpu]'.")
        if not tensor.is_cuda and not _is_interpreted():
            raise BadValueError(
                f"DHLAB_KERNELS=triton, but the tensor is on {tensor.device}; expected a GPU. Unset DHLAB_KERNELS."
            )
        return "triton"
    if choice == "cpu" and tensor.device.type != "cpu":
        raise BadValueError(f"DHLAB_KERNELS=cpu, but the tensor is on {tensor.device}. Unset DHLAB_KERNELS.")
    if choice == "cpu" and not _cpu.is_built():
        raise MissingDependencyError(
            "DHLAB_KERNELS=cpu, but the C kernels were not built: install a C compiler and dhlab again."
        )
    return "cpu" if covered and tensor.device.type == "cpu" and _cpu.is_built() else "torch"


def _is_interpreted() -> bool:
    from dhlab.kernels._triton import INTERPRETED

    return INTERPRETED
