"""Operations on tensors: a PyTorch reference, which is the specification, and a Triton twin where fusing pays."""

from __future__ import annotations

from dhlab.kernels.normalize import normalize, normalize_reference

__all__ = ["normalize", "normalize_reference"]
