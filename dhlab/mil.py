"""Multiple-instance learning: slides as bags of embedded windows, and what a model attends to on the slide."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dhlab.atomic import atomic_write_bytes
from dhlab.errors import BadFileError, BadShapeError, BadValueError, DHLabError, NotFoundError
from dhlab.grid import TileGrid
from dhlab.inference import arrange_axes, lend_model, spacing_for
from dhlab.networks import AttentionMIL
from dhlab.progress import progress_bar
from dhlab.scan import Parent, Scan
from dhlab.tiles import Tiles
from dhlab.timeline import stage

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from dhlab.models import Model

__all__ = ["Bag", "attention", "embed"]

FORMAT_VERSION = 1
SUFFIX = ".safetensors"
FIELDS = ("tile", "stride", "spacing", "scale", "extent")
# Pixels that pass through the encoder at once, where batch_size is not given.
BATCH_PIXELS = {"cpu": 1 << 20, "cuda": 1 << 22}


@dataclass(frozen=True, eq=False)
class Bag:
    """A scan as embedded windows: what an encoder says of each, and where each lies.

    Parameters
    ----------
    features
        ``(N, C)`` float32, a row per window that the grid visits.
    grid
        Where the windows lie.
    axes
        Window axes of the scan, such as ``"yx"``.
    parent
        The scan that was embedded.
    encoder
        Name of the model that embedded it.
    digest
        SHA-256 of that model's weights, hexadecimal.
    name
        Short name for people.

    Raises
    ------
    BadShapeError
        If `features` are not ``(N, C)`` float32 with a row per window, at least one.
    BadValueError
        If a feature is not finite.
    """

    features: NDArray[np.float32]
    grid: TileGrid
    axes: str
    parent: Parent
    encoder: str
    digest: str
    name: str

    def __post_init__(self) -> None:
        features = self.features
        if features.ndim != 2 or 0 in features.shape or features.dtype != np.float32:
            raise BadShapeError(
                f"features of {self.name!r} are {features.shape} {features.dtype}; expected (N, C) float32."
            )
        if len(features) != len(self.grid):
            raise BadShapeError(
                f"bag {self.name!r} has {len(features)} rows for {len(self.grid)} windows; expected one each."
            )
        if not np.isfinite(features).all():
            raise BadValueError(f"features of {self.name!r} are not all finite: encoder or scan are damaged.")

    def __len__(self) -> int:
        return len(self.features)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the bag as one ``.safetensors`` file, whole or not at all; `load` reads it.

        Parameters
        ----------
        path
            A name that ends in ``.safetensors``; what is there is replaced.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        BadValueError
            If the name ends otherwise.
        StorageError
            If it cannot be written.
        """
        from safetensors.numpy import save

        location = Path(path).expanduser()
        if location.suffix != SUFFIX:
            raise BadValueError(f"bag to {location.name!r}; expected a name ending in {SUFFIX}.")
        facts = {
            "format_version": FORMAT_VERSION,
            "grid": {name: getattr(self.grid, name) for name in FIELDS},
            "parent": asdict(self.parent),
            **{name: getattr(self, name) for name in ("axes", "encoder", "digest", "name")},
        }
        tensors: dict[str, NDArray[Any]] = {
            "features": np.ascontiguousarray(self.features),
            "windows": self.grid.indices,
        }
        atomic_write_bytes(location, save(tensors, {"bag": json.dumps(facts)}))
        return location

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bag:
        """Read a bag that `save` wrote; nothing in the file is run.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        Bag
            The bag.

        Raises
        ------
        NotFoundError
            If there is no such file.
        BadFileError
            If it is damaged, no bag, or of a newer format.
        """
        from safetensors import SafetensorError, safe_open

        location = Path(path).expanduser()
        if not location.is_file():
            raise NotFoundError(f"no bag at {location}; expected a file that Bag.save wrote.")
        try:
            with safe_open(location, "numpy") as file:
                facts = json.loads((file.metadata() or {})["bag"])
                tensors = {name: file.get_tensor(name) for name in ("features", "windows")}
            if facts["format_version"] > FORMAT_VERSION:
                raise BadFileError(
                    f"bag {location.name} has format {facts['format_version']}; this dhlab reads up to "
                    f"{FORMAT_VERSION}. Upgrade dhlab."
                )
            texts = {name: str(facts[name]) for name in ("axes", "encoder", "digest", "name")}
            grid = _read_grid(facts["grid"], tensors["windows"])
            return cls(tensors["features"], grid, parent=_read_parent(facts["parent"]), **texts)
        except BadFileError:
            raise
        except (SafetensorError, DHLabError, KeyError, TypeError, ValueError) as error:
            raise BadFileError(f"{location} is no bag, or a damaged one: {error}") from error

    def __repr__(self) -> str:
        count, features = self.features.shape
        return f"Bag {self.name!r}: {count} instances of {features} features from {self.encoder} ({self.digest[:12]})"

    def _repr_html_(self) -> str:
        from html import escape

        tile, spacing = " × ".join(map(str, self.grid.tile)), " × ".join(f"{s:g}" for s in self.grid.spacing)
        rows = {
            "instances": f"{len(self):,} of {' × '.join(map(str, self.grid.shape))} windows",
            "features": str(self.features.shape[1]),
            "window": f"{tile} px at {spacing} {self.parent.unit}/px",
            "scan": self.parent.name,
            "encoder": f"{self.encoder}, weights {self.digest[:12]}",
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{escape(text)}</td></tr>"
            for name, text in rows.items()
        )
        return f"<div><b>{escape(self.name)}</b> · bag<table>{cells}</table></div>"


