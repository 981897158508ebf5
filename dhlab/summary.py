"""`summarise`: one report that shows a scan with all that was found on it."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.report import Figure, Report, format_number, software_versions
from dhlab.view.composite import compose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dhlab.annotations import Annotations
    from dhlab.scan import Scan
    from dhlab.timeline import Timeline

__all__ = ["encode_picture", "picture_strip", "summarise"]

WIDE, NARROW = 660, 320  # longest side of a picture, so that two or four stand beside one another


def summarise(
    scan: Scan,
    *,
    title: str | None = None,
    summary: str = "",
    tissue: Scan | None = None,
    heat: Scan | None = None,
    annotations: Annotations | None = None,
    headline: Report | None = None,
    sections: Sequence[Report] = (),
    timeline: Timeline | None = None,
) -> Report:
    """Show a scan, its tissue, its heat map and its regions in one report.

    Parameters
    ----------
    scan
        The scan, ``yxc`` or ``yx`` axes.
    title, summary
        Heading and first paragraph.
    tissue
        Mask in the scan's frame.
    heat
        Heat map ``cyx`` in the scan's frame, with a channel per class.
    annotations
        Regions in level-0 pixels of the scan.
    headline
        Figures to show first.
    sections
        Further reports (training, evaluation), shown after the pictures.
    timeline
        Ledger of time to model in production, shown last.

    Returns
    -------
    Report
        Pictures, areas per class, stage clocks, ledger, provenance.
    """
    figures = []
    if tissue is not None and heat is not None and annotations is not None:
        strip = picture_strip(scan, tissue=tissue, heat=heat, annotations=annotations)
        figures.append(
            Figure(encode_picture(strip), "The scan, the tissue, the class with the highest score, and regions.")
        )
    parts = [_describe(scan, tissue)]
    if heat is not None:
        parts.append(_show_heat(scan, heat))
    if annotations is not None:
        parts.append(_show_regions(scan, annotations))
    parts.extend(sections)
    if timeline is not None:
        parts.append(_show_ledger(timeline))
    return Report(
        title=title or f"Scan report: {scan.name}",
        summary=summary,
        values={} if headline is None else headline.values,
        intervals={} if headline is None else headline.intervals,
        baseline={} if headline is None else headline.baseline,
        n={} if headline is None else headline.n,
        figures=figures,
        provenance={"scan": scan.name, "versions": software_versions()},
        sections=parts,
    )


def picture_strip(scan: Scan, *, tissue: Scan, heat: Scan, annotations: Annotations) -> NDArray[np.uint8]:
    """Set the scan, its tissue, the winning class and the regions side by side: the whole story in one picture.

    Parameters
    ----------
    scan, tissue, heat, annotations
        As in `summarise`.

    Returns
    -------
    ndarray
        ``(height, width, 3)`` uint8.
    """
    layers = ((), (tissue.replace(name="tissue"),), (_as_labels(heat, _winner(heat)),), (annotations,))
    return _side_by_side([compose(scan, *overlays, max_px=WIDE) for overlays in layers])


def encode_picture(picture: NDArray[np.uint8]) -> bytes:
    """Encode an ``(height, width, 3)`` uint8 picture as JPEG if that is smaller by far, else as PNG."""
    from PIL import Image

    image, png, jpeg = Image.fromarray(picture), io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True)
    image.save(jpeg, "JPEG", quality=88, subsampling=0)
    return min((png.getvalue(), jpeg.getvalue()), key=lambda b: len(b) * (1 if b[:2] == b"\xff\xd8" else 0.5))


def _describe(scan: Scan, tissue: Scan | None) -> Report:
    source = scan.meta.get("spacing_source", "the caller")
    facts: list[dict[str, Any]] = [
        {"": "size", "value": " × ".join(f"{n:,}" for n in scan.shape) + " px"},
        {"": "physical size", "value": " × ".join(f"{v:,.5g}" for v in scan.size) + f" {scan.unit}"},
        {"": "spacing", "value": f"{scan.spacing[0]:g} {scan.unit}/px, from {source}"},
        {"": "levels", "value": ", ".join(f"1/{max(s):.4g}" for s in scan.scales)},
        {"": "read by", "value": f"{scan.meta.get('reader', '?')} {scan.meta.get('reader_version', '')}"},
    ]
    figures = [Figure(encode_picture(compose(scan, max_px=WIDE)), "The scan.")]
    values: dict[str, float] = {}
    if tissue is not None:
        share = float(np.mean(np.asarray(tissue.levels[0][...]) != 0))
        values["share of the scan that is tissue"] = share
        figures.append(
            Figure(encode_picture(compose(scan, tissue.replace(name="tissue"), max_px=WIDE)), "Tissue found.")
        )
    return Report(title="Scan and tissue", values=values, figures=figures, tables={"Facts": facts})


def _show_heat(scan: Scan, heat: Scan) -> Report:
    winner = _winner(heat)
    pixel, seen = math.prod(heat.spacing), max(int((winner > 0).sum()), 1)
    top = 255.0 if heat.dtype == np.uint8 else 1.0
    areas = []
    for index, name in enumerate(heat.channels):
        here = winner == index + 1
        scores = np.asarray(heat.levels[0][index])[here]
        areas.append(
            {
                "class": name,
                f"area, {_area_unit(heat.unit)}": float(here.sum()) * pixel / _area_scale(heat.unit),
                "share of what was predicted": float(here.sum()) / seen,
                "mean score there": float(scores.mean()) / top if scores.size else math.nan,
            }
        )
    classes = compose(scan, _as_labels(heat, winner), max_px=WIDE)
    scores = _side_by_side([compose(scan, _only(heat, index), max_px=NARROW) for index in range(len(heat.channels))])
    figures = [
        Figure(encode_picture(classes), "Class with the highest score."),
        Figure(encode_picture(scores), f"Scores of {', '.join(heat.channels)}, from 0 to 1."),
    ]
    stages = dict(heat.meta.get("stages", {}))
    advice = [str(stages.pop("advice"))] if "advice" in stages else []
    clock = [{"stage": key.replace("_", " "), "value": format_number(value)} for key, value in stages.items()]
    return Report(
        title="Heat map", figures=figures, tables={"Areas": areas, "Where the time went": clock}, notes=advice
    )


def _side_by_side(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = np.full((pictures[0].shape[0], 8, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)


def _winner(heat: Scan) -> NDArray[np.uint8]:
    scores = np.asarray(heat.levels[0][...])
    return np.where(scores.max(0) > 0, scores.argmax(0) + 1, 0).astype(np.uint8)


def _as_labels(heat: Scan, winner: NDArray[np.uint8]) -> Scan:
    return heat.replace(levels=(winner,), axes="yx", kind="labels", scales=((1.0, 1.0),), fill=0)


def _only(heat: Scan, channel: int) -> Scan:
    plane = np.asarray(heat.levels[0][channel])[None]
    return heat.replace(levels=(plane,), channels=(heat.channels[channel],), scales=((1.0, 1.0),))


def _area_scale(unit: str) -> float:
    return 1e6 if unit == "µm" else 1.0


def _area_unit(unit: str) -> str:
    return "mm²" if unit == "µm" else f"{unit}²"


def _show_regions(scan: Scan, annotations: Annotations) -> Report:
    figure = Figure(encode_picture(compose(scan, annotations, max_px=1100)), "Regions, as written to GeoJSON.")
    return Report(title="Regions", figures=[figure], tables={"Regions by class": annotations.table()})


def _show_ledger(timeline: Timeline) -> Report:
    rows = timeline.table()
    shown = [
        {
            "stage": row["stage"],
            "events": row["events"],
            "machine minutes": float(row["machine_minutes"]),
            "human minutes": float(row["human_minutes"]),
            "wall minutes": float(row["wall_minutes"]),
        }
        for row in rows
    ]
    total = rows[-1] if rows else None
    values = {"time to model in production, minutes": float(total["wall_minutes"])} if total else {}
    notes = timeline.problems()
    if total and not total["reached"]:
        notes = ["No model is in production yet; the total runs to the last event.", *notes]
    return Report(
        title="Time to model in production",
        summary="Wall-clock from the first event to the first answer of the packaged model. "
        "Human time is what people entered; nothing guesses it.",
        values=values,
        tables={"Ledger": shown},
        notes=notes,
    )
