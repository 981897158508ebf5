"""The one place that knows Horovod: who this worker is, sums over all workers, and the complete stand-in for one.

Every function works in a process that nobody launched: it is then worker 0 of 1, and sums are what was given.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch

from dhlab import env
from dhlab.errors import BadValueError, DHLabError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

__all__ = [
    "COMPRESSIONS",
    "REDUCTIONS",
    "WorkerError",
    "allreduce",
    "broadcast",
    "broadcast_value",
    "drop_pending",
    "gather",
    "gather_values",
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
    "split_workers",
    "sum_over_workers",
    "synchronize",
    "unwrap",
    "wrap",
]

Value = TypeVar("Value")
COMPRESSIONS = ("none", "fp16")
REDUCTIONS = ("sum", "adasum")
# Small gradients are copied beside one another and travel as one; a larger one travels from where it lies
# (bench_scaling.py).
BUCKET_BYTES = 1 << 20
NAP_S = 1e-4
# How long elastic workers wait for one that neither answers nor ends.
ANSWER_S = 600.0
DYNAMIC = "HOROVOD_DYNAMIC_PROCESS_SETS"
REMEDY = "Build it for this torch: bash binder/install.sh --horovod"
MPI_REMEDY = (
    "Build it with MPI (apt-get install libopenmpi-dev openmpi-bin; HVD_MPI=1 bash binder/install.sh --horovod) and "
    "start the workers with mpirun"
)


class WorkerError(DHLabError, RuntimeError):
    """Workers cannot do something together, or one of them is gone."""


def rank() -> int:
    """Return the number of this worker, from 0; in a group of `split_workers`, its number there."""
    if not _launched():
        return 0
    return int(_groups[0].rank() if _groups else _horovod().rank())


def size() -> int:
    """Return how many workers there are, in a group those of the group; 1 in a process that nobody launched."""
    if not _launched():
        return 1
    return int(_groups[0].size() if _groups else _horovod().size())


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


@contextmanager
def split_workers(groups: int) -> Iterator[int]:
    """Let the workers work in groups within the block, as if there were no others: trainings side by side in one job.

    Every worker belongs to one group, and `rank`, `size`, sums, `dhlab.fit` and `dhlab.evaluate` are the group's::

        with distributed.split_workers(2) as group:  # of four workers, two train each fold
            train, validation = folds[group]
            report = dh.fit(model, train, validation, folder=f"fold-{group}")
        reports = distributed.gather_values(report)

    The block ends when all groups are done. The first such block comes before anything else that workers do together:
    Horovod must know from its start that there will be groups.

    Parameters
    ----------
    groups
        How many; workers are spread over them as evenly as may be, neighbours together.

    Yields
    ------
    int
        The number of this worker's group, from 0.

    Raises
    ------
    BadValueError
        If there are not so many workers.
    WorkerError
        If workers may come and go, are in groups already, or have done something together before.
    """
    if _launched() and not _horovod.cache_info().currsize:
        env.set_variables({DYNAMIC: "1"})
    count = size()
    if not 1 <= groups <= count:
        raise BadValueError(f"{groups} groups of {count} workers; expected 1 to {count} groups.")
    if is_elastic():
        raise WorkerError("workers that may come and go have no groups. Submit the job without least_workers.")
    if _groups:
        raise WorkerError("the workers are in groups already; end that block first.")
    if groups == 1:
        yield 0
        return
    if not env.get(DYNAMIC):
        raise WorkerError("the workers have done something together already. Begin with split_workers.")
    hvd = _horovod()
    sets = [hvd.add_process_set(part.tolist()) for part in np.array_split(np.arange(count), groups)]
    number = next(number for number, part in enumerate(sets) if rank() in part.ranks)
    _groups.append(sets[number])
    try:
        yield number
    finally:
        _groups.clear()
    for part in sets:
        hvd.remove_process_set(part)


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
        sent = _wait(_horovod().broadcast_async(flat, _first(), name=f"broadcast.{name}", process_set=_together()))
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
    if size() == 1:
        return value
    if is_elastic():
        # What follows waits for ever for one that hangs.
        join()
    sent: Value = _horovod().broadcast_object(value, _first(), process_set=_together())
    return sent


def gather_values(value: Value) -> list[Value]:
    """Return the value of every worker, in the order of their numbers.

    Parameters
    ----------
    value
        Anything that can be pickled; it travels between workers of one run only.
    """
    if size() == 1:
        return [value]
    everyone = _groups[0].ranks if _groups else range(size())
    return [_horovod().broadcast_object(value, number, process_set=_together()) for number in everyone]


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
    reduced = _reduce(wide, f"values.{operation}.{array.dtype}.{array.shape}", kinds[operation])
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
    # A worker may have no row, from which no length follows.
    flat = torch.from_numpy(rows.reshape(len(rows), math.prod(rows.shape[1:])).view(np.uint8).copy())
    found = _wait(_horovod().allgather_async(flat, name="gather", process_set=_together()))
    return found.numpy().view(rows.dtype).reshape(-1, *rows.shape[1:])


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
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    *,
    compression: str = "none",
    reduction: str = "sum",
) -> None:
    """Let an optimiser step with the gradients of all workers, which travel while others are still computed.

    Parameters
    ----------
    optimizer
        Optimiser of the model's parameters; with one worker it stays as it is.
    model
        The model.
    compression
        ``"none"``, or ``"fp16"`` to send halves. Gradients in bfloat16 always travel in float32.
    reduction
        ``"sum"``; or ``"adasum"`` (Maleki et al., MLSys 2021), which adds what points elsewhere and averages what
        points the same way. It needs a Horovod with MPI, and as many workers as a power of two.

    Raises
    ------
    BadValueError
        If there is no such compression or reduction.
    WorkerError
        If the workers cannot do Adasum.
    """
    if compression not in COMPRESSIONS:
        raise BadValueError(f"compression {compression!r}; expected one of {', '.join(COMPRESSIONS)}.")
    if reduction not in REDUCTIONS:
        raise BadValueError(f"reduction {reduction!r}; expected one of {', '.join(REDUCTIONS)}.")
    if not is_shared():
        return
    if reduction == "adasum":
        _check_adasum()
    mine = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    named: list[tuple[str, Tensor]] = [
        (name, parameter) for name, parameter in model.named_parameters() if id(parameter) in mine
    ]
    # Adasum looks at each gradient by itself.
    groups = _share_out(named, BUCKET_BYTES if reduction == "sum" else 0)
    half = compression == "fp16"
    _travelling[optimizer] = _Gradients(optimizer, [_Bucket(group, half=half, reduction=reduction) for group in groups])


def unwrap(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimiser step with the gradients of this worker alone, as before `wrap`.

    Parameters
    ----------
    optimizer
        Any optimiser.
    """
    if gradients := _travelling.pop(optimizer, None):
        gradients.remove()


