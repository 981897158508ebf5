"""The one place that knows Horovod: who this worker is, sums over all workers, and the complete stand-in for one.

Every function works in a process that nobody launched: it is then worker 0 of 1, and sums are what was given.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from dhlab import env
from dhlab.errors import BadValueError, DHLabError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray
    from torch import Tensor, nn

__all__ = [
    "COMPRESSIONS",
    "WorkerError",
    "allreduce",
    "broadcast",
    "broadcast_value",
    "drop_pending",
    "gather",
    "horovod_build",
    "is_elastic",
    "is_main",
    "is_shared",
    "join",
    "local_rank",
    "on_main",
    "rank",
    "run_elastic",
    "set_passes",
    "shard",
    "size",
    "sum_over_workers",
    "synchronize",
    "synchronized",
    "wrap",
]

Value = TypeVar("Value")
COMPRESSIONS = ("none", "fp16")
# On CPUs a large gradient travels from where it lies; copying it beside others took longer (bench_scaling.py).
FUSED_BYTES = 1 << 20
REMEDY = "Build it for this torch: bash binder/install.sh --horovod"


class WorkerError(DHLabError, RuntimeError):
    """Workers cannot do something together, or one of them is gone."""


def rank() -> int:
    """Return the number of this worker, from 0."""
    return int(_horovod().rank()) if _launched() else 0


def size() -> int:
    """Return how many workers there are; 1 in a process that nobody launched."""
    return int(_horovod().size()) if _launched() else 1


def local_rank() -> int:
    """Return the number of this worker on its machine, from 0: which of the machine's GPUs it takes."""
    # To Horovod each elastic worker of this machine is on a machine of its own.
    if number := env.get("DHLAB_LOCAL_RANK"):
        return int(number)
    return int(_horovod().local_rank()) if _launched() else 0


def is_main() -> bool:
    """Return whether this is the worker that writes files and shows progress."""
    return rank() == 0


def is_elastic() -> bool:
    """Return whether workers may come and go while they work."""
    return bool(env.get("HOROVOD_ELASTIC"))


def is_shared() -> bool:
    """Return whether there are other workers, or may be."""
    return size() > 1 or is_elastic()


def shard(count: int) -> slice:
    """Return which of a number of items fall to this worker: every `size`-th, from `rank`.

    Parameters
    ----------
    count
        Number of items over all workers.
    """
    return slice(rank(), count, size())


