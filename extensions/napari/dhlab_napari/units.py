"""Units under the names that dhlab and napari give them."""

from __future__ import annotations

__all__ = ["long_unit", "short_unit"]

SHORT = {"micrometer": "µm", "millimeter": "mm", "nanometer": "nm", "centimeter": "cm", "meter": "m", "second": "s"}


def long_unit(unit: str) -> str:
    """Return a unit of a scan as napari knows it."""
    return "pixel" if unit == "px" else unit


def short_unit(unit: object) -> str:
    """Return a unit of a napari layer as a scan knows it; ``"px"`` for any other."""
    return SHORT.get(str(unit), "px")
