"""Operations on tensors: a PyTorch reference, which is the specification, and a Triton twin where fusing pays."""

from __future__ import annotations

from dhlab.kernels.attention import GatedAttention, attention_pool, attention_pool_reference
from dhlab.kernels.augment import augment, augment_reference
from dhlab.kernels.filters import filter_bank, filter_bank_reference, filter_names
from dhlab.kernels.normalize import normalize, normalize_reference
from dhlab.kernels.plan import Plan

__all__ = [
    "GatedAttention",
    "Plan",
    "attention_pool",
    "attention_pool_reference",
    "augment",
    "augment_reference",
    "filter_bank",
    "filter_bank_reference",
    "filter_names",
    "normalize",
    "normalize_reference",
]
