"""`Learner`: strokes on a scan become a heat map at once, and a model when asked."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import torch
from torch.nn import functional

from dhlab.annotations import Annotations, Document
from dhlab.cards import ModelCard
from dhlab.errors import BadValueError, ConflictError
from dhlab.inference import predict
from dhlab.io import open as open_scan
from dhlab.learner.cells import classify_cells
from dhlab.learner.coarse import Lesson, balance
from dhlab.learner.describer import describe_by_encoder, describe_by_filters
from dhlab.learner.head import teach
from dhlab.learner.heat import HeatLevel
from dhlab.learner.pixels import LevelFeatures, count_channels, value_range_of
from dhlab.learner.proposals import PLACE, find_places
from dhlab.learner.strokes import choose_strokes, count_classes, sample_pixels, thin_strokes
from dhlab.models import Model
from dhlab.scan import Scan

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from dhlab.networks import Perceptron
    from dhlab.progress import Progress

__all__ = ["Learner"]

RGB = tuple[int, int, int]
Region = tuple["Sequence[float]", "Sequence[float]"]
# A stored level about this fine is looked at where nobody says otherwise, in µm per pixel: nuclei have ten pixels.
USUAL_SPACING = 1.0
STROKE_WIDTH = 5.0


@dataclass(frozen=True, eq=False)
class _Sample:
    """What one stroke teaches: its pixels, and their features as computed."""

    pixels: NDArray[np.int64]
    features: Tensor


@dataclass(eq=False)
class _Taught:
    """Classifiers of one state of the strokes: of the finest level at once, of coarser ones when they are looked at."""

    classes: tuple[str, ...]
    colors: tuple[RGB, ...]
    counts: dict[str, int]
    geometries: list[Any]
    pixels: list[NDArray[np.int64]]
    labels: list[int]
    heads: list[Perceptron] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    heat: Scan = field(init=False)


class Learner:
    """Learns from strokes which class every pixel of a scan belongs to, within a second, without pretrained weights.

    Strokes are annotations with a class: points, lines, areas; those that are proposed or rejected do not count. The
    same strokes give the same classifier, whatever the order in which they were drawn. `heat` is computed where one
    looks, `model` is a model like any other.

    Parameters
    ----------
    scan
        A plane: slide, field of view, picture, with channels or without.
    strokes
        Annotations, or the document of the scan, whose present state counts at every `update`.
    spacing
        Physical pixel size to look at, in the scan's unit: the stored level nearest to it is taken. None takes that
        nearest to 1 µm, and the finest where the physical size is unknown.
    stroke_width
        Width of lines and points in pixels of that level.
    encoder
        A model whose feature maps describe pixels instead of Gaussian features: a network of torchvision or timm, or
        a U-Net with one. It sees more context and takes more time; its weights stay as they are.

    Attributes
    ----------
    level
        The stored level that is looked at.
    strokes
        Annotations or document; set other annotations to learn from those.

    Raises
    ------
    BadShapeError
        If the scan is no plane, or the encoder takes another number of channels.
    BadValueError
        If a number is out of range, the pixels have no range, or the model has no encoder.
    """

    def __init__(
        self,
        scan: Scan,
        strokes: Annotations | Document,
        *,
        spacing: float | None = None,
        stroke_width: float = STROKE_WIDTH,
        encoder: Model | None = None,
    ) -> None:
        if not stroke_width > 0:
            raise BadValueError(f"stroke_width {stroke_width}; expected a positive number of pixels.")
        self.scan, self.strokes, self.stroke_width = scan, strokes, stroke_width
        channels = count_channels(scan)
        describer = describe_by_filters(channels) if encoder is None else describe_by_encoder(encoder, channels)
        finest = LevelFeatures(scan, _choose_level(scan, spacing), describer=describer)
        self.level = finest.level
        coarser = range(self.level + 1, len(scan.levels))
        self._levels = [
            finest,
            *(LevelFeatures(scan, level, describer=describer, cache=finest.cache) for level in coarser),
        ]
        self._lessons: dict[int, Lesson] = {}
        self._samples: dict[bytes, _Sample] = {}
        self._known: Any = None
        self._taught: _Taught | None = None
        self._lock = threading.Lock()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that were learned, in alphabetical order."""
        return self._last.classes

    @property
    def counts(self) -> dict[str, int]:
        """Number of strokes of each class that were learned from."""
        return dict(self._last.counts)

    @property
    def heat(self) -> Scan:
        """The heat map of the strokes as learned last: ``cyx`` uint8, a channel per class.

        Nothing is computed before it is read, and then only the blocks that are. Coarser levels have classifiers of
        their own, which learn from the next finer one: an overview costs no more than a close look.
        """
        return self._last.heat

    @property
    def model(self) -> Model:
        """The classifier as a model, which `predict`, `evaluate`, `fit` and `export` take."""
        return self._make_model(self._last)

    def update(self) -> bool:
        """Learn from the strokes as they are now.

        Returns
        -------
        bool
            Whether they had changed, and `heat` and `model` with them.

        Raises
        ------
        BadValueError
            If there are no strokes, or only of one class, or all of a class lie outside the scan. What was learned
            before stays.
        """
        with self._lock:
            drawn = self._drawn()
            # The order must not matter to what is learned.
            strokes = sorted(choose_strokes(drawn), key=lambda stroke: (stroke.class_name, stroke.key))
            order = tuple(sorted({stroke.class_name for stroke in strokes}))
            colors = tuple(drawn.class_colors[drawn.class_names.index(name)] for name in order)
            known = (order, colors, tuple((s.class_name, s.key) for s in strokes))
            if known == self._known:
                return False
            count_classes(strokes)
            samples = [self._sample(stroke.key, stroke.geometry) for stroke in strokes]
            inside = [stroke for stroke, sample in zip(strokes, samples, strict=True) if len(sample.pixels)]
            if missing := [name for name in order if not any(s.class_name == name for s in inside)]:
                raise BadValueError(
                    f"all strokes of {missing[0]!r} lie outside {self.scan.name!r} of "
                    f"{' × '.join(map(str, self.scan.shape))} px. Are they those of another scan?"
                )
            samples = [sample for sample in samples if len(sample.pixels)]
            pixels = [sample.pixels for sample in samples]
            labels = [order.index(stroke.class_name) for stroke in inside]
            taught = _Taught(order, colors, count_classes(inside), [s.geometry for s in inside], pixels, labels)
            chosen, kinds = thin_strokes(labels, [len(one) for one in pixels])
            features = torch.cat([sample.features[rows] for sample, rows in zip(samples, chosen, strict=True)])
            targets = functional.one_hot(torch.from_numpy(kinds), len(order)).float()
            finest = self._levels[0]
            head = finest.new_head(len(order))
            teach(head, features, targets, weights=balance(targets), emphasis=finest.net.emphasis)
            taught.heads.append(head)
            taught.heat = self._make_heat(taught)
            self._samples = {s.key: self._samples[s.key] for s in strokes}
            self._known, self._taught = known, taught
            return True

    def propose(
        self,
        count: int = 5,
        *,
        region: Region | None = None,
        within: Scan | None = None,
    ) -> Annotations:
        """Propose places to draw next: where the classifier is unsure, and which differ from one another.

        Parameters
        ----------
        count
            How many, at most.
        region
            Start and size (y, x) in level-0 pixels, such as what is in view; None is the whole scan, of which a
            sample is looked at.
        within
            Mask scan; only places in it are proposed.

        Returns
        -------
        Annotations
            Squares without a class, to be reviewed (``"proposed"``), the most doubtful first; the score is how sure
            the classifier is.

        References
        ----------
        Settles, "Active learning literature survey", 2009 (margin sampling); Sener and Savarese, "Active learning for
        convolutional neural networks: a core-set approach", ICLR 2018.
        """
        taught = self._last
        level, drawn = taught.heat.levels[0], np.concatenate(taught.pixels)
        assert isinstance(level, HeatLevel)
        corners, doubts = find_places(level, self._pixels(region), drawn=drawn, mask=self._mask(within), count=count)
        low, high = (at * self._levels[0].frame.scale for at in (corners, corners + PLACE))
        boxes = shapely.box(low[:, 1], low[:, 0], high[:, 1], high[:, 0])
        names = ["look here"] * len(boxes)
        return as_proposed(Annotations.from_geometries(boxes, scores=1 - doubts, names=names, parent=self.scan))

    def apply(
        self,
        out: str | os.PathLike[str] | None = None,
        *,
        within: Scan | None = None,
        progress: Progress = True,
    ) -> Scan:
        """Map the whole scan.

        Parameters
        ----------
        out
            Where to write the heat map, ``….ome.zarr``; None keeps it in memory. A heat map that is there is replaced.
        within
            Mask scan, such as tissue; only windows that see it are computed.
        progress
            Show a progress bar; or a function that is called with the windows done and their number, and ends the
            run by raising.

        Returns
        -------
        Scan
            Heat map as `predict` gives it.

        Raises
        ------
        ConflictError
            If something else than a heat map is at `out`, such as the slide.
        """
        place = None if out is None else Path(out).expanduser()
        if place is not None and place.exists() and (kind := open_scan(place).kind) != "heatmap":
            raise ConflictError(f"{place.name!r} is there already, {kind!r}; expected a new name, or a heat map's.")
        taught = self._last
        model = self._make_model(taught)
        heat = predict(model, self.scan, overlap=0.0, within=within, out=place, overwrite=True, progress=progress)
        return heat.replace(meta={**heat.meta, "class_colors": [list(color) for color in taught.colors]})

    def polygons(
        self,
        heat: Scan | None = None,
        *,
        region: Region | None = None,
        classes: Sequence[str] | None = None,
        threshold: float = 0.5,
        min_area: float = 0.0,
    ) -> Annotations:
        """Outline the classes, to be reviewed.

        Parameters
        ----------
        heat
            What `apply` returned; None takes what is learned at present.
        region
            Start and size (y, x) in level-0 pixels of what to outline of `heat`; None is the whole scan.
        classes
            Which; None takes all but one called background.
        threshold
            Least score that belongs to a class.
        min_area
            Smaller regions are left out, in the square of the scan's unit.

        Returns
        -------
        Annotations
            Polygons, marked ``"proposed"``: they do not count as strokes.

        Raises
        ------
        UnknownNameError
            If there is no such class.
        """
        taught = self._last
        heat = taught.heat if heat is None else heat
        plane = _cut(heat, region)
        wanted = [n for n in taught.classes if n.lower() != "background"] if classes is None else list(classes)
        parts = [Annotations.from_heatmap(plane, n, threshold=threshold, min_area=min_area) for n in wanted]
        colors = dict(zip(taught.classes, taught.colors, strict=True))
        parts = [part.replace(class_colors=tuple(colors[name] for name in part.class_names)) for part in parts]
        return as_proposed(Annotations.concat(parts))

    def objects(
        self,
        cells: Annotations | Scan | None = None,
        *,
        region: Region | None = None,
    ) -> Annotations:
        """Classify cells by shape, colour and texture, from those that were clicked.

        A stroke that lies in a cell, such as a point, teaches its class; of several strokes, the last one.

        Parameters
        ----------
        cells
            Outlines, or a label map; None finds nuclei by the density of the stain.
        region
            Start and size (y, x) in level-0 pixels of where the cells are; None is the whole scan.

        Returns
        -------
        Annotations
            The cells with class, score and measurements, marked ``"proposed"``.

        Raises
        ------
        BadValueError
            If there are no cells, or fewer than two classes of them were clicked.
        """
        drawn = self._drawn()
        found = classify_cells(self.scan, choose_strokes(drawn), cells, region=region, level=self.level)
        colors = dict(zip(drawn.class_names, drawn.class_colors, strict=True))
        found = found.replace(class_colors=tuple(colors[name] for name in found.class_names))
        return as_proposed(found)

    def __repr__(self) -> str:
        spacing = self.scan.spacing_of(self.level)[0]
        head = f"Learner on {self.scan.name!r} at {spacing:g} {self.scan.unit}/px"
        if self._taught is None:
            return f"{head}, nothing learned yet"
        return f"{head}, learned from {', '.join(f'{n} × {name}' for name, n in self._taught.counts.items())}"

    @property
    def _last(self) -> _Taught:
        if self._taught is None:
            self.update()
        assert self._taught is not None
        return self._taught

    def _drawn(self) -> Annotations:
        return self.strokes.annotations if isinstance(self.strokes, Document) else self.strokes

    def _sample(self, key: bytes, geometry: Any) -> _Sample:
        if key not in self._samples:
            pixels = sample_pixels(geometry, self._levels[0].frame, width=self.stroke_width)
            self._samples[key] = _Sample(pixels, self._levels[0].of_pixels(pixels))
        return self._samples[key]

    def _head(self, taught: _Taught, number: int) -> Perceptron:
        """Return the classifier of a level, taught by that of the next finer one."""
        with taught.lock:
            while len(taught.heads) <= number:
                at = len(taught.heads)
                fine, coarse = self._levels[at - 1 : at + 1]
                if at not in self._lessons:
                    self._lessons[at] = Lesson(fine, coarse)
                width = self.stroke_width * fine.frame.scale[0] / coarse.frame.scale[0]
                pixels = [sample_pixels(g, coarse.frame, width=max(1.0, width)) for g in taught.geometries]
                taught.heads.append(self._lessons[at].learn(taught.heads[-1], pixels, taught.labels))
            return taught.heads[number]

    def _make_model(self, taught: _Taught) -> Model:
        features = self._levels[0]
        describer = features.describer
        net = copy.deepcopy(describer.net)
        net.head = features.new_head(len(taught.classes))
        net.head.load_state_dict(taught.heads[0].state_dict())
        least = 2 * net.reach + 1
        low, high = value_range_of(self.scan)
        card = ModelCard(
            name="learned from strokes",
            architecture=describer.architecture,
            task="segmentation",
            classes=taught.classes,
            tile=tuple(max(least, min(net.largest_tile, n)) for n in features.frame.shape),
            spacing=self.scan.spacing_of(self.level),
            unit=self.scan.unit,
            axes=self.scan.axes,
            dtype=self.scan.dtype.name,
            value_range=(low, high),
            mean=describer.mean,
            std=describer.std,
            margin=net.reach,
            architecture_options=describer.options,
            base_model=describer.name,
            data=f"{sum(taught.counts.values())} strokes on {self.scan.name}: "
            + ", ".join(f"{count} {name}" for name, count in taught.counts.items()),
            limits="Learned from strokes on one scan; not tried on others.",
        )
        return Model(net, card).eval()

    def _make_heat(self, taught: _Taught) -> Scan:
        levels = [
            HeatLevel(features, len(taught.classes), partial(self._head, taught, number))
            for number, features in enumerate(self._levels)
        ]
        finest = np.asarray(self._levels[0].frame.scale)
        return Scan(
            levels=tuple(levels),
            axes="cyx",
            spacing=self.scan.spacing_of(self.level),
            unit=self.scan.unit,
            scales=tuple(tuple((np.asarray(one.frame.scale) / finest).tolist()) for one in self._levels),
            channels=taught.classes,
            name=f"{self.scan.name} learned",
            kind="heatmap",
            parent=self.scan.as_parent(),
            meta={"reader": "learner", "class_colors": [list(color) for color in taught.colors]},
        )

    def _pixels(self, region: Region | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return first and last (excluded) pixel of a region on the finest level."""
        frame = self._levels[0].frame
        if region is None:
            return np.zeros(2, np.int64), np.asarray(frame.shape, np.int64)
        start, size = (np.asarray(part, float) for part in region)
        low, high = np.floor(start / frame.scale), np.ceil((start + size) / frame.scale)
        return np.clip(low, 0, frame.shape).astype(np.int64), np.clip(high, 0, frame.shape).astype(np.int64)

    def _mask(self, within: Scan | None) -> Callable[[NDArray[np.float64]], NDArray[np.bool_]]:
        """Return a function that says of pixels ``(N, 2)`` of the finest level whether they lie in a mask."""
        if within is None:
            return lambda pixels: np.ones(len(pixels), bool)
        mask = np.asarray(within.levels[0][...]) != 0
        spacing, frame = np.asarray(self.scan.spacing), self._levels[0].frame

        def inside(pixels: NDArray[np.float64]) -> NDArray[np.bool_]:
            spots = (pixels * frame.scale * spacing - within.origin) / within.spacing
            y, x = np.clip(spots, 0, np.asarray(mask.shape) - 1).astype(int).T
            return mask[y, x]

        return inside


def as_proposed(annotations: Annotations) -> Annotations:
    """Return annotations as to be reviewed."""
    extras = np.empty(len(annotations), object)
    for row in range(len(annotations)):
        extras[row] = {"properties": {"metadata": {"review": "proposed"}}}
    return annotations.replace(extras=extras)


def _choose_level(scan: Scan, spacing: float | None) -> int:
    """Return the stored level whose pixel size is nearest to a wanted one."""
    if spacing is None:
        spacing = {"µm": USUAL_SPACING, "mm": USUAL_SPACING / 1000}.get(scan.unit, min(scan.spacing))
    if not spacing > 0:
        raise BadValueError(f"spacing {spacing}; expected a positive number of {scan.unit} per pixel.")
    sizes = [np.log(np.prod(scan.spacing_of(level))) / len(scan.spacing) for level in range(len(scan.levels))]
    return int(np.argmin(np.abs(np.array(sizes) - np.log(spacing))))


def _cut(heat: Scan, region: Region | None) -> Scan:
    """Return a part of a heat map in memory, in its own place."""
    if region is None:
        return heat
    parent = heat.parent
    assert parent is not None
    pixel = np.asarray(heat.spacing) / np.asarray(parent.spacing)
    start, size = (np.asarray(part, float) / pixel for part in region)
    low = np.clip(np.floor(start), 0, heat.shape).astype(int)
    high = np.clip(np.ceil(start + size), low + 1, heat.shape).astype(int)
    array = np.asarray(heat.levels[0][:, low[0] : high[0], low[1] : high[1]])
    part = Scan.from_array(
        array, "cyx", spacing=heat.spacing, unit=heat.unit, name=heat.name, kind="heatmap", channels=heat.channels
    )
    return part.replace(origin=tuple((low * heat.spacing).tolist()), parent=parent)
