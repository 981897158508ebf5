"""`export`: a trained model as a package in standard forms, checked before anyone sees it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dhlab.atomic import atomic_folder, storage_errors
from dhlab.errors import BadShapeError, BadValueError, ConflictError
from dhlab.models import CONFIG, FORMAT_VERSION, GRAPH, WEIGHTS, Model, ModelCard, load_model
from dhlab.networks import OnnxNet
from dhlab.report import format_number
from dhlab.scan import Scan
from dhlab.timeline import stage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from dhlab.report import Report

__all__ = ["export"]

BAG = "ic"
EXAMPLE, PREVIEW = "example.npz", "example.png"
# Scores differ by the order of float32 sums; half a grey level of a heat map is 2e-3.
TOLERANCE = 1e-4
# The hub's names of what a model does with pictures, and of licences; others are "other" there.
PIPELINES = {
    "segmentation": "image-segmentation",
    "classification": "image-classification",
    "multilabel": "image-classification",
}
LICENCES = {
    *("agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0"),
    *("cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "lgpl-3.0", "mit", "mpl-2.0", "unknown"),
}
# Windows of the example that its preview shows.
SHOWN = 4


def export(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    report: Report | None = None,
    example: ArrayLike | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model package: README.md, config.json, model.safetensors, model.onnx and example.npz.

    The ONNX graph takes windows as stored (normalisation is inside) in any batch size, bags with any number of
    instances, and gives scores. Before the folder takes its place, weights and graph are loaded again, in torch and
    in onnxruntime, and must repeat the model's scores of the example. Weights and graph of the same model are the
    same bytes every time.

    Parameters
    ----------
    model
        The model; it stays as it is.
    folder
        Where the package shall appear, whole or not at all; folders above it are made.
    report
        What `evaluate` found: its figures with intervals and numbers go into the card and the README.
    example
        Windows as stored, ``(B, *window)`` in the card's axis order and type, better real ones, which README.md then
        shows; None makes noise.
    overwrite
        Replace what is there.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ConflictError
        If something is there and `overwrite` is off.
    BadShapeError
        If the example does not fit the card.
    BadValueError
        If the model cannot be packaged, or its package gives other scores than the model itself.
    StorageError
        If the disk is full or the folder read-only.
    """
    location = Path(folder).expanduser()
    if isinstance(model.net, OnnxNet):
        raise BadValueError(f"{model.card.name!r} is an ONNX graph already; hand on its file and card as they are.")
    if location.exists() and not overwrite:
        raise ConflictError(f"{location} exists already; choose another name or pass overwrite=True.")
    card = model.card
    if not card.created:
        card = replace(card, created=datetime.now(UTC).isoformat(timespec="seconds"))
    if report is not None:
        card = replace(card, metrics=dict(card.metrics) | _figures(report))
    windows = _example(card, example)
    with storage_errors(location):
        location.parent.mkdir(parents=True, exist_ok=True)
    with stage("packaged", verb="export", model=card.name), atomic_folder(location) as partial:
        still = Model(deepcopy(model.net).cpu(), card).eval().requires_grad_(False)
        with torch.inference_mode():
            scores = still(torch.from_numpy(windows)).numpy()
        if not np.isfinite(scores).all():
            raise BadValueError(f"{card.name!r} gives scores that are not finite; train it again before packaging.")
        _write_weights(still, partial / WEIGHTS)
        _write_graph(still, windows, partial / GRAPH)
        np.savez(partial / EXAMPLE, windows=windows, scores=scores)
        if example is not None and card.axes != BAG:
            _write_preview(card, windows, partial / PREVIEW)
        differences = _write_config(still, partial, windows)
        readme = _readme(card, differences, report, preview=PREVIEW if (partial / PREVIEW).exists() else "")
        (partial / "README.md").write_text(readme, encoding="utf-8")
    return location


