"""Operations on tensors: a PyTorch reference, which is the specification, and a Triton twin where fusing pays."""

from __future__ import annotations

from dhlab.kernels.attention import GatedAttention, attention_pool, attention_pool_reference
from dhlab.kernels.augment import augment, augment_reference
from dhlab.kernels.blend import blend_windows, blend_windows_reference
from dhlab.kernels.density import StainMap
from dhlab.kernels.filters import filter_bank, filter_bank_reference, filter_names, filter_reach
from dhlab.kernels.losses import LossTerms, dice_ce_loss, focal_tversky_loss, loss_reference
from dhlab.kernels.normalize import normalize, normalize_reference
from dhlab.kernels.objects import Objects, connected_components, measure_objects, measure_objects_reference
from dhlab.kernels.plan import Plan
from dhlab.kernels.stain import (
    ColourStatistics,
    Stains,
    combine_stains,
    combine_stains_reference,
    macenko_fit,
    macenko_fit_reference,
    normalize_stain,
    normalize_stain_reference,
    reinhard_fit,
    reinhard_fit_reference,
    separate_stains,
    separate_stains_reference,
    vahadane_fit,
    vahadane_fit_reference,
)

__all__ = [
    "ColourStatistics",
    "GatedAttention",
    "LossTerms",
    "Objects",
    "Plan",
    "StainMap",
    "Stains",
    "attention_pool",
    "attention_pool_reference",
    "augment",
    "augment_reference",
    "blend_windows",
    "blend_windows_reference",
    "combine_stains",
    "combine_stains_reference",
    "connected_components",
    "dice_ce_loss",
    "filter_bank",
    "filter_bank_reference",
    "filter_names",
    "filter_reach",
    "focal_tversky_loss",
    "loss_reference",
    "macenko_fit",
    "macenko_fit_reference",
    "measure_objects",
    "measure_objects_reference",
    "normalize",
    "normalize_reference",
    "normalize_stain",
    "normalize_stain_reference",
    "reinhard_fit",
    "reinhard_fit_reference",
    "separate_stains",
    "separate_stains_reference",
    "vahadane_fit",
    "vahadane_fit_reference",
]
