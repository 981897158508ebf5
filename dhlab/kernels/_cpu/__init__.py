"""The C forms of the kernels: one library, built with the package, that holds each function for several processors.

Sources are written in vectors (``simd.h``) and compiled once per instruction set by ``binder/build_kernels.py``.
Memory belongs to the caller, always; the functions only read and write it, and release Python's lock while they do.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhlab.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["bind", "instruction_set", "is_built", "pointer", "prepare", "threads_for"]

LIBRARY = Path(__file__).with_name("kernels.so")
SETS = ("base", "avx2", "avx512")
KINDS = {"p": ctypes.c_void_p, "l": ctypes.c_long, "i": ctypes.c_int, "f": ctypes.c_float, "d": ctypes.c_double}
# Less work than this, in bytes moved, and starting a thread costs more than it saves.
LEAST_BYTES = 1 << 18
# NumPy asks for huge pages from this size on, too.
HUGE_BYTES = 1 << 22


@cache
def is_built() -> bool:
    """Return whether the package was built with a C compiler and the library loads here."""
    try:
        _load()
    except OSError:
        return False
    return True


@cache
def instruction_set() -> str:
    """Return the best instruction set that this processor and the library share: avx512, avx2 or base."""
    return SETS[_load().dhlab_instruction_set()]


def bind(name: str, kinds: str, *, result: str = "") -> Callable[..., Any]:
    """Return a C function in the form for this processor.

    Parameters
    ----------
    name
        Its name in the sources, within ``NAME(...)``.
    kinds
        One letter per argument: ``p`` pointer, ``l`` long, ``i`` int, ``f`` float, ``d`` double.
    result
        Letter of what it returns; else nothing.

    Raises
    ------
    MissingDependencyError
        If the library was not built, or before this function was written.
    """
    return _find(f"{name}_{instruction_set()}", kinds, result)


def pointer(tensor: Tensor | None) -> int | None:
    """Return where a tensor's first element lies, for an argument of kind ``p``; None becomes a null pointer."""
    return None if tensor is None else tensor.data_ptr()


def prepare(tensor: Tensor) -> Tensor:
    """Return the tensor, of any shape, after asking for huge pages under it if it is large: it fills faster."""
    if tensor.nbytes >= HUGE_BYTES:
        _find("dhlab_prepare", "pl", "")(tensor.data_ptr(), tensor.nbytes)
    return tensor


def threads_for(bytes_moved: int) -> int:
    """Return how many threads a call should use: as many as torch would, fewer for little work."""
    import torch

    return max(1, min(torch.get_num_threads(), bytes_moved // LEAST_BYTES))


@cache
def _find(symbol: str, kinds: str, result: str) -> Callable[..., Any]:
    try:
        function = getattr(_load(), symbol)
    except (OSError, AttributeError) as error:
        raise MissingDependencyError(
            f"the C kernel {symbol} is not in this installation ({error}): install a C compiler and dhlab again, or in "
            "a checkout run: python binder/build_kernels.py"
        ) from error
    function.argtypes = [KINDS[kind] for kind in kinds]
    function.restype = KINDS[result] if result else None
    return function


@cache
def _load() -> ctypes.CDLL:
    return ctypes.CDLL(str(LIBRARY))
