"""Activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dhlab.networks.compact import NORMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

__all__ = ["recompute"]

# Share of the activations that is computed again.
RECOMPUTED = {"low": 0.5, "mid": 0.75, "full": 1.0}


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
