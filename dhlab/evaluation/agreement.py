"""How far annotators agree: kappa beyond chance, Dice of every pair, and where they differ, as a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from dhlab.annotations import Annotations
from dhlab.annotations.collection import NOT_DRAWN
from dhlab.errors import BadShapeError, BadValueError
from dhlab.evaluation.drawing import draw_disagreement
from dhlab.metrics import cohen_kappa, dice, draw_weights, fleiss_kappa, mean_defined, percentile_interval
from dhlab.report import Report
from dhlab.scan import Scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dhlab.scan import Parent

__all__ = ["Agreement", "compare_annotators"]

# Longest side of the label maps that are compared, unless a spacing is asked for.
SIDE_PX = 2048
UNLABELLED = "unlabelled"
# Physical units whose squares people count in, by the unit of a scan: name and size.
SQUARES = {"µm": ("mm²", 1e-6), "mm": ("cm²", 1e-2)}


@dataclass(frozen=True, eq=False)
class Agreement:
    """What `compare_annotators` found.

    Parameters
    ----------
    report
        Mean Dice, Fleiss' kappa, Cohen's kappa of each pair, tables by pair and by annotator, a picture.
    disagreement
        A heat map for each scan, ``yx`` uint8: the share of pairs of annotators that differ, 255 for all.
    """

    report: Report
    disagreement: tuple[Scan, ...]

    def __repr__(self) -> str:
        return repr(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def compare_annotators(
    drawings: Annotations | Sequence[Annotations] | Mapping[str, Annotations | Sequence[Annotations]],
    *,
    spacing: float | None = None,
    within: Annotations | Sequence[Annotations] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Measure how far people who annotated the same scans agree, pixel by pixel.

    Parameters
    ----------
    drawings
        What each annotator drew: by name, of one scan or of several in the same order. Or what all drew together, of
        one scan or several; it is divided by author. Shapes that are proposed or rejected do not count.
    spacing
        Pixel size of the comparison, in the scans' unit; None takes one at which each scan has at most 2048 pixels
        along its longest side, and never a finer one than the scan's own.
    within
        The area that all were asked to judge, of each scan; None is all of it, where much that nobody drew on makes
        agreement look better.
    resamples
        Bootstrap draws over scans.
    seed
        Seed of the draws.

    Returns
    -------
    Agreement
        ``report`` and ``disagreement``. What nobody labelled is a class of its own in both kappas, and none in Dice.

    Raises
    ------
    BadShapeError
        If annotators have different numbers of scans, or annotated different scans.
    BadValueError
        If there are fewer than two annotators, no scans, no classes, or annotations that name no scan.
    """
    areas = [within] if isinstance(within, Annotations) else within
    annotators = _by_annotator(drawings)
    names = tuple(annotators)
    scans = _parents(annotators)
    if areas is not None and len(areas) != len(scans):
        raise BadShapeError(f"areas to judge of {len(areas)} scans; expected one for each of the {len(scans)}.")
    classes = tuple(dict.fromkeys(n for drawn in annotators.values() for one in drawn for n in one.class_names))
    if not classes:
        raise BadValueError("nobody gave any shape a class; expected classes to compare.")
    tables, maps = [], []
    for number, scan in enumerate(scans):
        drawn = [annotators[name][number] for name in names]
        labels, heat = _judge(drawn, scan, classes=classes, spacing=spacing, area=areas[number] if areas else None)
        tables.append(np.unique(labels, axis=0, return_counts=True))
        maps.append(heat)
    judged = _Judged.of(tables, names, classes)
    return Agreement(_report(judged, scans, maps, resamples=resamples, seed=seed), tuple(maps))


