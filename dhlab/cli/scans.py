"""Commands about scans: say what one is, find tissue, convert, predict, report; samples, doctor, demo."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhlab.errors import BadValueError, ConflictError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dhlab.report import Report
    from dhlab.scan import Scan

__all__ = ["add_commands"]


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands about scans.

    Parameters
    ----------
    add
        Takes name, function, help and parents, and returns the command's parser.
    """
    scan = argparse.ArgumentParser(add_help=False)
    scan.add_argument("scan", type=Path, help="slide, picture or OME-Zarr folder")
    scan.add_argument("--spacing", type=float, metavar="µm", help="pixel size, if the file states none or a wrong one")
    scan.add_argument("--icc", action="store_true", help="convert colours to sRGB with the file's ICC profile")
    add("info", _info, "Say what a scan is: size, spacing, levels, reader.", scan)

    tissue = add("tissue", _tissue, "Find the tissue and write it as a mask, a picture or GeoJSON.", scan)
    tissue.add_argument("-o", "--out", type=Path, required=True, help=".ome.zarr, .png or .geojson")
    tissue.add_argument("--overwrite", action="store_true", help="replace the output")

    convert = add("convert", _convert, "Convert a scan to OME-Zarr, OME-TIFF or a picture.", scan)
    convert.add_argument("-o", "--out", type=Path, required=True, help=".ome.zarr, .ome.tif, .png or .jpg")
    convert.add_argument("--tile", type=int, default=512, help="side of a stored tile in pixels (%(default)s)")
    convert.add_argument("--compression", default="auto", help="codec (%(default)s)")
    convert.add_argument("--overwrite", action="store_true", help="replace the output")

    predict = add("predict", _predict, "Predict a heat map with a model package; continues a killed run.", scan)
    predict.add_argument("-m", "--model", type=Path, required=True, help="package folder, or .onnx with --card")
    predict.add_argument("--card", type=Path, help="JSON model card of an .onnx file")
    predict.add_argument("-o", "--out", type=Path, required=True, help="heat map, .ome.zarr")
    predict.add_argument("--overlap", type=float, default=0.25, help="share that neighbours both see (%(default)s)")
    predict.add_argument("--everywhere", action="store_true", help="predict on glass too, not only on tissue")
    predict.add_argument("--annotations", type=Path, help="also write the regions as QuPath GeoJSON")
    predict.add_argument("--threshold", type=float, default=0.5, help="score that makes a region (%(default)s)")
    predict.add_argument("--device", help="cpu, cuda, cuda:1 … (a GPU if there is one)")
    predict.add_argument("--restart", action="store_true", help="do not continue a killed run")
    predict.add_argument("--overwrite", action="store_true", help="replace what another run left at the output")

    report = add("report", _report, "Write one HTML page with the scan, its heat map and its annotations.", scan)
    report.add_argument("--heat", type=Path, help="heat map, .ome.zarr")
    report.add_argument("--annotations", type=Path, help="GeoJSON")
    report.add_argument("--ledger", type=Path, help="folder of the time-to-model ledger")
    report.add_argument("-o", "--out", type=Path, required=True, help=".html; figures go to .json beside it")

    sample = add("sample", _sample, "List the samples, or say where one is and what licence it has.")
    sample.add_argument("name", nargs="?", help="name of a sample")

    doctor = add("doctor", _doctor, "Examine this machine: versions, GPU, kernels, codecs, Horovod, Slurm, Hub.")
    doctor.add_argument("--folder", type=Path, default=Path(), help="folder to test for writing (here)")

    demo = add("demo", _demo, "Do the main job on a real slide: tissue, training, heat map, regions, report.")
    demo.add_argument("-o", "--out", type=Path, default=Path("demo-output"), help="folder for results (%(default)s)")
    demo.add_argument("--epochs", type=int, help="passes over the training region (chosen for two cores)")


def _open(options: argparse.Namespace) -> Scan:
    from dhlab.io import open as open_scan

    return open_scan(options.scan, spacing=options.spacing, icc=options.icc)


