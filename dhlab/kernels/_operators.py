"""Kernels as operators of torch, so that `torch.compile` and `torch.export` see one node and do not look inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["register"]

LIBRARY = torch.library.Library("dhlab", "DEF")  # type: ignore[no-untyped-call] # torch.library has no types


def register(
    schema: str,
    run: Callable[..., Any],
    *,
    fake: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register an operator ``torch.ops.dhlab.<name>`` and return it.

    Parameters
    ----------
    schema
        As torch writes it: ``"normalize(Tensor images, Tensor(a!) out) -> ()"``; an operator that writes to its
        arguments returns nothing and needs no `fake`, one with a gradient returns new tensors.
    run
        Does the work on any device; it may choose a form by itself.
    fake
        Returns empty tensors of the shapes that `run` would return, without looking at values.
    backward, setup_context
        As for `torch.library.register_autograd`.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)  # type: ignore[no-untyped-call] # as above
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call] # as above
    torch.library.register_fake(f"dhlab::{name}", fake or (lambda *_, **__: None), lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"dhlab::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    return getattr(torch.ops.dhlab, name).default
