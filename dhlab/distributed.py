"""The one place that knows Horovod."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["horovod_build"]


def horovod_build() -> tuple[str, ...] | None:
    """Return what the installed Horovod was built with, for example ``("gloo",)``; None if it is not installed.

    Returns
    -------
    tuple of str or None
        Among ``gloo``, ``mpi`` and ``nccl``; empty if Horovod lacks torch support.
    """
    if find_spec("horovod") is None:
        return None
    import horovod.torch

    if not hasattr(horovod.torch, "init"):
        return ()
    return tuple(name for name in ("gloo", "mpi", "nccl") if getattr(horovod.torch, f"{name}_built")())
