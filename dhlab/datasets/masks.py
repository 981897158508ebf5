"""Mask files to class indices: every value in a mask has a name, or is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.datasets.files import read_each
from dhlab.datasets.pictures import decode, decode_indices, resize
from dhlab.errors import BadShapeError, BadValueError
from dhlab.tasks import IGNORE

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MaskFiles", "MaskValues", "Value"]

# A grey value, a colour, or "rest": every value that has no other name.
Value = int | Sequence[int] | str
REST = "rest"
UNKNOWN = -2
SHOWN = 6


@dataclass(frozen=True)
class MaskValues:
    """What the values of a mask stand for.

    Parameters
    ----------
    named
        Class names in the order of their indices, with a grey value, a colour ``(red, green, blue)``, or ``"rest"``
        for every value that has no other name (as in maps that number instances).
    ignore
        Values that do not count: their pixels become -1.
    tolerance
        How far, in grey levels per channel, a value may lie from a named one; the nearest counts. For masks that
        were stored as JPEG.
    """

    named: Mapping[str, Value]
    ignore: tuple[int | Sequence[int], ...] = ()
    tolerance: int = 0

    def __post_init__(self) -> None:
        if not self.named or len(self.named) > np.iinfo(np.int16).max:
            raise BadValueError(f"{len(self.named)} mask values; expected a name and a value for at least one class.")
        for name, value in self.named.items():
            if isinstance(value, str) and value != REST:
                raise BadValueError(f"mask value {value!r} of {name!r}; expected a grey value, (r, g, b) or 'rest'.")
        if list(self.named.values()).count(REST) > 1:
            raise BadValueError("two classes are 'rest'; expected at most one.")
        if self.tolerance < 0:
            raise BadValueError(f"tolerance {self.tolerance}; expected grey levels, 0 or more.")
        if len({len(value) for value, _ in self._entries}) > 1:
            raise BadValueError(f"mask values {dict(self.named)} mix grey values and colours; expected one kind.")
        values = [value for value, _ in self._entries]
        if len(set(values)) != len(values):
            raise BadValueError(f"mask values {dict(self.named)}, ignore {self.ignore}: one value has two meanings.")

    @property
    def coloured(self) -> bool:
        """Whether values are colours."""
        return any(len(value) == 3 for value, _ in self._entries)

    @property
    def rest(self) -> int:
        """Index of the class of values without a name, else -2."""
        return next((i for i, value in enumerate(self.named.values()) if value == REST), UNKNOWN)

    @cached_property
    def _entries(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """Values as tuples of channels, each with its index."""
        listed: list[tuple[Any, int]] = [(v, i) for i, v in enumerate(self.named.values()) if v != REST]
        listed += [(value, IGNORE) for value in self.ignore]
        entries = []
        for value, index in listed:
            channels = (value,) if isinstance(value, int | np.integer) else tuple(value)
            top = 65535 if len(channels) == 1 else 255
            if len(channels) not in (1, 3) or not all(0 <= int(c) <= top for c in channels):
                raise BadValueError(f"mask value {value!r}; expected a grey value from 0, (r, g, b) to 255, or 'rest'.")
            entries.append((tuple(int(c) for c in channels), index))
        return tuple(entries)

    def to_indices(self, pixels: NDArray[Any], path: str) -> NDArray[np.int16]:
        """Return class indices of a mask.

        Parameters
        ----------
        pixels
            Mask as stored, ``(*space)`` or ``(*space, channels)`` integers.
        path
            Its file, for messages.

        Returns
        -------
        ndarray
            ``(*space)`` int16, -1 where ignored.

        Raises
        ------
        BadValueError
            If a value has no name; the message names file, values and counts.
        """
        if not np.issubdtype(pixels.dtype, np.unsignedinteger) and pixels.dtype != bool:
            whole = np.issubdtype(pixels.dtype, np.integer) or bool((pixels == np.rint(pixels)).all())
            if not whole or pixels.min() < 0 or pixels.max() > 65535:
                raise BadValueError(
                    f"mask {path} holds {pixels.dtype} values from {pixels.min()} to {pixels.max()}; expected whole "
                    "numbers from 0 to 65535."
                )
            pixels = pixels.astype(np.uint16)
        if self.coloured:
            indices = self._from_colours(pixels[..., :3] if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2))
        else:
            table = self._table[: 1 << (8 * pixels.dtype.itemsize)]
            indices = table[pixels.astype(np.uint8) if pixels.dtype == bool else pixels]
        if indices.size and indices.min() == UNKNOWN:
            raise BadValueError(self._complaint(pixels, indices == UNKNOWN, path))
        return indices

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        """Class index of every grey value, ``(65536,)``."""
        table = np.full(1 << 16, self.rest, np.int16)
        closest = np.full(1 << 16, self.tolerance + 1)
        grey = np.arange(1 << 16)
        for (value, *_), index in self._entries:
            distance = np.abs(grey - value)
            nearer = distance < closest
            table[nearer], closest[nearer] = index, distance[nearer]
        return table

    def _from_colours(self, pixels: NDArray[Any]) -> NDArray[np.int16]:
        codes = _pack(pixels)
        named = _pack(np.array([value for value, _ in self._entries], np.uint32))
        order = np.argsort(named)
        numbers = np.array([index for _, index in self._entries], np.int16)[order]
        known = named[order]
        place = np.searchsorted(known, codes).clip(max=len(known) - 1)
        exact = known[place] == codes
        indices: NDArray[np.int16] = np.where(exact, numbers[place], np.int16(self.rest))
        if self.tolerance and not exact.all():
            strays = pixels[~exact].astype(np.int32)
            values = np.array([value for value, _ in self._entries], np.int32)
            distance = np.abs(strays[:, None] - values).max(2)
            near = distance.min(1) <= self.tolerance
            found = np.array([index for _, index in self._entries], np.int16)[distance.argmin(1)]
            indices[~exact] = np.where(near, found, np.int16(self.rest))
        return indices

    def _complaint(self, pixels: NDArray[Any], unknown: NDArray[np.bool_], path: str) -> str:
        values, counts = np.unique(pixels[unknown].reshape(int(unknown.sum()), -1), axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:SHOWN]
        told = ", ".join(f"{_text(values[i])} ({counts[i]:,} px)" for i in order)
        more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
        known = ", ".join(f"{name} {value}" for name, value in self.named.items())
        hint = " JPEG changes values: give tolerance=…." if path.lower().endswith((".jpg", ".jpeg")) else ""
        return (
            f"mask {path} holds values without a name: {told}{more}. Known: {known}. "
            f"Name them in values=…, list them in ignore=…, or call one class 'rest'.{hint}"
        )


@dataclass(frozen=True, eq=False)
class MaskFiles:
    """Masks, one file per sample.

    Parameters
    ----------
    paths
        The file of each sample; None where nothing is labelled.
    values
        What values stand for.
    size
        Height and width in pixels that each mask is resized to, by the nearest pixel; None leaves them.
    """

    paths: tuple[str | None, ...]
    values: MaskValues
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: NDArray[np.int64], space: tuple[int, ...]) -> NDArray[np.int64]:
        """Return masks of class indices ``(B, *space)``, -1 where unlabelled.

        Parameters
        ----------
        indices
            Indices of samples, ``(B,)``.
        space
            Shape of a window without its channels.
        """
        out = np.empty((len(indices), *space), np.int64)
        read_each(self._read, indices, out)
        return out

    def _read(self, index: int, out: NDArray[np.int64]) -> None:
        path = self.paths[index]
        if path is None:
            out[...] = IGNORE
            return
        pixels, axes = decode(path)
        if "c" in axes and not self.values.coloured:
            pixels, axes = self._grey(path, pixels), axes.replace("c", "")
        mask = self.values.to_indices(pixels, path)
        if self.size is not None:
            mask = resize(mask, axes.replace("c", ""), self.size, nearest=True)
        if mask.shape != out.shape:
            raise BadShapeError(
                f"mask {path} of sample {index} is {' × '.join(map(str, mask.shape))} px, its picture "
                f"{' × '.join(map(str, out.shape))} px; expected the same. Look for a mask of another picture."
            )
        out[...] = mask

    def _grey(self, path: str, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return the grey values of a mask that is stored in colour: its palette's indices, or equal channels."""
        indices = decode_indices(path) if path.lower().endswith((".png", ".gif", ".bmp")) else None
        if indices is not None:
            return indices
        if (pixels[..., :3] != pixels[..., :1]).any():
            colours = np.unique(_pack(pixels[..., :3]))
            raise BadValueError(
                f"mask {path} is in colour ({len(colours)} colours), but values are grey: "
                f"{dict(self.values.named)}. Give each class its colour, as in values={{'name': (255, 0, 0)}}."
            )
        return np.ascontiguousarray(pixels[..., 0])


def _pack(pixels: NDArray[Any]) -> NDArray[np.uint32]:
    red, green, blue = (pixels[..., i].astype(np.uint32) for i in range(3))
    return red * np.uint32(65536) + green * np.uint32(256) + blue


def _text(value: NDArray[Any]) -> str:
    return str(int(value[0])) if len(value) == 1 else str(tuple(value.tolist()))
