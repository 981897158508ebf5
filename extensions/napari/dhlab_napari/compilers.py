"""Two copies of LLVM in one process: Triton's own, and the one that Mesa draws with where there is no GPU."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec

__all__ = ["load_triton"]


def load_triton() -> None:
    """Load Triton, if it is installed, so that it keeps to its own LLVM.

    Loaded as usual after Mesa's software renderer, which a remote desktop has, it takes functions of that one and ends
    the process.
    """
    if sys.platform != "linux" or "triton" in sys.modules or find_spec("triton") is None:
        return
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
    try:
        import_module("triton")
    except ImportError:
        return  # whoever needs it is told so by the kernels
    finally:
        sys.setdlopenflags(flags)