@torch.no_grad()
def broadcast(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Give every worker the weights, buffers and optimiser state of worker 0.

    Parameters
    ----------
    model
        Changed in place.
    optimizer
        Changed in place.
    """
    if size() == 1:
        return
    for name, tensor in sorted(model.state_dict().items()):
        # Not every type can travel; bytes can.
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        sent = _horovod().broadcast(flat, 0, name=f"broadcast.{name}")
        tensor.copy_(sent.view(tensor.dtype).reshape(tensor.shape))
    if optimizer is not None:
        optimizer.load_state_dict(broadcast_value(optimizer.state_dict()))


def broadcast_value(value: Value) -> Value:
    """Return worker 0's value on every worker.

    Parameters
    ----------
    value
        Anything that can be pickled; it travels between workers of one run only.
    """
    return _horovod().broadcast_object(value, 0) if size() > 1 else value


def allreduce(values: Tensor | NDArray[Any], *, operation: str = "sum") -> NDArray[Any]:
    """Return the sum, least or largest of every number over all workers.

    Parameters
    ----------
    values
        Numbers, any shape, the same on all workers.
    operation
        ``"sum"``, ``"min"`` or ``"max"``.

    Returns
    -------
    ndarray
        As `values`, in the same type (sums of 64-bit numbers for whole numbers and floats).

    Raises
    ------
    BadValueError
        If there is no such operation.
    """
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if operation not in ("sum", "min", "max"):
        raise BadValueError(f"operation {operation!r}; expected 'sum', 'min' or 'max'.")
    if size() == 1:
        return array
    hvd = _horovod()
    wide = torch.from_numpy(np.ascontiguousarray(array, np.float64 if array.dtype.kind == "f" else np.int64))
    kinds = {"sum": hvd.Sum, "min": hvd.Min, "max": hvd.Max}
    reduced = hvd.allreduce(wide, name=f"values.{operation}.{array.dtype}.{array.shape}", op=kinds[operation])
    return np.asarray(reduced.numpy().astype(array.dtype, copy=False)).reshape(array.shape)


def gather(array: NDArray[Any]) -> NDArray[Any]:
    """Return what all workers have, one after the other along the first axis.

    Parameters
    ----------
    array
        ``(N, …)``; N may differ between workers, and be 0.
    """
    if size() == 1:
        return array
    rows = np.ascontiguousarray(array)
    flat = torch.from_numpy(rows.reshape(len(rows), -1).view(np.uint8).copy())
    return _horovod().allgather(flat, name="gather").numpy().view(rows.dtype).reshape(-1, *rows.shape[1:])


def sum_over_workers(tensor: Tensor, *, spread: bool = False) -> Tensor:
    """Return the sum over all workers, with a gradient.

    Parameters
    ----------
    tensor
        float32 or float64, the same shape on all workers.
    spread
        Whether the workers go on differently with the sum, so that the gradient is the sum of theirs (statistics of a
        batch). Else every worker computes the same from it, and its own gradient is already the whole (a loss).

    Returns
    -------
    Tensor
        As `tensor`.
    """
    if size() == 1:
        return tensor
    summed: Tensor = _Sum.apply(tensor, spread)  # type: ignore[no-untyped-call] # torch gives it no types
    return summed


def wrap(
    optimizer: torch.optim.Optimizer, model: nn.Module, *, compression: str = "none", passes: int = 1
) -> torch.optim.Optimizer:
    """Let an optimiser step with the sum of all workers' gradients, which travel while others are still computed.

    Parameters
    ----------
    optimizer
        Optimiser of the model's parameters.
    model
        The model.
    compression
        ``"none"``, or ``"fp16"`` to send halves. Gradients in bfloat16 always travel in float32.
    passes
        Backward passes before a step; see `set_passes`.

    Returns
    -------
    torch.optim.Optimizer
        The same kind, for `set_passes`, `synchronize` and `synchronized`; the optimiser itself with one worker.

    Raises
    ------
    BadValueError
        If there is no such compression.
    """
    if compression not in COMPRESSIONS:
        raise BadValueError(f"compression {compression!r}; expected one of {', '.join(COMPRESSIONS)}.")
    if not is_shared():
        return optimizer
    hvd = _horovod()
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return hvd.DistributedOptimizer(
        optimizer,
        named_parameters=[(name, p) for name, p in model.named_parameters() if id(p) in known],
        compression=_packing(compression == "fp16"),
        backward_passes_per_step=passes,
        op=hvd.Sum,
    )


def set_passes(optimizer: torch.optim.Optimizer, passes: int) -> None:
    """Let an optimiser of `wrap` send gradients after a number of backward passes, from the next one on.

    Parameters
    ----------
    optimizer
        What `wrap` returned.
    passes
        Backward passes before a step.
    """
    if is_shared():
        optimizer.set_backward_passes_per_step(passes)  # type: ignore[attr-defined]


def synchronize(optimizer: torch.optim.Optimizer) -> None:
    """Wait until every gradient of an optimiser of `wrap` is the sum of all workers'.

    Parameters
    ----------
    optimizer
        What `wrap` returned.
    """
    if is_shared():
        optimizer.synchronize()  # type: ignore[attr-defined] # as above


def synchronized(optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
    """Let an optimiser of `wrap` step within the block without waiting once more.

    Parameters
    ----------
    optimizer
        What `wrap` returned, after `synchronize`.
    """
    return optimizer.skip_synchronize() if is_shared() else nullcontext()  # type: ignore[attr-defined] # as above


def drop_pending(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimiser of `wrap` forget gradients that were on their way when a worker was lost.

    Parameters
    ----------
    optimizer
        What `wrap` returned.
    """
    if is_shared():
        optimizer.load_state_dict(optimizer.state_dict())


def on_main(work: Callable[[], Value]) -> Value:
    """Do something on worker 0 and return its result, or raise its error, on every worker.

    Elastic workers, which may not talk before `run_elastic`, each do it for themselves.

    Parameters
    ----------
    work
        What to do; its result can be pickled.
    """
    if size() == 1 or is_elastic():
        return work()
    result: Any = None
    error: Exception | None = None
    if is_main():
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001 - whatever it is, the others must not wait for ever
            error = raised
    result, error = broadcast_value((result, error))
    if error is not None:
        raise error
    return result


def run_elastic(
    work: Callable[[Callable[[], None]], None],
    *,
    keep: Callable[[], Value],
    take: Callable[[Value], None],
    on_change: Callable[[], None],
) -> None:
    """Do something to its end while workers come and go; without elastic workers simply do it.

    Before it, workers must not have summed or sent anything: those that come later begin here.

    Parameters
    ----------
    work
        What to do, from where the state is; it calls what it is given whenever the state is worth keeping.
    keep
        Returns the state, a copy.
    take
        Puts a state back: the last one that was kept after a worker was lost, worker 0's where workers came or left.
    on_change
        Called when `rank` and `size` have changed.
    """
    if not is_elastic():
        work(lambda: None)
        return
    hvd = _horovod()
    import horovod.torch.elastic
    from horovod.common.elastic import State

    class Kept(State):  # type: ignore[misc] # untyped
        def save(self) -> None:
            self.kept = keep()

        def restore(self) -> None:
            take(self.kept)

        def sync(self) -> None:
            self.kept = broadcast_value(self.kept)
            take(self.kept)

    state = Kept(hvd.broadcast_object, hvd.rank)
    state.register_reset_callbacks([on_change])
    state.save()
    horovod.torch.elastic.run(lambda _: work(state.commit))(state)


def join() -> None:
    """Wait until every worker is here, for instance before one of them reads what another wrote."""
    if size() > 1:
        _horovod().barrier()


def horovod_build() -> tuple[str, ...] | None:
    """Return what the installed Horovod was built with, for example ``("gloo",)``; None if it is not installed.

    Returns
    -------
    tuple of str or None
        Among ``gloo``, ``mpi`` and ``nccl``; empty if Horovod lacks torch support.

    Raises
    ------
    MissingDependencyError
        If it was built for another torch and does not load.
    """
    if find_spec("horovod") is None:
        return None
    hvd = _load()
    if not hasattr(hvd, "init"):
        return ()
    return tuple(name for name in ("gloo", "mpi", "nccl") if getattr(hvd, f"{name}_built")())


class _Sum(torch.autograd.Function):
    """Sum over the workers; see `sum_over_workers`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, spread: bool) -> Tensor:
        ctx.spread = spread
        return _sum(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (_sum(gradient) if ctx.spread else gradient), None


def _sum(tensor: Tensor) -> Tensor:
    hvd = _horovod()
    # A name that all workers give alike, also those that came later and counted fewer calls.
    summed: Tensor = hvd.allreduce(tensor.contiguous(), name=f"sum.{tensor.dtype}.{tuple(tensor.shape)}", op=hvd.Sum)
    return summed


def _launched() -> bool:
    """Return whether a launcher of Horovod started this process; Slurm's variables say nothing of that."""
    return bool(env.get("HOROVOD_SIZE") or env.get("HOROVOD_ELASTIC")) or env.get("OMPI_COMM_WORLD_SIZE") not in (
        "",
        "1",
    )


@cache
def _horovod() -> Any:
    """Return Horovod's torch module, with the workers connected.

    Raises
    ------
    MissingDependencyError
        If it is absent, has no torch support, or was built for another torch.
    """
    if find_spec("horovod") is None:
        raise MissingDependencyError(
            f"this process was started as one of several workers, but Horovod is not installed. {REMEDY}"
        )
    hvd = _load()
    if not hasattr(hvd, "init"):
        raise MissingDependencyError(
            f"Horovod is installed without torch support, as a plain pip install leaves it. {REMEDY}"
        )
    if not torch.cuda.is_available() and not env.get("HOROVOD_FUSION_THRESHOLD"):
        env.set_variables({"HOROVOD_FUSION_THRESHOLD": str(FUSED_BYTES)})
    hvd.init()
    return hvd


def _load() -> Any:
    try:
        import horovod.torch
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"Horovod does not load with torch {torch.__version__}, it was built for another: {error}. {REMEDY}"
        ) from error
    return horovod.torch


@cache
def _packing(half: bool) -> Any:
    """Return what Horovod calls a compression: gradients as it can add them, dense and in no type but its own."""
    from horovod.torch.compression import Compressor

    class Packing(Compressor):  # type: ignore[misc] # untyped
        @staticmethod
        def compress(tensor: Tensor) -> tuple[Tensor, tuple[torch.dtype, bool]]:
            # Channels last is dense as it lies: no copy.
            turned = tensor.ndim > 3 and not tensor.is_contiguous()
            dense = (tensor.movedim(1, -1) if turned else tensor).contiguous()
            if half and tensor.is_floating_point():
                dense = dense.half()
            return (dense.float() if dense.dtype == torch.bfloat16 else dense), (tensor.dtype, turned)

        @staticmethod
        def decompress(tensor: Tensor, before: tuple[torch.dtype, bool]) -> Tensor:
            dtype, turned = before
            return (tensor.movedim(-1, 1) if turned else tensor).to(dtype)

    return Packing
