"""`predict`: a model over a whole scan, window by window, blended into a heat map that is a scan again."""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dhlab.errors import BadShapeError, BadValueError, ConflictError, DHLabWarning
from dhlab.grid import TileGrid
from dhlab.io import open as _open
from dhlab.kernels import blend_windows
from dhlab.kernels.blend import accumulate_windows, gaussian_weights, resolve_scores
from dhlab.progress import Progress, progress_bar
from dhlab.scan import Scan
from dhlab.tiles import Tiles
from dhlab.timeline import stage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from dhlab.cards import ModelCard
    from dhlab.models import Model

__all__ = ["predict"]

# Largest heat map, in bytes, that is kept in memory without `out`.
MEMORY_LIMIT = 2 << 30
# Pixels per batch where batch_size is not given.
BATCH_PIXELS = {"cpu": 1 << 20, "cuda": 1 << 22}
# Batches that may be read ahead, and bands that may wait for the disk.
READ_AHEAD, WRITE_BEHIND = 3, 2
NEXT_TO_NOTHING = 1e-6
# Raised when a change of method would make a continued run differ from one in a single go.
METHOD = 2


def predict(
    model: Model,
    scan: Scan,
    *,
    overlap: float = 0.25,
    within: Scan | None = None,
    batch_size: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    overwrite: bool = False,
    device: str | None = None,
    progress: Progress = True,
) -> Scan:
    """Run a model over a scan of any size, in bounded memory.

    Overlapping windows are blended with Gaussian weights. Reading, computing and writing overlap in time; where the
    time went stands in ``meta["stages"]`` of the result. With `out`, a killed run continues where it stopped, and
    the result is bit for bit that of an uninterrupted run with the same batch size on the same device.

    Parameters
    ----------
    model
        Its card says window size and spacing.
    scan
        Slide, picture, volume or signal with the card's axes.
    overlap
        Share of a window that its neighbour also sees, from 0 up to but excluding 1.
    within
        Mask scan; only windows that see it are computed, the rest of the heat map is 0.
    batch_size
        Windows per batch; None chooses by window size and device.
    out
        Where to write the heat map as it is made, ``….ome.zarr``; None keeps it in memory, up to 2 GiB.
    resume
        Continue a run that was killed, if it was the same; False starts over.
    overwrite
        Replace what another run left at `out`, finished or not.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``; None is a GPU if there is one.
    progress
        Show a progress bar. Or a function that is called with the number of windows that are done and of all; what it
        raises ends the run, which `out` lets continue later.

    Returns
    -------
    Scan
        Heat map, ``c`` and the window axes, uint8: 0 to 255 for a score of 0 to 1, one channel per class. A
        segmentation has the card's spacing (times its output stride); a classification has one pixel per window.

    Raises
    ------
    BadShapeError
        If axes, channels or type of the scan do not fit the card.
    BadValueError
        If units differ, the heat map is too large for memory, or the model gives scores that are not finite.
    ConflictError
        If `out` exists, or holds part of another run.
    StorageError
        If the disk is full.
    """
    card = model.card
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if batch_size is not None and batch_size < 1:
        raise BadValueError(f"batch_size {batch_size}; expected at least 1.")
    plan = _Plan.make(card, scan, overlap=overlap, within=within, batch_size=batch_size, device=where)
    with stage("deployed", verb="predict", model=card.name, scan=scan.name) as facts:
        if len(plan.grid) == 0:
            warnings.warn(
                f"no window of {scan.name!r} sees the mask {within.name if within else ''!r}: the heat map is 0.",
                DHLabWarning,
                stacklevel=2,
            )
        fields = _heatmap_fields(card, scan, plan)
        keep = {"resume": resume, "overwrite": overwrite}
        with _open_sink(model, scan, plan, out=out, keep=keep, fields=fields) as sink, lend_model(model, where):
            stages = _Run(model, Tiles(scan, plan.grid), plan, sink, where).go(shown=progress)
            heat = sink.finish()
        facts |= {"tiles": stages["tiles"], "seconds": stages["seconds"]}
    meta = dict(heat.meta) | {"model": card.name, "model_version": card.version, "stages": stages}
    if within is not None:
        meta["within"] = {"mask": within.name, "windows": len(plan.grid), "of": math.prod(plan.grid.shape)}
    return heat.replace(meta=meta, **fields)


