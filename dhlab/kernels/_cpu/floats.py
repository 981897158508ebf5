"""The numbers by which C knows the float types, see ``floats.h``."""

from __future__ import annotations

import torch

__all__ = ["FLOATS"]

FLOATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
