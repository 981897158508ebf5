"""Activation checkpointing: parts of a network compute their activations again instead of keeping them."""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from dhlab.errors import BadValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

__all__ = ["LEVELS", "Recomputation", "recompute"]

# Share of the memory that can be saved at all.
LEVELS = {"low": 1 / 3, "mid": 2 / 3, "full": 1.0}
# Shares of everything kept: a module with less is left alone, one with more is too coarse to choose from.
SMALLEST, LARGEST = 0.005, 0.25


def recompute(net: nn.Module, level: str) -> Recomputation:
    """Save memory in training: parts of a network compute their activations again in the backward pass.

    Logits, gradients, batch statistics and random numbers stay the same to the bit. Which parts (stages, blocks, rows
    of layers) are recomputed is decided at the first forward pass with gradients: its shapes are followed through the
    network, without computing, to see what each part keeps.

    Parameters
    ----------
    net
        Any network; its parameters keep their names.
    level
        ``"low"`` and ``"mid"`` recompute the largest parts, until a third or two thirds of what can be saved is
        saved; ``"full"`` recomputes all that lowers the peak.

    Returns
    -------
    Recomputation
        A context manager that ends the recomputation; calling it does so too.

    Raises
    ------
    BadValueError
        If there is no such level.

    References
    ----------
    Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory cost", 2016.
    """
    if level not in LEVELS:
        raise BadValueError(f"recomputation level {level!r}; expected one of {', '.join(LEVELS)}.")
    return Recomputation(net, level)


class Recomputation(AbstractContextManager["Recomputation"]):
    """Recomputation at work in a network; `recompute` makes it, and calling it ends it.

    Attributes
    ----------
    units
        Names of the modules that are recomputed; empty before the first forward pass.
    """

    def __init__(self, net: nn.Module, level: str) -> None:
        self.net, self.level = net, level
        self.units: tuple[str, ...] = ()
        self._hook = net.register_forward_pre_hook(MethodType(_uncompiled(Recomputation._begin), self))

    def __call__(self) -> None:
        """Let the network keep its activations again."""
        self._hook.remove()
        for name in self.units:
            self.net.get_submodule(name).__dict__.pop("forward", None)
        self.units = ()

    def __exit__(self, *_: object) -> None:
        self()

    def _begin(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not torch.is_grad_enabled():
            return
        self._hook.remove()
        if any("forward" in module.__dict__ for module in self.net.modules()):
            raise BadValueError("the network recomputes already; end that first.")
        self.units = _choose_units(_trace(self.net, inputs[0]), LEVELS[self.level])
        # A compiler would trace the second pass too, and count the batch twice: these parts run as they are.
        forward = _uncompiled(_forward_again)
        for name in self.units:
            module = self.net.get_submodule(name)
            # A bound method, so that a deep copy of the network runs its own weights.
            module.forward = MethodType(forward, module)


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Not as a decorator, which would load the compiler for all who import this.
    called: Callable[..., Any] = torch.compiler.disable(function)  # type: ignore[no-untyped-call] # torch gives it no types
    return called


def _forward_again(module: nn.Module, *inputs: Any, **options: Any) -> Any:
    """Run a module's own forward method, keeping its inputs only."""
    run = type(module).forward
    if not torch.is_grad_enabled():
        return run(module, *inputs, **options)
    # A network may go on filling a list that it gave (DenseNet does).
    inputs = tuple(list(value) if isinstance(value, list) else value for value in inputs)
    contexts = partial(_contexts, module)
    return checkpoint(run, module, *inputs, use_reentrant=False, context_fn=contexts, **options)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _counted_once(module)


@contextmanager
def _counted_once(module: nn.Module) -> Iterator[None]:
    """Let norms count a batch in copies of their statistics: they have counted it in the forward pass."""
    norms = [m for m in module.modules() if isinstance(m, _NormBase)]
    kept = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {name: None if b is None else b.clone() for name, b in norm._buffers.items()}
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers = buffers


@dataclass
class _Unit:
    """What a module did in the traced pass."""

    parent: str
    inputs: set[int] = field(default_factory=set)
    begin: int = 0
    end: int = 0
    pure: bool = True  # nobody wrote into its inputs, so they can be used again


@dataclass
class _Trace:
    """What a forward pass keeps for the backward pass: tensors by storage, and for whom."""

    units: dict[str, _Unit] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)  # bytes per storage
    saved: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)  # storage, modules at work, in order

    def children(self, name: str) -> list[str]:
        """Return the modules that a module called, those first that it called first."""
        return [child for child, unit in self.units.items() if unit.parent == name]

    def inside(self, units: set[str]) -> dict[str, set[int]]:
        """Return the storages that each of some modules keeps besides its inputs."""
        found: dict[str, set[int]] = {name: set() for name in units}
        for storage, path in self.saved:
            for name in units.intersection(path):
                found[name].add(storage)
        return {name: storages - self.units[name].inputs for name, storages in found.items()}

    def size(self, storages: Iterable[int]) -> int:
        """Return the bytes of some storages."""
        return sum(self.sizes[storage] for storage in storages)

    def peak(self, units: set[str]) -> tuple[int, str]:
        """Return the highest number of bytes kept if some modules are recomputed, and the one that needs them last.

        At the end of the forward pass everything outside is there; while a module is recomputed, only what was kept
        before it, and what it keeps itself.
        """
        first: dict[int, int] = {}
        for time, (storage, path) in enumerate(self.saved):
            if units.isdisjoint(path):
                first.setdefault(storage, time)
        for name in units:
            for storage in self.units[name].inputs:
                first[storage] = min(first.get(storage, len(self.saved)), self.units[name].begin)
        highest, last = self.size(first), ""
        for name, storages in self.inside(units).items():
            before = self.size(storage for storage, time in first.items() if time <= self.units[name].end)
            own = self.size(storages - first.keys())
            if before + own > highest:
                highest, last = before + own, name
        return highest, last