def embed(
    model: Model,
    scan: Scan,
    *,
    within: Scan | None = None,
    overlap: float = 0.0,
    batch_size: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Bag:
    """Let a model describe every window of a scan by its features, for multiple-instance learning.

    Parameters
    ----------
    model
        Its card says window size and spacing; its head is not used.
    scan
        Slide, picture, volume or signal with the card's axes.
    within
        Mask scan, such as tissue; only windows that see it become instances.
    overlap
        Share of a window that its neighbour also sees, from 0 up to but excluding 1.
    batch_size
        Windows per batch; None chooses by window size and device.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``; None is a GPU if there is one.
    progress
        Show a progress bar.

    Returns
    -------
    Bag
        A row of features per window.

    Raises
    ------
    BadShapeError
        If axes, channels or type of the scan do not fit the card.
    BadValueError
        If units differ, no window sees the mask, the features are not finite, or the model is an ONNX graph.
    """
    card = model.card
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if batch_size is not None and batch_size < 1:
        raise BadValueError(f"batch_size {batch_size}; expected at least 1.")
    grid = _cover(model, scan, overlap, within)
    if len(grid) == 0:
        raise BadValueError(
            f"no window of {scan.name!r} sees the mask {within.name if within else ''!r}: nothing to embed."
        )
    pixels = BATCH_PIXELS["cuda" if where.type == "cuda" else "cpu"]
    size = batch_size or max(1, min(256, pixels // math.prod(card.tile)))
    batches = [np.arange(first, min(first + size, len(grid))) for first in range(0, len(grid), size)]
    tiles, rows = Tiles(scan, grid), []
    with (
        stage("data", verb="embed", model=card.name, scan=scan.name) as facts,
        progress_bar(len(grid), "embed", shown=progress, unit="tile") as bar,
        lend_model(model, where),
        ThreadPoolExecutor(1, "dhlab-embed") as reader,
        torch.inference_mode(),
    ):
        ahead = reader.submit(tiles.read, batches[0])
        for following in [*batches[1:], None]:
            windows = ahead.result()
            if following is not None:
                ahead = reader.submit(tiles.read, following)
            batch = arrange_axes(torch.from_numpy(windows).to(where), scan.axes, card.axes)
            rows.append(model.features(batch).float().cpu().numpy())
            bar.update(len(windows))
        facts["tiles"] = len(grid)
    return Bag(
        features=np.concatenate(rows),
        grid=grid,
        axes=scan.window_axes,
        parent=scan.as_parent(),
        encoder=card.name,
        digest=model.digest(),
        name=scan.name,
    )


def attention(model: Model, bag: Bag) -> Scan:
    """Show which windows a multiple-instance model's answer rests on.

    Parameters
    ----------
    model
        An ``"attention-mil"`` for bags of as many features.
    bag
        The bag that it judges.

    Returns
    -------
    Scan
        Heat map in the frame of the slide, channel ``attention``, uint8, a pixel per window: 255 where the attention
        is highest, 0 where there is no window. ``meta["highest_attention"]`` says what 255 stands for; all windows
        of a bag share 1.

    Raises
    ------
    BadShapeError
        If the bag has another number of features.
    BadValueError
        If the model does not weigh instances.
    """
    card, net, grid = model.card, model.net, bag.grid
    if not isinstance(net, AttentionMIL):
        raise BadValueError(f"{card.name!r} ({card.architecture}) weighs no instances; expected an 'attention-mil'.")
    with lend_model(model, next(net.parameters()).device), torch.inference_mode():
        instances = torch.from_numpy(bag.features).to(next(net.parameters()).device)
        weights = net.attention(model.prepare(instances[None]))[0].cpu().numpy()
    heat = np.zeros(grid.shape, np.uint8)
    heat.flat[grid.indices] = np.rint(255 * weights / weights.max()).astype(np.uint8)
    spacing = np.asarray(grid.spacing)
    scan = Scan.from_array(
        heat[None],
        f"c{bag.axes}",
        spacing=tuple((spacing * grid.stride).tolist()),
        unit=bag.parent.unit,
        name=f"{bag.name} {card.name}",
        kind="heatmap",
        channels=("attention",),
    )
    # Windows that overlap share a pixel's place evenly, as in the heat map of a classifier.
    origin = (np.asarray(grid.tile) - np.asarray(grid.stride)) / 2 * spacing
    meta = dict(scan.meta) | {"model": card.name, "encoder": bag.encoder, "highest_attention": float(weights.max())}
    return scan.replace(origin=tuple(origin.tolist()), parent=bag.parent, meta=meta)


def _cover(model: Model, scan: Scan, overlap: float, within: Scan | None) -> TileGrid:
    spacing = spacing_for(model.card, scan)
    return TileGrid.cover(scan, model.card.tile, spacing=spacing, overlap=overlap, within=within)


def _read_grid(stored: dict[str, list[Any]], windows: NDArray[Any]) -> TileGrid:
    tile, stride, extent = (tuple(map(int, stored[name])) for name in ("tile", "stride", "extent"))
    spacing, scale = (tuple(map(float, stored[name])) for name in ("spacing", "scale"))
    if min(*tile, *stride, *extent, *spacing, *scale) <= 0:
        raise ValueError(f"grid {stored}; expected positive numbers")
    grid = TileGrid(tile, stride, spacing, scale=scale, extent=extent, keep=windows)
    rising = windows.ndim == 1 and windows.dtype == np.int64 and not np.any(np.diff(windows) <= 0)
    if not rising or windows.min() < 0 or windows.max() >= math.prod(grid.shape):
        raise ValueError(f"windows {windows}; expected rising indices below {math.prod(grid.shape)}")
    return grid


def _read_parent(stored: dict[str, Any]) -> Parent:
    spacing, shape = tuple(map(float, stored["spacing"])), tuple(map(int, stored["shape"]))
    return Parent(name=str(stored["name"]), spacing=spacing, shape=shape, unit=str(stored["unit"]))