def _example(card: ModelCard, example: ArrayLike | None) -> NDArray[Any]:
    bags = card.axes == BAG
    if example is None:
        low, high = card.value_range
        shape = (max(3, card.tile[0]), card.channels) if bags else card.window_shape
        noise = np.random.default_rng(0).uniform(low, high, (2, *shape)).astype(card.dtype)
        if bags:
            noise[1, 2:] = np.nan  # padding must be ignored everywhere
        return noise
    windows = np.ascontiguousarray(example)
    if bags:
        fits = windows.ndim == 3 and windows.shape[1] > 0 and windows.shape[2] == card.channels
    else:
        fits = windows.shape[1:] == card.window_shape
    if not fits or windows.dtype != card.dtype or len(windows) == 0:
        expected = f"N, {card.channels}" if bags else ", ".join(map(str, card.window_shape))
        raise BadShapeError(
            f"example is {windows.shape} {windows.dtype}; expected (B, {expected}) {card.dtype}, windows as stored."
        )
    return windows


def _write_weights(model: Model, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _write_graph(model: Model, windows: NDArray[Any], path: Path) -> None:
    batch = torch.from_numpy(windows[np.arange(2) % len(windows)])
    free = {0: torch.export.Dim("batch")}
    if model.card.axes == BAG:
        free[1] = torch.export.Dim("instances")
        # A length of 1 would be taken for a constant.
        batch = batch if batch.shape[1] > 1 else batch.repeat(1, 2, 1)
    with _quiet():
        program = torch.onnx.export(
            model,
            (batch,),
            input_names=["windows"],
            output_names=["scores"],
            dynamic_shapes={"x": free},
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        graph = program.model_proto
    # The exporter notes where in whose files each step was called: of no use elsewhere, and never twice the same.
    nodes = [*graph.graph.node, *(node for function in graph.functions for node in function.node)]
    for part in (graph, graph.graph, *graph.functions, *nodes):
        del part.metadata_props[:]
        part.doc_string = ""
    path.write_bytes(graph.SerializeToString(deterministic=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on its own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _write_preview(card: ModelCard, windows: NDArray[Any], path: Path) -> None:
    """Draw the first windows beside each other."""
    from PIL import Image

    scans = [Scan.from_array(w, card.axes, spacing=card.spacing, unit=card.unit) for w in windows[:SHOWN]]
    Image.fromarray(np.concatenate([scan.thumbnail(256) for scan in scans], axis=1)).save(path)


def _write_config(model: Model, folder: Path, windows: NDArray[Any]) -> dict[str, float]:
    """Write config.json with checksums, load what was written, compare, and return the largest differences."""
    card = model.card
    names = [name for name in (WEIGHTS, GRAPH, EXAMPLE, PREVIEW) if (folder / name).exists()]
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "card": card.to_dict(),
        "sha256": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
        "made_by": {name: version(name) for name in ("dhlab", "torch", "onnx") if _installed(name)},
        "tolerance": TOLERANCE,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    loaded = {"torch": load_model(folder), "onnxruntime": load_model(folder / GRAPH, card=card)}
    # One window at a time, and bags of another length: neither may be frozen into the graph.
    probes = [window[None] for window in windows]
    if card.axes == BAG:
        probes.append(windows[:1, : max(1, windows.shape[1] // 2)])
    differences = dict.fromkeys(loaded, 0.0)
    for probe in map(torch.from_numpy, probes):
        with torch.inference_mode():
            truth = model(probe).numpy()
            got = {form: again(probe).numpy() for form, again in loaded.items()}
        scale = _scale(card, truth)
        for form, scores in got.items():
            difference = float((np.abs(scores - truth) / scale).max())
            differences[form] = max(difference, differences[form])
            if not difference <= TOLERANCE:
                raise BadValueError(
                    f"{card.name!r} in {form} differs from the model by {difference:.2g} of the scores' scale; "
                    f"expected at most {TOLERANCE:g}. Its network does not export faithfully."
                )
    return differences


def _scale(card: ModelCard, scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return what a difference of scores is measured by, ``(classes, 1 …)``: 1, or the spread of a regression."""
    shape = (-1, *(1,) * (scores.ndim - 2))
    if card.activation != "none":
        return np.ones(1).reshape(shape)
    largest = np.abs(scores).max(axis=(0, *range(2, scores.ndim))).astype(np.float64)
    spread = np.asarray(card.target_std) if card.target_std else np.where(largest > 0, largest, 1.0)
    # A large mean with a small spread leaves few digits: eight steps of float32 are allowed in any case.
    steps = np.spacing(largest.astype(np.float32)).astype(np.float64) * 8 / TOLERANCE
    return np.maximum(spread, steps).reshape(shape)


def _installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _figures(report: Report) -> dict[str, str]:
    """Return the figures of a report in words: ``0.870 (0.800 to 0.930), n=41 patients``."""
    unit = str(report.provenance.get("unit", ""))
    texts = {}
    for name, value in report.values.items():
        texts[name] = format_number(value)
        if name in report.intervals:
            texts[name] += f" ({' to '.join(map(format_number, report.intervals[name]))})"
        if name in report.n:
            count = report.n[name]
            texts[name] += f", n={count}" + (f" {unit}{'s' if count != 1 else ''}" if unit else "")
    return texts


def _readme(card: ModelCard, differences: dict[str, float], report: Report | None, *, preview: str) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    tile, spacing = " × ".join(map(str, card.tile)), " × ".join(f"{s:g}" for s in card.spacing)
    window = f"{tile} px at {spacing} {card.unit}/px, axes `{card.axes}`, {card.dtype}, {card.channels} channels"
    if card.axes == BAG:
        window = f"any number of instances of {card.channels} {card.dtype} features; rows of NaN are padding"
    facts = {
        "window": window,
        "scores": f"{card.output_shape}, {_meaning(card)}",
        "network": card.architecture,
        "started from": card.base_model,
        "version": f"{card.version}, {card.created}",
        "authors": card.authors,
        "licence": card.licence,
    }
    known = [] if report is None else report.rows()
    rest = {n: v for n, v in card.metrics.items() if report is None or n not in report.values}
    environment = Environment(
        loader=PackageLoader("dhlab", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - Markdown, not HTML
    )
    return environment.get_template("package.md").render(
        card=card,
        report=report,
        front=_front_matter(card, report),
        facts=[{"": key, " ": value} for key, value in facts.items() if value],
        figures=[*known, *({"figure": name, "value": str(value)} for name, value in rest.items())],
        table=_table,
        preview=preview,
        bags=card.axes == BAG,
        differences=" and ".join(f"{value:.1e} ({form})" for form, value in differences.items()),
        tolerance=f"{TOLERANCE:g}",
        graph=GRAPH,
        example=EXAMPLE,
        config=CONFIG,
    )


def _meaning(card: ModelCard) -> str:
    names = {"softmax": "probabilities that sum to 1", "sigmoid": "a probability each"}
    return names.get(card.activation, "numbers" if card.task == "regression" else "logits")


def _front_matter(card: ModelCard, report: Report | None) -> str:
    """Return what the Hugging Face hub reads of a model, as YAML."""
    import yaml

    known = card.licence.lower() in LICENCES
    licence = {"license": card.licence.lower()} if known else {"license": "other", "license_name": card.licence}
    pipeline = PIPELINES.get(card.task, "other") if {"y", "x"} <= set(card.axes) else "other"
    tags = ["dhlab", "biomedical-imaging", card.task, "onnx", "safetensors"]
    front: dict[str, Any] = licence | {"library_name": "dhlab", "pipeline_tag": pipeline, "tags": tags}
    if card.metrics:
        data = {"type": "custom", "name": report.title if report is not None else card.data}
        metrics = [{"type": name, "name": name, "value": _number(value)} for name, value in card.metrics.items()]
        front["model-index"] = [
            {"name": card.name, "results": [{"task": {"type": pipeline}, "dataset": data, "metrics": metrics}]}
        ]
    return str(yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10_000)).rstrip()


def _number(value: Any) -> Any:
    """Return the number that a text begins with, so that the hub can sort by it; else the value itself."""
    found = re.match(r"-?\d+(,\d{3})*(\.\d+)?(?![\w.])", value) if isinstance(value, str) else None
    return float(found[0].replace(",", "")) if found else value


def _table(rows: list[dict[str, str]]) -> str:
    """Return rows as a Markdown table, a column for every key."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys, ["---"] * len(keys), *([row.get(key, "") for key in keys] for row in rows)]
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