@dataclass(frozen=True, eq=False)
class _Judged:
    """How often each combination of labels occurs.

    Parameters
    ----------
    names
        Annotators.
    classes
        Class names, without that of what nobody labelled.
    patterns
        ``(P, annotators)`` labels: 0 for unlabelled, i + 1 for ``classes[i]``.
    pixels
        ``(scans, P)`` number of pixels.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    patterns: NDArray[np.int64]
    pixels: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        tables: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
        names: tuple[str, ...],
        classes: tuple[str, ...],
    ) -> _Judged:
        """Join the combinations of several scans, each ``(P, annotators)`` with how many pixels have it."""
        patterns, place = np.unique(np.concatenate([p for p, _ in tables]), axis=0, return_inverse=True)
        pixels = np.zeros((len(tables), len(patterns)))
        scan = np.repeat(np.arange(len(tables)), [len(p) for p, _ in tables])
        pixels[scan, place.reshape(-1)] = np.concatenate([counts for _, counts in tables])
        return cls(names, classes, patterns.astype(np.int64), pixels)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Every two annotators."""
        return list(combinations(range(len(self.names)), 2))

    def confusion(self, pair: tuple[int, int], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what two annotators said, ``(draws, K, K)``, for each row of ``weights``, ``(draws, scans)``."""
        size = len(self.classes) + 1
        code = self.patterns[:, pair[0]] * size + self.patterns[:, pair[1]]
        chosen = np.eye(size * size)[code]
        return ((weights @ self.pixels) @ chosen).reshape(-1, size, size)

    def figures(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return each figure for each row of ``weights``, ``(draws, scans)``."""
        matrices = [self.confusion(pair, weights) for pair in self.pairs]
        overlap = np.array([dice(matrix)[:, 1:] for matrix in matrices])  # (pairs, draws, classes)
        each = mean_defined(overlap, axis=0)
        size = len(self.classes) + 1
        counts = (self.patterns[:, :, None] == np.arange(size)).sum(1)  # (P, K)
        found = {"mean Dice": mean_defined(each, axis=-1)}
        found |= {f"Dice {name}": each[:, i] for i, name in enumerate(self.classes) if len(self.classes) > 1}
        if len(self.names) > 2:
            found["Fleiss' kappa"] = fleiss_kappa(counts, weights=weights @ self.pixels)
        for (one, other), matrix in zip(self.pairs, matrices, strict=True):
            found[f"Cohen's kappa {self.names[one]}, {self.names[other]}"] = cohen_kappa(matrix)
        return found


def _by_annotator(
    drawings: Annotations | Sequence[Annotations] | Mapping[str, Annotations | Sequence[Annotations]],
) -> dict[str, list[Annotations]]:
    if isinstance(drawings, Mapping):
        found = {str(name): _drawn(each) for name, each in drawings.items()}
    else:
        together = _drawn(drawings)
        authors = dict.fromkeys(author for one in together for author in one.authors.tolist() if author is not None)
        found = {author: [one.where(author=author) for one in together] for author in authors}
    if len(found) < 2:
        raise BadValueError(
            f"annotators {list(found) or 'unknown'}; expected two or more. Pass what each drew by name: "
            'compare_annotators({"Anna": first, "Ben": second}).'
        )
    return found


def _drawn(each: Annotations | Sequence[Annotations]) -> list[Annotations]:
    parts = [each] if isinstance(each, Annotations) else each
    return [one[~np.isin(one.reviews, NOT_DRAWN)] for one in parts]


def _parents(annotators: Mapping[str, Sequence[Annotations]]) -> list[Parent]:
    counts = {name: len(drawn) for name, drawn in annotators.items()}
    if len(set(counts.values())) > 1 or not min(counts.values()):
        raise BadShapeError(f"annotators drew on different numbers of scans: {counts}; expected all on the same ones.")
    parents: list[Parent] = []
    for together in zip(*annotators.values(), strict=True):
        known = [one.parent for one in together]
        if None in known:
            raise BadValueError(
                "annotations that name no scan cannot be compared; give them one: annotations.on(scan)."
            )
        if len({parent.shape for parent in known if parent}) > 1:
            said = ", ".join(f"{parent.name} {parent.shape}" for parent in known if parent)
            raise BadShapeError(f"annotators drew on different scans: {said}; expected the same, in the same order.")
        parents.append(next(parent for parent in known if parent))
    return parents


def _judge(
    drawn: Sequence[Annotations],
    scan: Parent,
    *,
    classes: tuple[str, ...],
    spacing: float | None,
    area: Annotations | None,
) -> tuple[NDArray[np.int64], Scan]:
    """Return the labels of each judged pixel, ``(N, annotators)``, and where they differ."""
    coarser = max(1.0, max(scan.shape[-2:]) / SIDE_PX)
    pixel = [side * coarser for side in scan.spacing[-2:]] if spacing is None else spacing
    drawing = [one.replace(class_names=classes, class_colors=(), classes=_renumber(one, classes)) for one in drawn]
    labels = [one.rasterize(spacing=pixel, parent=scan) for one in drawing]
    stack = np.stack([np.asarray(one.levels[0][...]) for one in labels], -1)  # (height, width, annotators)
    judged = np.ones(stack.shape[:2], bool)
    if area is not None:
        judged = np.asarray(area.mask(spacing=pixel, parent=scan).levels[0][...]) > 0
    pairs = list(combinations(range(len(drawn)), 2))
    differ = sum((stack[..., a] != stack[..., b]).astype(np.float32) for a, b in pairs) / len(pairs)
    picture = np.where(judged, np.rint(differ * 255), 0).astype(np.uint8)
    heat = Scan.from_array(
        picture, "yx", spacing=labels[0].spacing, unit=scan.unit, name=f"{scan.name} disagreement", kind="heatmap"
    )
    return stack[judged].astype(np.int64), heat.replace(parent=scan)


def _renumber(drawn: Annotations, classes: tuple[str, ...]) -> NDArray[np.int32]:
    table = np.array([*(classes.index(name) for name in drawn.class_names), -1], np.int32)
    return table[drawn.classes]


def _report(judged: _Judged, scans: Sequence[Parent], maps: Sequence[Scan], *, resamples: int, seed: int) -> Report:
    values = {name: float(v[0]) for name, v in judged.figures(np.ones((1, len(scans)))).items()}
    intervals = {}
    if len(scans) > 1:
        blocks = [judged.figures(w) for w in draw_weights(len(scans), resamples=resamples, rng=seed)]
        intervals = {name: percentile_interval(np.concatenate([b[name] for b in blocks])) for name in values}
    worst = int(np.argmax([np.mean(heat.levels[-1][...]) for heat in maps]))
    told = len(judged.names)
    return Report(
        title=f"Agreement of {told} annotators on {len(scans)} scan{'s' * (len(scans) > 1)}",
        summary=f"{', '.join(judged.names)}: mean Dice {values['mean Dice']:.3f}; every pixel judged counts alike.",
        values=values,
        intervals=intervals,
        n=dict.fromkeys(values, len(scans)),
        tables={"Pairs": _pair_rows(judged), "Area drawn": _area_rows(judged, scans, maps)},
        figures=[draw_disagreement(maps[worst], scans[worst].name)],
        notes=_notes(judged, scans),
        provenance={"spacing": [heat.spacing for heat in maps], "seed": seed, "resamples": resamples},
    )


def _pair_rows(judged: _Judged) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    once = np.ones((1, len(judged.pixels)))
    for pair in judged.pairs:
        matrix = judged.confusion(pair, once)[0]
        overlap = dice(matrix)[1:].tolist()
        row: dict[str, object] = {"first": judged.names[pair[0]], "second": judged.names[pair[1]]}
        row |= {"Cohen's kappa": float(cohen_kappa(matrix))}
        rows.append(row | {f"Dice {name}": value for name, value in zip(judged.classes, overlap, strict=True)})
    return rows


def _area_rows(judged: _Judged, scans: Sequence[Parent], maps: Sequence[Scan]) -> list[dict[str, object]]:
    unit, factor = SQUARES.get(scans[0].unit, (f"{scans[0].unit}²", 1.0))
    sizes = np.array([np.prod(heat.spacing) for heat in maps]) * factor
    areas = sizes @ judged.pixels  # (P,)
    rows: list[dict[str, object]] = []
    for column, name in enumerate(judged.names):
        drawn = np.bincount(judged.patterns[:, column], areas, minlength=len(judged.classes) + 1)
        row: dict[str, object] = {"annotator": name}
        said = zip((UNLABELLED, *judged.classes), drawn.tolist(), strict=True)
        rows.append(row | {f"{name} ({unit})": area for name, area in said})
    return rows


def _notes(judged: _Judged, scans: Sequence[Parent]) -> list[str]:
    notes = ["Points and lines have no area and are not compared."]
    if len(scans) == 1:
        notes.append("One scan says nothing of the spread between scans: no intervals.")
    if len(judged.names) == 2:
        notes.append("Two annotators: Cohen's kappa; Fleiss' kappa is for three or more.")
    return notes
