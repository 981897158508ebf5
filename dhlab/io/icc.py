"""Colour profiles: from what the scanner saw to sRGB, once, while reading."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import BadFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import ImageCms

__all__ = ["apply_profile", "check_profile", "state_of"]


def state_of(profile: bytes | None, *, applied: bool) -> str:
    """Return what a scan's ``meta["icc"]`` says: ``"none"``, ``"embedded, not applied"`` or ``"applied: sRGB"``."""
    if not profile:
        return "none"
    return "applied: sRGB" if applied else "embedded, not applied"


def check_profile(profile: bytes) -> None:
    """Raise a BadFileError if a profile cannot be used, before anything is read."""
    _transform(profile)


def apply_profile(pixels: NDArray[Any], profile: bytes) -> None:
    """Convert pixels to sRGB in place, by the profile's own rendering intent.

    Parameters
    ----------
    pixels
        ``(height, width, 3)`` uint8 in the colours of `profile`.
    profile
        An ICC profile for RGB.

    Raises
    ------
    BadFileError
        If the profile cannot be read or is not for RGB.
    """
    from PIL import Image, ImageCms

    converted = ImageCms.applyTransform(Image.fromarray(np.ascontiguousarray(pixels)), _transform(profile))
    assert converted is not None
    pixels[...] = np.asarray(converted)


@lru_cache(maxsize=16)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform:
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(source))
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "RGB", "RGB", intent)
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError) as error:
        raise BadFileError(
            f"the embedded colour profile cannot be used ({error}); expected an ICC profile for RGB. "
            "Open the scan with icc=False."
        ) from error
