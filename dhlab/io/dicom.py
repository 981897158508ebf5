"""Single DICOM pictures (CT, MR, radiographs): values in their clinical unit, spacing, nothing about the patient."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import BadFileError, BadValueError, DHLabError, MissingDependencyError
from dhlab.io.pool import Stamp
from dhlab.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["DicomLevel", "read"]

# VL Whole Slide Microscopy Image Storage: a slide, which OpenSlide reads.
SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
# What may be kept of a header: physics, never persons, places, dates or identifiers.
KEPT = {
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "position": "ImagePositionPatient",
    "orientation": "ImageOrientationPatient",
    "slice_thickness": "SliceThickness",
    "window_center": "WindowCenter",
    "window_width": "WindowWidth",
    "rescale_type": "RescaleType",
    "photometric": "PhotometricInterpretation",
}


class DicomLevel:
    """The pixels of one file, decoded when first read and then kept; pickles by path.

    Stored values are turned into those that they stand for (rescale slope and intercept: Hounsfield units in CT), and
    inverted where white means low (MONOCHROME1).

    Parameters
    ----------
    path
        The file.
    header
        Its elements without pixels, from pydicom.
    """

    def __init__(self, path: Path, header: Any) -> None:
        self.path = path
        self.stamp = Stamp.of(path)
        samples = int(header.get("SamplesPerPixel", 1))
        rows, columns = int(header.get("Rows", 0)), int(header.get("Columns", 0))
        frames = int(header.get("NumberOfFrames", 1) or 1)
        photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
        if rows < 1 or columns < 1:
            raise BadFileError(f"{path} holds no picture ({header.get('Modality', 'unknown modality')}).")
        if frames > 1:
            raise BadFileError(
                f"{path} holds {frames} frames; dhlab reads single pictures and slides. Split it, or convert it to "
                "NIfTI (dcm2niix)."
            )
        if samples not in (1, 3) or photometric.startswith("PALETTE"):
            raise BadFileError(f"{path} is {photometric} with {samples} samples per pixel; expected grey or RGB.")
        self.inverted = photometric == "MONOCHROME1"
        self.slope = float(header.get("RescaleSlope", 1) or 1) if samples == 1 else 1.0
        self.intercept = float(header.get("RescaleIntercept", 0) or 0) if samples == 1 else 0.0
        bits, signed = int(header.get("BitsStored", 8)), bool(header.get("PixelRepresentation", 0))
        self.lowest, self.highest = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        self.shape: tuple[int, ...] = (rows, columns, 3) if samples == 3 else (rows, columns)
        self.dtype = np.dtype(np.uint8) if samples == 3 else self._type()
        self._reset()

    def _type(self) -> np.dtype[Any]:
        """Return the smallest type that holds every value that the stored bits can stand for."""
        if not (self.slope.is_integer() and self.intercept.is_integer()):
            return np.dtype(np.float32)
        ends = sorted(self.slope * end + self.intercept for end in (self.lowest, self.highest))
        for kind in (np.uint8, np.uint16, np.int16, np.int32):
            if np.iinfo(kind).min <= ends[0] and ends[1] <= np.iinfo(kind).max:
                return np.dtype(kind)
        return np.dtype(np.float32)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pixels: NDArray[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_pixels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._reset()

    def __repr__(self) -> str:
        return f"DicomLevel of {str(self.path)!r}: {self.shape} {self.dtype}"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype)

    def __getitem__(self, key: Any, /) -> NDArray[Any]:
        with self._lock:
            if self._pixels is None:
                self.stamp.check(self.path)
                self._pixels = self._decode()
                self._pixels.flags.writeable = False
            return self._pixels[key]

    def _decode(self) -> NDArray[Any]:
        import pydicom
        from pydicom.pixels.utils import pixel_array

        try:
            stored = pixel_array(pydicom.dcmread(self.path))
        except (OSError, ValueError, EOFError, AttributeError, NotImplementedError, RuntimeError, KeyError) as error:
            raise BadFileError(
                f"{self.path} cannot be decoded: {error}. It is damaged, or compressed in a way that needs another "
                "decoder (pip install pylibjpeg[all])."
            ) from error
        if stored.shape != self.shape:
            raise BadFileError(f"{self.path} holds pixels {stored.shape}; its header says {self.shape}.")
        if self.inverted:
            stored = self.lowest + self.highest - stored.astype(np.int32)
        if (self.slope, self.intercept) == (1.0, 0.0):
            return np.array(stored, self.dtype)
        return np.array(stored * self.slope + self.intercept, self.dtype)


def read(path: Path, *, spacing: float | Sequence[float] | None, icc: bool, series: int) -> Scan:
    """Open a DICOM file: a slide through OpenSlide, a single picture here.

    Parameters
    ----------
    path
        The file.
    spacing
        Pixel size, one number or (y, x), in mm (of a slide in µm); it wins over the header.
    icc
        Convert a slide's colours to sRGB.
    series
        Which image of a slide.

    Returns
    -------
    Scan
        ``yx`` in the smallest type for what the values stand for, ``yxc`` uint8 for colour. Position and orientation
        in the patient stand in `meta`; names, dates, places and identifiers are not copied.

    Raises
    ------
    MissingDependencyError
        If pydicom is not installed and the file is no slide.
    BadFileError
        If the file is damaged, has several frames, or holds no picture.
    BadValueError
        If the spacing is not positive and finite.
    """
    from dhlab.io import openslide

    try:
        import pydicom
    except ImportError as error:
        try:
            return openslide.read(path, spacing=spacing, icc=icc, series=series)
        except DHLabError:
            raise MissingDependencyError(
                f"{path.name} is no slide, and needs pydicom, which is not installed: pip install 'dhlab[dicom]'."
            ) from error
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except pydicom.errors.InvalidDicomError:
        raise BadFileError(f"{path} is no DICOM file: it has no header of one. Rename it after what it is.") from None
    except (OSError, ValueError, EOFError, KeyError, AttributeError) as error:
        raise BadFileError(f"{path} is a damaged DICOM file: {error}. Copy it again.") from error
    if str(header.get("SOPClassUID", "")) == SLIDE:
        return openslide.read(path, spacing=spacing, icc=icc, series=series)
    level = DicomLevel(path, header)
    size, source = _spacing(header, spacing)
    meta = {name: _plain(header.get(keyword)) for name, keyword in KEPT.items()}
    corner: tuple[float, ...] = ()
    if meta["orientation"] == list(AXIAL) and isinstance(meta["position"], list) and source != "unknown":
        x, y, _ = meta["position"]
        corner = (y - size[0] / 2, x - size[1] / 2)
    return Scan(
        levels=(level,),
        axes="yxc" if len(level.shape) == 3 else "yx",
        spacing=size,
        unit="px" if source == "unknown" else "mm",
        origin=corner,
        channels=("red", "green", "blue") if len(level.shape) == 3 else (),
        name=path.name,
        meta={
            "reader": "pydicom",
            "reader_version": pydicom.__version__,
            "path": str(path),
            "vendor": "dicom",
            "spacing_source": source,
            "levels_native": [0],
            "inverted": level.inverted,
            **{name: value for name, value in meta.items() if value is not None},
        },
    )


def _spacing(header: Any, override: float | Sequence[float] | None) -> tuple[tuple[float, float], str]:
    if override is not None:
        values = np.asarray(override, float)
        if values.size not in (1, 2) or not (np.isfinite(values) & (values > 0)).all():
            raise BadValueError(f"spacing {override}; expected positive, finite mm per pixel, one number or (y, x).")
        y, x = np.broadcast_to(values.ravel(), (2,)).tolist()
        return (y, x), "override"
    for source, keyword in (("pixel spacing", "PixelSpacing"), ("spacing at the detector", "ImagerPixelSpacing")):
        pair = _plain(header.get(keyword))
        if isinstance(pair, list) and len(pair) == 2 and all(math.isfinite(v) and v > 0 for v in pair):
            return (pair[0], pair[1]), source
    return (1.0, 1.0), "unknown"


def _plain(value: Any) -> Any:
    """Return an element's value as JSON holds it, None if it is empty or odd."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return str(value)
    try:
        return [float(v) for v in value] if hasattr(value, "__len__") else float(value)
    except (TypeError, ValueError):
        return None
