"""The main job on a real slide, end to end: what ``make demo`` runs."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dhlab.annotations import Annotations
from dhlab.datasets import Dataset
from dhlab.evaluation import evaluate
from dhlab.inference import predict
from dhlab.models import create_model, load_model
from dhlab.packaging import export
from dhlab.report import Report
from dhlab.samples import sample, tutorial_annotations, tutorial_regions
from dhlab.summary import summarise
from dhlab.timeline import Timeline
from dhlab.tissue import find_tissue
from dhlab.training import fit

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run_demo"]

CLASSES = ("epidermis", "dermis", "keratin", "background")
SPACING = 1.0  # µm; wide enough a view for layers of the skin, and quick on two cores
TILE = 192
EPOCHS = 16
SMALLEST = 400.0  # µm²; smaller regions are specks of a few cells


def run_demo(out: Path, *, epochs: int | None = None, progress: bool = True) -> dict[str, Any]:
    """Find tissue, learn it from annotations, judge, package, predict the slide, outline regions, report.

    Parameters
    ----------
    out
        Folder for the results; made if it is not there. A heat map of a killed run is continued.
    epochs
        Passes over the training region; None is the number chosen for two cores.
    progress
        Show what happens.

    Returns
    -------
    dict
        Paths of the results and the main figures, JSON-compatible.

    Raises
    ------
    NotFoundError
        If the tutorial's slide is not on this machine; the message says how to get it.
    StorageError
        If `out` cannot be written.
    """
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        if progress:
            print(f"[{time.perf_counter() - began:5.1f} s] {text}", flush=True)

    with Timeline(out / "ledger" / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")) as timeline:
        timeline.mark("need", seconds=0.0, question="Where are epidermis, dermis and keratin on this slide?")
        slide = sample("skin-slide")
        say(repr(slide))
        tissue = find_tissue(slide)
        say(f"tissue found: {tissue!r}")

        drawn, regions = tutorial_annotations(), tutorial_regions()
        train, test = (
            Dataset.from_annotations(
                slide, drawn, classes=CLASSES, tile=TILE, spacing=SPACING, region=regions[split], overlap=overlap
            )
            for split, overlap in (("training", 0.5), ("test", 0.0))
        )
        say(f"{len(train)} tiles to learn from, {len(test)} apart in space to be judged on")

        model = create_model("unet", CLASSES, tile=TILE, spacing=SPACING)
        learned = fit(model, train, epochs=epochs or EPOCHS, progress=progress)
        judged = evaluate(model, test, progress=progress)
        say(repr(judged))

        package = export(model, out / "package", overwrite=True)
        say(f"packaged and checked: {package}")

        store = out / "heat.ome.zarr"
        heat = predict(
            load_model(package), slide, within=tissue, overlap=0.5, out=store, overwrite=True, progress=progress
        )
        say(f"heat map: {heat.meta['stages']}")
        zones = Annotations.concat(
            [
                Annotations.from_heatmap(heat, name, threshold=0.5, min_area=SMALLEST)
                for name in CLASSES
                if name != "background"
            ]
        )
        zones.to_geojson(out / "regions.geojson")
        say(f"{len(zones)} regions as GeoJSON")

        report = summarise(
            slide,
            title="Skin, from slide to model",
            summary="A small network learned epidermis, dermis and keratin from annotations on one part of a slide, "
            "was judged on another part, and then mapped the whole slide. One slide of one patient: "
            "this shows that the chain works, not how well it would do on other patients.",
            tissue=tissue,
            heat=heat,
            annotations=zones,
            headline=_headline(judged, timeline),
            sections=(learned, judged),
            timeline=timeline,
        )
        page = report.to_html(out / "report.html")
        report.to_json(out / "report.json")
    say(f"report: {page}")
    return {
        "report": str(page),
        "heat_map": str(out / "heat.ome.zarr"),
        "regions": str(out / "regions.geojson"),
        "package": str(package),
        **{name: round(value, 3) for name, value in judged.values.items()},
        "seconds": round(time.perf_counter() - began, 1),
    }


def _headline(judged: Report, timeline: Timeline) -> Report:
    name, total = "mean Dice", timeline.table()[-1]
    return Report(
        title="headline",
        values={
            "mean Dice on the unseen part": judged.values[name],
            "minutes to model in production": total["wall_minutes"],
        },
        intervals={"mean Dice on the unseen part": judged.intervals[name]},
        baseline={"mean Dice on the unseen part": judged.baseline[name]},
        n={"mean Dice on the unseen part": judged.n[name]},
    )