def _choose_units(trace: _Trace, share: float) -> tuple[str, ...]:
    """Return the modules to recompute, so that a share of what can be saved is saved."""
    everything, _ = trace.peak(set())
    units = _useful(trace, trace.children(""), SMALLEST * everything)
    peak, largest = trace.peak(units)
    while largest:
        # The module that needs most is recomputed in parts, as long as that helps.
        parts = (units - {largest}) | _useful(trace, trace.children(largest), SMALLEST * everything)
        new_peak, new_largest = trace.peak(parts)
        if new_peak > peak:
            break
        units, peak, largest = parts, new_peak, new_largest
    if share < 1:
        units = _split(trace, units, everything)
    held = {name: trace.size(storages) for name, storages in trace.inside(units).items()}
    chosen: set[str] = set()
    for name in sorted(units, key=lambda name: (-held[name], name)):
        if trace.peak(chosen)[0] <= everything - share * (everything - peak):
            break
        chosen.add(name)
    return tuple(name for name in trace.units if name in chosen)


def _split(trace: _Trace, units: set[str], everything: int) -> set[str]:
    """Return modules of which none holds much, as far as they have parts."""
    found: set[str] = set()
    for name, storages in trace.inside(units).items():
        large = trace.size(storages) > LARGEST * everything
        parts = _useful(trace, trace.children(name), SMALLEST * everything) if large else set()
        found |= _split(trace, parts, everything) if len(parts) > 1 else {name}
    return found


def _useful(trace: _Trace, names: list[str], least: float) -> set[str]:
    """Return the modules that keep more than a few bytes besides their inputs; for impure ones, those within."""
    found: set[str] = set()
    for name, storages in trace.inside(set(names)).items():
        if trace.size(storages) < least:
            continue
        found |= {name} if trace.units[name].pure else _useful(trace, trace.children(name), least)
    return found


def _trace(net: nn.Module, x: Tensor) -> _Trace:
    """Follow one forward pass through a network by shapes alone."""
    trace, alive = _Trace(), []
    stack: list[str] = []
    versions: dict[str, list[tuple[Tensor, int]]] = defaultdict(list)
    own = {
        name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        for name, tensor in (*net.named_parameters(), *net.named_buffers())
    }
    window = torch.empty_like(x, device="meta").requires_grad_(x.requires_grad)
    given = {_storage(tensor) for tensor in (*own.values(), window)}

    def keep(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in given:
            alive.append(tensor.untyped_storage())  # a freed one would give its number to another
            trace.sizes[storage] = tensor.untyped_storage().nbytes()
            trace.saved.append((storage, tuple(stack)))
        return tensor

    def enter(name: str, inputs: tuple[Any, ...]) -> None:
        unit = trace.units.setdefault(name, _Unit(stack[-1] if stack else "", begin=len(trace.saved)))
        for tensor in _tensors(inputs):
            versions[name].append((tensor, tensor._version))
            if _storage(tensor) not in given:
                alive.append(tensor.untyped_storage())
                trace.sizes[_storage(tensor)] = tensor.untyped_storage().nbytes()
                unit.inputs.add(_storage(tensor))
        stack.append(name)

    def leave(name: str) -> None:
        stack.pop()
        trace.units[name].end = len(trace.saved)

    hooks = []
    for name, module in net.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: enter(name, inputs)))
            hooks.append(module.register_forward_hook(lambda *_, name=name: leave(name)))
    try:
        with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = torch.func.functional_call(net, own, (window,))
    except NotImplementedError as error:
        raise BadValueError(f"shapes cannot be followed through this network: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    del result
    for name, seen in versions.items():
        trace.units[name].pure = all(tensor._version == version for tensor, version in seen)
    return trace


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
