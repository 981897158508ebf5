"""The Triton forms of the kernels; nothing else imports Triton."""

from __future__ import annotations

import triton

__all__ = ["INTERPRETED"]

INTERPRETED = bool(triton.knobs.runtime.interpret)
