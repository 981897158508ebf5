"""Fused operations on tensors: each has a PyTorch reference, which is its specification, and a Triton twin."""

from __future__ import annotations

from dhlab.kernels.normalize import normalize, normalize_reference

__all__ = ["normalize", "normalize_reference"]