@dataclass(frozen=True)
class _Plan:
    """The geometry of a run, in heat-map pixels; rows are window rows along the first window axis."""

    grid: TileGrid
    tile: tuple[int, ...]
    stride: tuple[int, ...]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    margin: int
    batch_size: int
    group: int  # window rows that are computed together, so that narrow scans fill a batch

    @classmethod
    def make(
        cls,
        card: ModelCard,
        scan: Scan,
        *,
        overlap: float,
        within: Scan | None,
        batch_size: int | None,
        device: torch.device,
    ) -> _Plan:
        overlap = max(overlap, 2 * card.margin / min(card.tile))
        grid = TileGrid.cover(scan, card.tile, spacing=spacing_for(card, scan), overlap=overlap)
        step = card.output_stride if card.task == "segmentation" else 1
        grid = replace(grid, stride=tuple(max(step, s // step * step) for s in grid.stride))
        spacing = np.asarray(grid.spacing)
        if card.task == "segmentation":
            tile, stride = (tuple(v // step for v in values) for values in (grid.tile, grid.stride))
            shape, origin = tuple(-(-n // step) for n in grid.extent), np.zeros(len(spacing))
            spacing = spacing * step
        else:
            tile = stride = (1,) * len(grid.tile)
            shape, origin = grid.shape, (np.asarray(grid.tile) - np.asarray(grid.stride)) / 2 * spacing
            spacing = spacing * np.asarray(grid.stride)
        pixels = BATCH_PIXELS["cuda" if device.type == "cuda" else "cpu"]
        batch = batch_size or max(1, min(1024, pixels // math.prod(card.tile)))
        group = max(1, min(grid.shape[0], batch // math.prod(grid.shape[1:])))
        grid = grid if within is None else grid.within(within)
        margin = -(-card.margin // step) if card.task == "segmentation" else 0
        return cls(grid, tile, stride, shape, tuple(spacing.tolist()), tuple(origin.tolist()), margin, batch, group)

    def weights(self, device: torch.device) -> Tensor:
        """Return how much each pixel of a window counts: in the margin only where no other window is."""
        weights = gaussian_weights(self.tile, device=device)
        for axis in range(len(self.tile)):
            for rim in (weights.narrow(axis, 0, self.margin), weights.narrow(axis, -self.margin, self.margin)):
                rim *= NEXT_TO_NOTHING
        return weights

    def steps(self, bands: list[tuple[int, int]]) -> Iterator[_Step]:
        """Yield the work for runs of heat-map rows ``[low, high)``; batches never depend on where a run begins."""
        tile, stride = self.tile[0], self.stride[0] * self.group
        per_row = math.prod(self.grid.shape[1:])
        last_row = self.grid.shape[0] - 1
        for low, high in bands:
            first = max(0, (low - tile) // self.stride[0] + 1) // self.group
            last = min(last_row, (high - 1) // self.stride[0]) // self.group
            for group in range(first, last + 1):
                limits = np.array([group, group + 1]) * self.group * per_row
                begin, end = np.searchsorted(self.grid.indices, limits).tolist()
                cuts = [*range(begin, end, self.batch_size), end]
                batches = [np.arange(a, b) for a, b in pairwise(cuts)] or [np.arange(0)]
                for number, positions in enumerate(batches):
                    closes = number == len(batches) - 1
                    until = high if group == last else (group + 1) * stride
                    yield _Step(
                        positions=positions,
                        top=group * stride,
                        opens=group == first and number == 0,
                        closes=closes,
                        low=low,
                        high=min(high, until),
                    )


@dataclass(frozen=True)
class _Step:
    """One batch, and what happens on the canvas around it."""

    positions: NDArray[np.int64]
    top: int  # heat-map row of the canvas's first row
    opens: bool  # the canvas starts afresh
    closes: bool  # rows up to `high` are final afterwards
    low: int
    high: int


class _Memory:
    """A heat map in memory: one band."""

    def __init__(self, height: int, axes: str) -> None:
        self.band_height, self.bands, self.done, self.axes = height, 1, frozenset[int](), axes
        self.array = np.zeros(0, np.uint8)

    def write_band(self, index: int, array: NDArray[np.uint8]) -> None:
        """Keep the only band."""
        self.array, self.done = array, self.done | {index}

    def finish(self) -> Scan:
        """Return the heat map as a scan with coarser levels."""
        return Scan.from_array(self.array, self.axes, kind="heatmap")


class _Store:
    """A heat map on disk: what is there of the same run already counts."""

    def __init__(
        self, path: Path, *, resume: bool, overwrite: bool, fingerprint: dict[str, Any], **fields: Any
    ) -> None:
        from dhlab.io.omezarr import BandWriter

        self.path = path
        self.writer = None
        if not (resume and path.exists() and _open(path).meta.get("fingerprint") == fingerprint):
            create = partial(BandWriter.create, path, overwrite=overwrite, fingerprint=fingerprint, **fields)
            try:
                self.writer = create(resume=resume)
            except ConflictError:
                if not (resume and overwrite):
                    raise
                self.writer = create(resume=False)
        self.band_height = self.writer.band_height if self.writer else 1
        self.bands = self.writer.bands if self.writer else 0
        self.done = self.writer.done if self.writer else frozenset[int]()

    def write_band(self, index: int, array: NDArray[np.uint8]) -> None:
        """Write one band; it is durable afterwards."""
        assert self.writer is not None
        self.writer.write_band(index, array)

    def finish(self) -> Scan:
        """Let the store appear at its path and open it."""
        if self.writer:
            self.writer.finish()
        return _open(self.path)

    def close(self) -> None:
        """Give the unfinished store free, to be continued."""
        if self.writer:
            self.writer.close()


_Sink = _Memory | _Store


class _Canvas:
    """Weighted sums of the rows that windows may still reach: for any number of axes, and any overlap."""

    def __init__(self, plan: _Plan, classes: int, device: torch.device) -> None:
        height = (plan.group - 1) * plan.stride[0] + plan.tile[0]
        across = [(n - 1) * s + t for n, s, t in zip(plan.grid.shape, plan.stride, plan.tile, strict=True)][1:]
        self.plan, self.weights = plan, plan.weights(device)
        self.sums = torch.zeros((classes + 1, height, *across), device=device)
        self.top = 0

    def open(self, top: int) -> None:
        """Start afresh at a heat-map row."""
        self.top = top
        self.sums.zero_()

    def add(self, scores: Tensor, corners: NDArray[np.int64]) -> None:
        """Add scores ``(B, C, *tile)`` of windows at corners ``(B, ndim)``."""
        places = corners - [self.top, *(0 for _ in self.plan.tile[1:])]
        accumulate_windows(self.sums, scores, corners=places.tolist(), weights=self.weights)

    def close(self, step: _Step) -> Tensor | None:
        """Return the rows that became final, ``(C, rows, *across)`` uint8, and move the others up."""
        count = self.plan.group * self.plan.stride[0]
        first, last = max(step.low - self.top, 0), step.high - self.top
        rows = None
        if last > first:
            across = tuple(slice(0, n) for n in self.plan.shape[1:])
            rows = resolve_scores(self.sums[:, first:last])[(slice(None), slice(None), *across)]
        kept = self.sums[:, count:].clone()
        self.sums[:, : kept.shape[1]] = kept
        self.sums[:, kept.shape[1] :] = 0
        self.top += count
        return rows


class _Windows:
    """Scores of the windows that rows may still need: for two axes and windows that overlap by at most half.

    More overlap would keep several times what a canvas holds.
    """

    def __init__(self, plan: _Plan, classes: int, device: torch.device) -> None:
        self.plan, self.weights = plan, plan.weights(device)
        self.none = torch.empty((0, classes, *plan.tile), device=device)
        self.kept: list[tuple[Tensor, NDArray[np.int64]]] = []
        self.top = 0

    def open(self, top: int) -> None:
        """Start afresh at a heat-map row."""
        self.top, self.kept = top, []

    def add(self, scores: Tensor, corners: NDArray[np.int64]) -> None:
        """Keep scores ``(B, C, h, w)`` of windows at corners ``(B, 2)``."""
        self.kept.append((scores, corners))

    def close(self, step: _Step) -> Tensor | None:
        """Return the rows that became final, ``(C, rows, columns)`` uint8, and forget what no row needs any more."""
        first, last = max(step.low, self.top), step.high
        rows = None
        if last > first:
            rows = blend_windows(
                [scores for scores, _ in self.kept] or self.none,
                torch.from_numpy(np.concatenate([np.empty((0, 2), np.int64), *(c for _, c in self.kept)])),
                size=(last - first, self.plan.shape[1]),
                weights=self.weights,
                result="quantised",
                first_row=first,
            )
        self.top += self.plan.group * self.plan.stride[0]
        self.kept = [kept for kept in self.kept if kept[1][:, 0].max() + self.plan.tile[0] > self.top]
        return rows


class _Run:
    """The pipeline: one thread reads ahead, this one computes and blends, one writes."""

    def __init__(self, model: Model, tiles: Tiles, plan: _Plan, sink: _Sink, device: torch.device) -> None:
        self.model, self.tiles, self.plan, self.sink, self.device = model, tiles, plan, sink, device
        self.classes = len(model.card.classes)
        self.limit = plan.batch_size
        self.seconds = dict.fromkeys(("reading", "waiting", "computing", "writing", "stalled"), 0.0)
        gathers = len(plan.tile) == 2 and all(2 * s >= t for s, t in zip(plan.stride, plan.tile, strict=True))
        self.blend = (_Windows if gathers else _Canvas)(plan, self.classes, device)
        self.band: NDArray[np.uint8] | None = None
        self.written: deque[Future[None]] = deque()

    def go(self, *, shown: Progress) -> dict[str, Any]:
        """Compute what the sink lacks and return where the time went."""
        begin = time.perf_counter()
        runs = _missing(self.sink, self.plan.shape[0])
        total = sum(len(step.positions) for step in self.plan.steps(runs))
        reader, writer = (ThreadPoolExecutor(1, f"dhlab-predict-{name}") for name in ("read", "write"))
        try:
            with progress_bar(total, "predict", shown=shown, unit="tile") as bar:
                for step, windows in self._read_ahead(self.plan.steps(runs), reader):
                    with self._timed("computing"):
                        rows = self._compute(step, windows)
                    if rows is not None:
                        self._hand_over(max(step.top, step.low), rows, writer)
                    bar.update(len(step.positions))
                while self.written:
                    self._wait_for_writer()
        finally:
            for pool in (reader, writer):
                pool.shutdown(wait=True, cancel_futures=True)
        return self._report(total, time.perf_counter() - begin)

    def _read_ahead(self, steps: Iterator[_Step], reader: ThreadPoolExecutor) -> Iterator[tuple[_Step, NDArray[Any]]]:
        """Yield each step with its windows, reading ahead into a ring of buffers."""
        scan = self.tiles.scan
        shape = (self.plan.batch_size, *scan.window_shape(self.plan.grid.tile))
        dtype = getattr(torch, scan.dtype.name)
        pinned = self.device.type == "cuda"
        buffers = [torch.empty(shape, dtype=dtype, pin_memory=pinned).numpy() for _ in range(READ_AHEAD)]
        ring = deque(buffers)
        pending: deque[tuple[_Step, NDArray[Any], Future[NDArray[Any]]]] = deque()
        while True:
            while ring and (step := next(steps, None)) is not None:
                buffer = ring.popleft()
                pending.append((step, buffer, reader.submit(self._read, step.positions, buffer)))
            if not pending:
                return
            step, buffer, future = pending.popleft()
            with self._timed("waiting"):
                windows = future.result()
            yield step, windows
            ring.append(buffer)

    def _read(self, positions: NDArray[np.int64], buffer: NDArray[Any]) -> NDArray[Any]:
        with self._timed("reading"):
            part = buffer[: len(positions)]
            return self.tiles.read(positions, part) if len(positions) else part

    @torch.inference_mode()
    def _compute(self, step: _Step, windows: NDArray[Any]) -> NDArray[np.uint8] | None:
        """Score one batch, blend it, and return the rows that became final, ``(C, rows, *across)`` uint8."""
        plan = self.plan
        if step.opens:
            self.blend.open(step.top)
        if len(step.positions):
            batch = torch.from_numpy(windows).to(self.device, non_blocking=True)
            scores = self._score(arrange_axes(batch, self.tiles.scan.axes, self.model.card.axes))
            if not math.isfinite(float(scores.sum())):
                raise BadValueError(
                    f"model {self.model.card.name!r} gives scores that are not finite, near level-0 position "
                    f"{plan.grid[int(step.positions[0])]} of {self.tiles.scan.name!r}: weights or input are damaged."
                )
            index = np.stack(np.unravel_index(plan.grid.indices[step.positions], plan.grid.shape), axis=-1)
            scores = scores.reshape(len(scores), self.classes, *plan.tile)
            self.blend.add(scores, index * np.asarray(plan.stride))
        rows = self.blend.close(step) if step.closes else None
        return None if rows is None else rows.cpu().numpy()

    def _score(self, batch: Tensor) -> Tensor:
        while True:
            try:
                parts = [self.model(part) for part in torch.split(batch, self.limit)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except torch.OutOfMemoryError as error:
                if self.limit == 1:
                    raise BadValueError(
                        f"one window of {self.model.card.tile} px does not fit on {self.device}: {error}. "
                        "Take device='cpu' or a smaller model."
                    ) from error
            self.limit = max(1, min(self.limit, len(batch)) // 2)
            warnings.warn(f"{self.device} is out of memory; going on with {self.limit} windows.", DHLabWarning, 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _hand_over(self, first: int, rows: NDArray[np.uint8], writer: ThreadPoolExecutor) -> None:
        """Put final rows into their bands and send full bands to the writer."""
        height, total = self.sink.band_height, self.plan.shape[0]
        taken = 0
        while taken < rows.shape[1]:
            index, offset = divmod(first + taken, height)
            size = min(height, total - index * height)
            if self.band is None:
                self.band = np.empty((self.classes, size, *self.plan.shape[1:]), np.uint8)
            count = min(rows.shape[1] - taken, size - offset)
            self.band[:, offset : offset + count] = rows[:, taken : taken + count]
            taken += count
            if offset + count == size:
                while self.written and (len(self.written) >= WRITE_BEHIND or self.written[0].done()):
                    self._wait_for_writer()
                self.written.append(writer.submit(self._write, index, self.band))
                self.band = None
        if self.written and self.written[0].done():
            self._wait_for_writer()

    def _write(self, index: int, band: NDArray[np.uint8]) -> None:
        with self._timed("writing"):
            self.sink.write_band(index, band)

    def _wait_for_writer(self) -> None:
        with self._timed("stalled"):
            self.written.popleft().result()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin

    def _report(self, tiles: int, seconds: float) -> dict[str, Any]:
        share = self.seconds["computing"] / seconds
        return {
            "seconds": round(seconds, 3),
            **{name: round(value, 3) for name, value in self.seconds.items()},
            "tiles": tiles,
            "tiles_per_s": round(tiles / seconds, 1),
            "device": str(self.device),
            "device_share": round(share, 3),
            "advice": _advice(self.seconds, share, tiles),
        }


def _advice(seconds: dict[str, float], share: float, tiles: int) -> str:
    if tiles == 0:
        return "There was nothing to compute."
    slowest = max(("computing", "waiting", "stalled"), key=seconds.__getitem__)
    if slowest == "computing":
        return (
            f"The network took {share:.0%} of the time: a faster device or a smaller overlap helps, faster reading not."
        )
    if slowest == "waiting":
        return "Reading was the bottleneck: copy the scan to a local disk or give more cores (DHLAB_THREADS)."
    return "Writing was the bottleneck: write to a local disk."


def spacing_for(card: ModelCard, scan: Scan) -> tuple[float, ...]:
    """Check that the scan suits the card and return the card's spacing in the scan's unit."""
    channels = int(scan.levels[0].shape[scan.axes.index("c")]) if "c" in scan.axes else 1
    if scan.window_axes != card.window_axes:
        raise BadShapeError(
            f"scan {scan.name!r} has axes {scan.axes!r}; model {card.name!r} expects {card.axes!r} "
            f"(windows along {card.window_axes!r})."
        )
    if channels != card.channels:
        raise BadShapeError(
            f"scan {scan.name!r} has {channels} channels ({', '.join(scan.channels) or 'no axis c'}); model "
            f"{card.name!r} expects {card.channels}."
        )
    if scan.dtype != np.dtype(card.dtype):
        raise BadShapeError(
            f"scan {scan.name!r} holds {scan.dtype}; model {card.name!r} expects {card.dtype}. Convert the scan to the "
            "values that the model was trained on."
        )
    if scan.unit == card.unit:
        finest = max(a / b for a, b in zip(scan.spacing, card.spacing, strict=True))
        if finest > 1.5:
            warnings.warn(
                f"{scan.name!r} has {scan.spacing[0]:g} {scan.unit}/px at best, model {card.name!r} wants "
                f"{card.spacing[0]:g}: windows are enlarged {finest:.2g}-fold and scores may mean little.",
                DHLabWarning,
                stacklevel=4,
            )
        return card.spacing
    if scan.unit == "px":
        warnings.warn(
            f"{scan.name!r} states no pixel size: level 0 is taken as the {card.spacing[0]:g} {card.unit}/px of model "
            f"{card.name!r}. Give the right one with open(path, spacing=…).",
            DHLabWarning,
            stacklevel=4,
        )
        return scan.spacing
    if card.unit == "px":
        return tuple(a * b for a, b in zip(card.spacing, scan.spacing, strict=True))
    raise BadValueError(
        f"scan {scan.name!r} is measured in {scan.unit}, model {card.name!r} in {card.unit}; expected the same unit. "
        "Convert with scan.replace(spacing=…, unit=…)."
    )


def _heatmap_fields(card: ModelCard, scan: Scan, plan: _Plan) -> dict[str, Any]:
    return {
        "name": f"{scan.name} {card.name}",
        "kind": "heatmap",
        "spacing": plan.spacing,
        "unit": scan.unit,
        "origin": plan.origin,
        "channels": card.classes,
        "parent": scan.as_parent(),
    }


@contextmanager
def _open_sink(
    model: Model,
    scan: Scan,
    plan: _Plan,
    *,
    out: str | os.PathLike[str] | None,
    keep: dict[str, bool],
    fields: dict[str, Any],
) -> Iterator[_Sink]:
    axes = "c" + scan.window_axes
    shape = (len(model.card.classes), *plan.shape)
    if out is None:
        size = math.prod(shape)
        if size > MEMORY_LIMIT:
            raise BadValueError(
                f"the heat map has {size / 1e9:.1f} GB ({' × '.join(map(str, shape))}); in memory at most "
                f"{MEMORY_LIMIT / 1e9:.1f} GB are made. Pass out='….ome.zarr'."
            )
        yield _Memory(plan.shape[0], axes)
        return
    path = Path(out).expanduser()
    if not path.name.lower().endswith(".zarr"):
        raise BadValueError(f"out={path.name!r}; expected a name ending in .ome.zarr. save() converts it afterwards.")
    made_with = _fingerprint(model, scan, plan)
    store = _Store(path, fingerprint=made_with, shape=shape, axes=axes, dtype=np.uint8, **keep, **fields)
    try:
        yield store
    finally:
        store.close()


def _missing(sink: _Sink, height: int) -> list[tuple[int, int]]:
    """Return runs of heat-map rows ``[low, high)`` that the sink lacks, whole bands, neighbours joined."""
    runs: list[tuple[int, int]] = []
    for index in sorted(set(range(sink.bands)) - set(sink.done)):
        low, high = index * sink.band_height, min((index + 1) * sink.band_height, height)
        if runs and runs[-1][1] == low:
            low = runs.pop()[0]
        runs.append((low, high))
    return runs


def arrange_axes(windows: Tensor, have: str, want: str) -> Tensor:
    """Bring a batch from the scan's axis order into the card's."""
    if "c" in have and "c" not in want:
        windows, have = windows.squeeze(1 + have.index("c")), have.replace("c", "")
    elif "c" in want and "c" not in have:
        windows, have = windows.unsqueeze(-1), have + "c"
    return windows.permute(0, *(1 + have.index(a) for a in want))


@contextmanager
def lend_model(model: Model, device: torch.device) -> Iterator[None]:
    """Lend a model in evaluation mode on a device and leave it as it was."""
    training = {module: module.training for module in model.modules()}
    home = next((p.device for p in model.parameters()), None)
    try:
        model.eval().to(device)
        yield
    finally:
        if home is not None:
            model.to(home)
        for module, mode in training.items():
            module.training = mode


def _fingerprint(model: Model, scan: Scan, plan: _Plan) -> dict[str, Any]:
    """Return all that the heat map depends on, JSON-compatible, so that only the same run is continued."""
    grid = plan.grid
    card = json.dumps(model.card.to_dict(), sort_keys=True)
    fingerprint = {
        "method": METHOD,
        "model": model.card.name,
        "weights": model.digest(),
        "card": hashlib.sha256(card.encode()).hexdigest(),
        "scan": [scan.name, scan.axes, scan.shape, scan.spacing, scan.unit, scan.fill, scan.dtype.name],
        "reading": {key: str(scan.meta.get(key)) for key in ("icc", "series", "reader")},
        "pixels": _identity(scan),
        "grid": [grid.tile, grid.stride, grid.spacing, grid.scale, grid.extent],
        "windows": hashlib.sha256(grid.indices.tobytes()).hexdigest(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(fingerprint))
    return plain


def _identity(scan: Scan) -> list[Any]:
    """Return what tells a scan's pixels from others: name, size and time of its file, else a hash of the pixels."""
    path = Path(str(scan.meta.get("path", "")))
    if scan.meta.get("path") and path.exists():
        places = [path, *sorted(path.iterdir())] if path.is_dir() else [path]
        return [path.name, *([p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in places)]
    level, digest = scan.levels[0], hashlib.sha256()
    step = max(1, (1 << 26) // max(1, math.prod(level.shape[1:]) * scan.dtype.itemsize))
    for first in range(0, level.shape[0], step):
        digest.update(np.ascontiguousarray(level[first : first + step]).tobytes())
    return [digest.hexdigest()]