def set_passes(optimizer: torch.optim.Optimizer, passes: int) -> None:
    """Let an optimiser of `wrap` send gradients after a number of backward passes, from the next one on; first it is 1.

    Parameters
    ----------
    optimizer
        Any optimiser.
    passes
        Backward passes before a step.
    """
    if gradients := _travelling.get(optimizer):
        gradients.begin(passes)


def synchronize(optimizer: torch.optim.Optimizer) -> None:
    """Wait until every gradient of an optimiser of `wrap` is that of all workers; else its next step would.

    Parameters
    ----------
    optimizer
        Any optimiser.
    """
    if gradients := _travelling.get(optimizer):
        gradients.synchronize()


def drop_pending(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimiser of `wrap` forget gradients that were on their way when a worker was lost.

    Parameters
    ----------
    optimizer
        Any optimiser.
    """
    if gradients := _travelling.get(optimizer):
        gradients.begin(gradients.passes)


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

    class Kept(State):  # type: ignore[misc] # Horovod has no types
        def save(self) -> None:
            self.kept = keep()

        def restore(self) -> None:
            take(self.kept)

        def sync(self) -> None:
            self.kept = broadcast_value(self.kept)
            take(self.kept)

    state = Kept(broadcast_value, hvd.rank)
    state.register_reset_callbacks([on_change])
    state.save()
    horovod.torch.elastic.run(lambda _: work(state.commit))(state)


def join() -> None:
    """Wait until every worker is here, for instance before one of them reads what another wrote."""
    if size() > 1:
        _reduce(torch.zeros(1), "join", _horovod().Sum)


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


class _Bucket:
    """Gradients that travel together, beside one another in one flat tensor; one alone travels from where it lies."""

    def __init__(self, named: list[tuple[str, Tensor]], *, half: bool, reduction: str) -> None:
        self.name, self.reduction = f"gradients.{named[0][0]}", reduction
        self.parameters = parameters = [parameter for _, parameter in named]
        first = parameters[0]
        self.dtype = torch.float16 if half and first.is_floating_point() else first.dtype
        if self.dtype == torch.bfloat16:
            self.dtype = torch.float32
        # The memory order in which autograd leaves a gradient.
        self.strides = [torch.empty_like(parameter, device="meta").stride() for parameter in parameters]
        self.views: list[Tensor] = []
        self.waiting = 0
        self.handle: int | None = None

    @torch.no_grad()
    def send(self) -> None:
        """Send the gradients; one that this worker did not need is zero."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = self._gradients()
        alone = len(gradients) == 1 and gradients[0].dtype == self.dtype and gradients[0].stride() == self.strides[0]
        if alone:
            self.views = gradients
        else:
            self.views = self._place()
            torch._foreach_copy_(self.views, gradients)
        total = sum(view.numel() for view in self.views)
        hvd = _horovod()
        kind = hvd.Sum if self.reduction == "sum" else hvd.Adasum
        flat = self.views[0].as_strided((total,), (1,))
        self.handle = hvd.allreduce_async_(flat, name=self.name, op=kind, process_set=_together())

    @torch.no_grad()
    def receive(self) -> None:
        """Wait for the gradients of all workers and put them in their places."""
        _wait(self.handle)
        self.handle = None
        if self.dtype != self.parameters[0].dtype:
            torch._foreach_copy_(self._gradients(), self.views)
            return
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def _place(self) -> list[Tensor]:
        """Return a place for each gradient, in one piece of memory."""
        sizes = [parameter.numel() for parameter in self.parameters]
        flat = torch.empty(sum(sizes), dtype=self.dtype, device=self.parameters[0].device)
        places = zip(torch.split(flat, sizes), self.parameters, self.strides, strict=True)
        return [part.as_strided(parameter.shape, stride) for part, parameter, stride in places]


class _Gradients:
    """Sends each bucket as soon as its last gradient is there, and has them all before the optimiser steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, buckets: list[_Bucket]) -> None:
        self.buckets, self.together = buckets, False
        self.begin(1)
        self.hooks: list[Any] = [optimizer.register_step_pre_hook(self._before_step)]
        for bucket in buckets:
            for parameter in bucket.parameters:
                hook = partial(self._arrive, bucket)
                register: Any = parameter.register_post_accumulate_grad_hook
                self.hooks.append(register(hook))

    def begin(self, passes: int) -> None:
        """Wait for so many backward passes from now on."""
        self.passes, self.together = passes, False
        for bucket in self.buckets:
            bucket.waiting, bucket.handle = passes * len(bucket.parameters), None

    def synchronize(self) -> None:
        """Wait until every gradient is that of all workers."""
        for bucket in self.buckets:
            if bucket.handle is None:
                bucket.send()
        for bucket in self.buckets:
            bucket.receive()
        self.begin(self.passes)
        self.together = True

    def remove(self) -> None:
        """Let gradients be as they are from now on."""
        for hook in self.hooks:
            hook.remove()

    def _arrive(self, bucket: _Bucket, _parameter: Tensor) -> None:
        if bucket.handle is not None:
            raise WorkerError(
                f"a gradient of {bucket.name!r} was computed again while it was on its way: set_passes said "
                f"{self.passes} backward passes before a step."
            )
        self.together = False
        bucket.waiting -= 1
        if not bucket.waiting:
            bucket.send()

    def _before_step(self, *_: object) -> None:
        if not self.together:
            self.synchronize()
        self.together = False


_travelling: WeakKeyDictionary[torch.optim.Optimizer, _Gradients] = WeakKeyDictionary()
# Horovod's process set of the group in which this worker is; nothing outside `split_workers`.
_groups: list[Any] = []


def _share_out(named: list[tuple[str, Tensor]], limit: int) -> list[list[tuple[str, Tensor]]]:
    """Return which gradients travel together, in the order in which they are computed, by and large: the last first."""
    buckets: list[list[tuple[str, Tensor]]] = []
    unfilled: dict[Any, tuple[list[tuple[str, Tensor]], int]] = {}
    for name, parameter in reversed(named):
        kind, own = (parameter.dtype, parameter.device), parameter.numel() * parameter.element_size()
        bucket, filled = unfilled.get(kind, ([], limit))
        if filled + own > limit:
            bucket, filled = [], 0
            buckets.append(bucket)
        bucket.append((name, parameter))
        if own < limit:
            unfilled[kind] = bucket, filled + own
    return buckets


def _wait(handle: Any) -> Tensor:
    hvd, patient = _horovod(), not is_elastic()
    if not (patient and torch.cuda.is_available()):
        deadline = time.monotonic() + ANSWER_S
        # Horovod waits without rest, which takes the core from its own thread that sends.
        while not hvd.poll(handle):
            if not patient and time.monotonic() > deadline:
                raise hvd.HorovodInternalError(f"a worker did not answer for {ANSWER_S:g} s")
            time.sleep(NAP_S)
    arrived: Tensor = hvd.synchronize(handle)
    return arrived


def _reduce(tensor: Tensor, name: str, operation: Any) -> Tensor:
    return _wait(_horovod().allreduce_async(tensor, name=name, op=operation, process_set=_together()))


def _together() -> Any:
    """Return Horovod's process set of the workers that work together."""
    return _groups[0] if _groups else _horovod().global_process_set


def _first() -> int:
    """Return the number among all workers of the first that works together with this one."""
    return int(_groups[0].ranks[0]) if _groups else 0


def _check_adasum() -> None:
    """Raise WorkerError unless the workers can do Adasum."""
    if not _horovod().mpi_enabled():
        raise WorkerError(f"reduction 'adasum' needs workers that talk over MPI, these talk over Gloo. {MPI_REMEDY}.")
    if _groups:
        raise WorkerError("reduction 'adasum' does not work in groups of split_workers; train with 'sum' there.")
    if size() & (size() - 1):
        raise WorkerError(f"reduction 'adasum' with {size()} workers; expected a power of two.")


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
    return _reduce(tensor.contiguous(), f"sum.{tensor.dtype}.{tuple(tensor.shape)}", hvd.Sum)


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
        env.set_variables({"HOROVOD_FUSION_THRESHOLD": str(BUCKET_BYTES)})
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
