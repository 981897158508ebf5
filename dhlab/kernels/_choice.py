"""Which form of a kernel runs, decided anew at each call."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from dhlab import env
from dhlab.errors import BadValueError, MissingDependencyError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["use_triton"]


def use_triton(tensor: Tensor) -> bool:
    """Return whether the Triton form runs on a tensor.

    ``DHLAB_KERNELS=auto`` takes Triton for tensors on a GPU where Triton is installed, ``torch`` never, ``triton``
    always. Graphs under export take the reference, which is what ONNX can hold.

    Parameters
    ----------
    tensor
        The main operand, any shape; its device decides.

    Returns
    -------
    bool
        True for Triton, False for the PyTorch reference.

    Raises
    ------
    MissingDependencyError
        If ``DHLAB_KERNELS=triton`` and Triton is not installed.
    BadValueError
        If ``DHLAB_KERNELS=triton`` and the tensor is on the CPU, outside Triton's interpreter.
    """
    choice = env.get("DHLAB_KERNELS")
    if choice == "torch" or torch.compiler.is_exporting():
        return False
    installed = find_spec("triton") is not None
    if choice == "auto":
        return tensor.is_cuda and installed
    if not installed:
        raise MissingDependencyError("DHLAB_KERNELS=triton, but Triton is not installed: pip install 'dhlab[gpu]'.")
    from dhlab.kernels._triton import INTERPRETED

    if not (tensor.is_cuda or INTERPRETED):
        raise BadValueError(
            f"DHLAB_KERNELS=triton, but the tensor is on {tensor.device}; expected a GPU. Unset DHLAB_KERNELS."
        )
    return True
