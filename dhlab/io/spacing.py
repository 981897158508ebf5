"""One place that decides the pixel size of a slide: override > vendor > TIFF tags > magnification."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dhlab.errors import BadValueError, DHLabWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Spacing", "resolve_spacing"]

Pair = tuple[float, float]


@dataclass(frozen=True)
class Spacing:
    """Pixel size along y and x with its unit (``"µm"`` or ``"px"``) and where it comes from."""

    value: Pair
    unit: str
    source: str


def resolve_spacing(
    *,
    override: float | Sequence[float] | None = None,
    vendor: Pair | None = None,
    tags: Pair | None = None,
    magnification: float | None = None,
) -> Spacing:
    """Choose the pixel size from the best source that is there; never reject a scan for lack of one.

    Parameters
    ----------
    override
        What the user said, in µm; one number or (y, x).
    vendor
        What the scanner's own metadata say, (y, x) in µm.
    tags
        What TIFF resolution tags say, (y, x) in µm; 72 or 96 dpi and other placeholders do not count.
    magnification
        Objective power; taken as 10 / magnification µm and flagged as a guess.

    Returns
    -------
    Spacing
        Value, unit and source; ``1 px`` with source ``"unknown"`` if there is nothing.

    Raises
    ------
    BadValueError
        If the override is not positive and finite.
    """
    if override is not None:
        values = np.broadcast_to(np.asarray(override, float), (2,))
        if not np.all(np.isfinite(values) & (values > 0)):
            raise BadValueError(f"spacing {override}; expected positive, finite µm per pixel, one number or (y, x).")
        return Spacing((float(values[0]), float(values[1])), "µm", "override")
    for source, pair in (("vendor metadata", vendor), ("TIFF resolution tags", tags)):
        if pair is not None and all(math.isfinite(v) and 0.01 <= v <= 200 for v in pair):
            return Spacing((float(pair[0]), float(pair[1])), "µm", source)
    if magnification and math.isfinite(magnification) and magnification > 0:
        guess = 10 / magnification
        warnings.warn(
            f"no pixel size in the file; took {guess:g} µm from its {magnification:g}× objective. "
            "Give the right one with open(path, spacing=…).",
            DHLabWarning,
            stacklevel=2,
        )
        return Spacing((guess, guess), "µm", "magnification (approximate)")
    return Spacing((1.0, 1.0), "px", "unknown")
