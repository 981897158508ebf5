"""NIfTI volumes, turned so that x grows to the patient's left, y to the back and z to the head, as in axial DICOM."""

from __future__ import annotations

import math
import threading
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.errors import BadFileError, BadValueError, MissingDependencyError
from dhlab.io.pool import Stamp
from dhlab.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["NiftiLevel", "read"]

MILLIMETRES = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
FAULTS = (OSError, ValueError, EOFError, zlib.error)


class NiftiLevel:
    """The voxels of one file: mapped where they lie plain, decompressed once when first read; pickles by path.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stamp = Stamp.of(path)
        image = _load(path)
        header, stored = image.header, image.get_data_dtype()
        if stored.names is not None or np.issubdtype(stored, np.complexfloating):
            raise BadFileError(
                f"{path} holds {stored} voxels; dhlab reads real numbers. Convert it to one channel each."
            )
        if not 3 <= len(image.shape) <= 4 or min(image.shape) < 1:
            raise BadFileError(f"{path} has shape {image.shape}; expected three axes, or four with one of time.")
        self.scaled = (float(image.dataobj.slope), float(image.dataobj.inter))
        plain = self.scaled == (1.0, 0.0) and stored.itemsize <= 4
        self.dtype = np.dtype(stored.newbyteorder("=") if plain else np.float32)
        self.shape: tuple[int, ...]
        self.turn, self.affine = _orient(image)
        along = sorted(range(3), key=lambda axis: int(self.turn[axis, 0]))
        # After turning the axes are x, y, z and time; a scan has them the other way round.
        self.shape = (*image.shape[3:], *(image.shape[axis] for axis in reversed(along)))
        self.unit, self.time_unit = header.get_xyzt_units()
        zooms = header.get_zooms()
        self.time_step = float(zooms[3]) if len(zooms) > 3 else None
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._stored: NDArray[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_stored")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._reset()

    def __repr__(self) -> str:
        return f"NiftiLevel of {str(self.path)!r}: {self.shape} {self.dtype}"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype)

    def __getitem__(self, key: Any, /) -> NDArray[Any]:
        part = np.asarray(self._turned()[key])
        slope, offset = self.scaled
        if self.scaled == (1.0, 0.0):
            return np.ascontiguousarray(part, self.dtype)
        return np.asarray(part * slope + offset, self.dtype)

    def _turned(self) -> NDArray[Any]:
        """Return the stored values as a view with the axes of the scan."""
        import nibabel

        apply_orientation: Any = nibabel.orientations.apply_orientation
        with self._lock:
            if self._stored is None:
                self.stamp.check(self.path)
                try:
                    self._stored = apply_orientation(_load(self.path).dataobj.get_unscaled(), self.turn).T
                except FAULTS as error:
                    raise BadFileError(
                        f"{self.path} is damaged or truncated: {error}. Copy it again from its source."
                    ) from error
            return self._stored


def read(path: Path, *, spacing: float | Sequence[float] | None, icc: bool, series: int) -> Scan:
    """Open a NIfTI file as a scan of one level.

    Parameters
    ----------
    path
        ``.nii`` or ``.nii.gz``.
    spacing
        Voxel size in mm, one number or (z, y, x); it wins over the header.
    icc
        Without meaning for volumes.
    series
        Without meaning: a file holds one image.

    Returns
    -------
    Scan
        ``zyx``, or ``czyx`` where the file has time points, in the stored type, float32 if the header scales it.
        Axes are swapped and mirrored to the nearest of left, posterior, superior; the exact affine from (x, y, z)
        voxels of the scan to the header's right, anterior, superior mm stands in ``meta["affine"]``. Texts of the
        header are not copied.

    Raises
    ------
    MissingDependencyError
        If nibabel is not installed.
    BadFileError
        If the file is no NIfTI, is damaged, or holds colours or complex numbers.
    BadValueError
        If the spacing is not positive and finite.
    """
    level = NiftiLevel(path)
    import nibabel

    factor = MILLIMETRES.get(level.unit, 1.0)
    size, source = _spacing(level, factor, spacing)
    known = source != "unknown"
    corner = level.affine[:3, 3] * factor * (-1, -1, 1) - np.asarray(size[::-1]) / 2
    return Scan(
        levels=(level,),
        axes="zyx" if len(level.shape) == 3 else "czyx",
        spacing=size,
        unit="mm" if known else "px",
        origin=tuple(corner[::-1].tolist()) if known else (),
        channels=tuple(map(str, range(level.shape[0]))) if len(level.shape) == 4 else (),
        name=path.name,
        meta={
            "reader": "nibabel",
            "reader_version": nibabel.__version__,
            "path": str(path),
            "vendor": "nifti",
            "spacing_source": source,
            "levels_native": [0],
            "orientation": "LPS",
            "affine": level.affine.tolist(),
            "time_step": level.time_step,
            "time_unit": level.time_unit,
        },
    )


def _load(path: Path) -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise MissingDependencyError(
            f"{path.name} needs nibabel, which is not installed: pip install 'dhlab[nifti]'."
        ) from error
    try:
        image = nibabel.load(path)
    except (*FAULTS, nibabel.filebasedimages.ImageFileError) as error:
        raise BadFileError(f"{path} is no NIfTI file, or a damaged one: {error}. Copy it again.") from error
    if not isinstance(image, nibabel.Nifti1Image):
        raise BadFileError(f"{path} is a {type(image).__name__}; expected a NIfTI file.")
    return image


def _orient(image: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how to turn the stored axes to x left, y posterior, z superior, and the affine after it."""
    import nibabel

    orientations: Any = nibabel.orientations
    affine = np.asarray(image.affine, float)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        # A header without a usable affine says nothing of orientation: the axes stay as they are.
        affine = np.diag((-1.0, -1.0, 1.0, 1.0))
    now = orientations.io_orientation(affine)
    turn = orientations.ornt_transform(now, orientations.axcodes2ornt(("L", "P", "S")))
    return turn, affine @ orientations.inv_ornt_aff(turn, image.shape[:3])


def _spacing(
    level: NiftiLevel, factor: float, override: float | Sequence[float] | None
) -> tuple[tuple[float, ...], str]:
    if override is not None:
        values = np.asarray(override, float)
        if values.size not in (1, 3) or not (np.isfinite(values) & (values > 0)).all():
            raise BadValueError(f"spacing {override}; expected positive, finite mm per voxel, one number or (z, y, x).")
        return tuple(np.broadcast_to(values.ravel(), (3,)).tolist()), "override"
    sizes = tuple((np.linalg.norm(level.affine[:3, :3], axis=0) * factor)[::-1].tolist())
    if all(math.isfinite(s) and s > 0 for s in sizes):
        return sizes, "NIfTI header" if level.unit != "unknown" else "NIfTI header, unit not stated"
    return (1.0, 1.0, 1.0), "unknown"
