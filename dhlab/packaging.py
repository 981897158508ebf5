"""`export`: a trained model as a package in standard forms, checked before anyone sees it."""

from __future__ import annotations

import hashlib
import json
import logging
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

from dhlab.atomic import atomic_folder
from dhlab.errors import BadShapeError, BadValueError, ConflictError
from dhlab.models import CONFIG, FORMAT_VERSION, GRAPH, WEIGHTS, Model, ModelCard, load_model
from dhlab.networks import OnnxNet
from dhlab.timeline import stage

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

__all__ = ["export"]

EXAMPLE = "example.npz"
# Scores differ by the order of float32 sums; half a grey level of a heat map is 2e-3.
TOLERANCE = 1e-4
PIPELINES = {"segmentation": "image-segmentation", "classification": "image-classification"}


def export(
    model: Model, folder: str | os.PathLike[str], *, example: ArrayLike | None = None, overwrite: bool = False
) -> Path:
    """Write a model package: README.md, config.json, model.safetensors, model.onnx and example.npz.

    The ONNX graph takes windows as stored (normalisation is inside) in any batch size and gives scores. Before the
    folder takes its place, weights and graph are loaded again, in torch and in onnxruntime, and must repeat the
    model's scores of the example.

    Parameters
    ----------
    model
        The model; it stays as it is.
    folder
        Where the package shall appear, whole or not at all.
    example
        Windows as stored, ``(B, *window)`` in the card's axis order and type, better real ones; None makes noise.
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
    windows = _example(card, example)
    with stage("packaged", verb="export", model=card.name), atomic_folder(location) as partial:
        still = Model(deepcopy(model.net).cpu(), card).eval().requires_grad_(False)
        with torch.inference_mode():
            scores = still(torch.from_numpy(windows)).numpy()
        if not np.isfinite(scores).all():
            raise BadValueError(f"{card.name!r} gives scores that are not finite; train it again before packaging.")
        _write_weights(still, partial / WEIGHTS)
        _write_graph(still, windows, partial / GRAPH)
        np.savez(partial / EXAMPLE, windows=windows, scores=scores)
        differences = _write_config(card, partial, windows, scores)
        (partial / "README.md").write_text(_readme(card, differences), encoding="utf-8")
    return location


def _example(card: ModelCard, example: ArrayLike | None) -> NDArray[Any]:
    if example is None:
        low, high = card.value_range
        noise = np.random.default_rng(0).uniform(low, high, (2, *card.window_shape))
        return noise.astype(card.dtype)
    windows = np.ascontiguousarray(example)
    if windows.shape[1:] != card.window_shape or windows.dtype != card.dtype or len(windows) == 0:
        raise BadShapeError(
            f"example is {windows.shape} {windows.dtype}; expected (B, {', '.join(map(str, card.window_shape))}) "
            f"{card.dtype}, windows as stored."
        )
    return windows


def _write_weights(model: Model, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _write_graph(model: Model, windows: NDArray[Any], path: Path) -> None:
    batch = torch.from_numpy(windows[np.arange(2) % len(windows)])
    with _quiet():
        program = torch.onnx.export(
            model,
            (batch,),
            input_names=["windows"],
            output_names=["scores"],
            dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)


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


def _write_config(card: ModelCard, folder: Path, windows: NDArray[Any], scores: NDArray[Any]) -> dict[str, float]:
    """Write config.json with checksums, load what was written, compare, and return the largest differences."""
    names = (WEIGHTS, GRAPH, EXAMPLE)
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "card": card.to_dict(),
        "sha256": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
        "made_by": {name: version(name) for name in ("dhlab", "torch", "onnx") if _installed(name)},
        "tolerance": TOLERANCE,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    loaded = {"torch": load_model(folder), "onnxruntime": load_model(folder / GRAPH, card=card)}
    differences = {}
    for form, again in loaded.items():
        with torch.inference_mode():
            got = torch.cat([again(torch.from_numpy(window[None])) for window in windows]).numpy()
        differences[form] = float(np.abs(got - scores).max())
        scale = max(1.0, float(np.abs(scores).max()))
        if not differences[form] <= TOLERANCE * scale:
            raise BadValueError(
                f"{card.name!r} in {form} differs from the model by {differences[form]:.2g}; expected at most "
                f"{TOLERANCE * scale:g}. Its network does not export faithfully."
            )
    return differences


def _installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError

    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _readme(card: ModelCard, differences: dict[str, float]) -> str:
    tile, spacing = " × ".join(map(str, card.tile)), " × ".join(f"{s:g}" for s in card.spacing)
    front = {"license": card.licence, "library_name": "dhlab", "pipeline_tag": PIPELINES[card.task]}
    lines = ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in front.items())]
    lines += ["tags:", *(f"- {tag}" for tag in ("dhlab", "biomedical-imaging", "onnx", "safetensors")), "---", ""]
    lines += [f"# {card.name}", "", f"{card.task.capitalize()} of {', '.join(card.classes)}. {card.intended_use}", ""]
    rows = {
        "window": f"{tile} px at {spacing} {card.unit}/px, axes `{card.axes}`, {card.dtype}, {card.channels} channels",
        "scores": f"{card.output_shape}, {card.activation}",
        "network": f"{card.architecture} {card.architecture_options or ''}".strip(),
        "version": f"{card.version}, {card.created}",
        "licence": card.licence,
    }
    lines += ["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items()), ""]
    for title, text in {"Limits": card.limits, "Data": card.data, "Metrics": _metrics(card)}.items():
        lines += [f"## {title}", "", text, ""]
    checked = ", ".join(f"{form} {value:.1e}" for form, value in differences.items())
    lines += ["## Use", "", "```python", "import dhlab as dh", f"model = dh.load_model({card.name!r})  # this folder"]
    lines += ['heat = dh.predict(model, dh.open("slide.svs"))', "```", ""]
    lines += [f"`{GRAPH}` takes windows as stored (batch first; normalisation is inside) and gives scores."]
    lines += [f"Largest difference from `{EXAMPLE}` when packaged: {checked}; allowed {TOLERANCE:g}.", ""]
    return "\n".join(lines)


def _metrics(card: ModelCard) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in card.metrics.items()) or "Not stated."