def _info(options: argparse.Namespace) -> dict[str, Any]:
    scan = _open(options)
    return {
        "name": scan.name,
        "kind": scan.kind,
        "axes": scan.axes,
        "shape": list(scan.shape),
        "dtype": str(scan.dtype),
        "spacing": list(scan.spacing),
        "unit": scan.unit,
        "channels": list(scan.channels),
        "levels": [{"shape": list(scan.shape_of(i)), "scale": list(scan.scales[i])} for i in range(len(scan.levels))],
        **{key: value for key, value in scan.meta.items() if key != "path"},
    }


def _tissue(options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    from dhlab.annotations import Annotations
    from dhlab.io import save
    from dhlab.tissue import find_tissue

    scan = _open(options)
    mask = find_tissue(scan)
    if options.out.suffix in (".geojson", ".json"):
        if options.out.exists() and not options.overwrite:
            raise ConflictError(f"{options.out} exists already; choose another name or pass --overwrite.")
        Annotations.from_heatmap(mask, "tissue").to_geojson(options.out)
    else:
        save(mask, options.out, overwrite=options.overwrite)
    share = float(np.mean(np.asarray(mask.levels[0][...]) != 0))
    return {"tissue_share": round(share, 4), "spacing": list(mask.spacing), "unit": mask.unit, "out": str(options.out)}


def _convert(options: argparse.Namespace) -> dict[str, Any]:
    from dhlab.io import save

    scan = _open(options)
    out = save(
        scan,
        options.out,
        tile=options.tile,
        compression=options.compression,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    files = [p for p in out.rglob("*") if p.is_file()] if out.is_dir() else [out]
    return {"out": str(out), "files": len(files), "bytes": sum(p.stat().st_size for p in files)}


def _predict(options: argparse.Namespace) -> dict[str, Any]:
    from dhlab.annotations import Annotations
    from dhlab.inference import predict
    from dhlab.models import load_model
    from dhlab.tissue import find_tissue

    scan = _open(options)
    model = load_model(options.model, card=options.card)
    heat = predict(
        model,
        scan,
        overlap=options.overlap,
        within=None if options.everywhere else find_tissue(scan),
        out=options.out,
        resume=not options.restart,
        overwrite=options.overwrite,
        device=options.device,
        progress=not options.quiet,
    )
    result: dict[str, Any] = {"out": str(options.out), "classes": list(heat.channels), "stages": heat.meta["stages"]}
    if options.annotations:
        regions = Annotations.concat(
            [Annotations.from_heatmap(heat, name, threshold=options.threshold) for name in heat.channels]
        )
        regions.to_geojson(options.annotations)
        result |= {"annotations": str(options.annotations), "regions": len(regions)}
    return result


def _report(options: argparse.Namespace) -> dict[str, Any]:
    from dhlab.annotations import Annotations
    from dhlab.io import open as open_scan
    from dhlab.summary import summarise
    from dhlab.timeline import Timeline
    from dhlab.tissue import find_tissue

    if options.out.suffix != ".html":
        raise BadValueError(f"--out {options.out}; expected a name that ends in .html.")
    scan = _open(options)
    report = summarise(
        scan,
        tissue=find_tissue(scan),
        heat=open_scan(options.heat) if options.heat else None,
        annotations=Annotations.from_geojson(options.annotations) if options.annotations else None,
        timeline=Timeline(options.ledger) if options.ledger else None,
    )
    report.to_json(options.out.with_suffix(".json"))
    return {"out": str(report.to_html(options.out)), "json": str(options.out.with_suffix(".json"))}


def _sample(options: argparse.Namespace) -> dict[str, Any]:
    from dhlab.samples import SAMPLES, sample_path

    if options.name is None:
        return {name: f"{entry.what} ({entry.licence})" for name, entry in SAMPLES.items()}
    path = sample_path(options.name)
    entry = SAMPLES[options.name]
    return {"path": str(path), "what": entry.what, "licence": entry.licence, "source": entry.source}


def _doctor(options: argparse.Namespace) -> dict[str, Any]:
    from dhlab.diagnosis import doctor

    report: Report = doctor(folder=options.folder)
    return {"summary": report.summary, **{name: list(rows) for name, rows in report.tables.items()}}


def _demo(options: argparse.Namespace) -> dict[str, Any]:
    from dhlab.demo import run_demo

    return run_demo(options.out, epochs=options.epochs, progress=not options.quiet)
