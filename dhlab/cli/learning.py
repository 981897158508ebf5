"""Commands about models: train, evaluate and export, with the keyword arguments of the functions themselves."""

from __future__ import annotations

import argparse
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dhlab.errors import BadFileError, BadValueError, UnknownNameError, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dhlab.datasets import Dataset
    from dhlab.models import Model

__all__ = ["add_commands"]

READERS = {
    ".yaml": "from_yaml",
    ".yml": "from_yaml",
    ".csv": "from_table",
    ".tsv": "from_table",
    ".parquet": "from_table",
}
VALIDATION, TEST = ("validation", "val", "valid"), ("test", "testing")
SHARES = {"training": 0.7, "validation": 0.15, "test": 0.15}


def add_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands about models.

    Parameters
    ----------
    add
        Takes name, function, help and parents, and returns the command's parser.
    """
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("data", type=Path, help="labelled samples: a folder of classes, a table, or a DeepHealth YAML")
    data.add_argument(
        "--data",
        dest="data_options",
        metavar="NAME=VALUE",
        nargs="+",
        default=[],
        help="arguments of the reader, such as size=[224,224] image=path label=diagnosis patient=patient",
    )

    train = add("train", _train, "Train a model; the same command continues a killed run.", data)
    train.add_argument("-m", "--architecture", required=True, help="unet, cnn, resnet18, timm/convnext_tiny …")
    train.add_argument("-o", "--out", type=Path, required=True, help="folder of the run")
    train.add_argument(
        "--model",
        dest="model_options",
        metavar="NAME=VALUE",
        nargs="+",
        default=[],
        help="arguments of create_model, such as tile=224 spacing=0.5 encoder=resnet18 pretrained=weights.safetensors",
    )
    train.add_argument(
        "--fit",
        dest="fit_options",
        metavar="NAME=VALUE",
        nargs="+",
        default=[],
        help="arguments of fit, such as epochs=20 batch_size=16 learning_rate=3e-3 averaging=0.999 patience=5",
    )
    train.add_argument(
        "--run", dest="described", type=Path, help="JSON with tables data, model and fit, as a run's command.json holds"
    )
    train.add_argument(
        "--augment", type=Path, metavar="FILE", help="random variants: ECVL's text, or .json of a pipeline (see fit)"
    )
    train.add_argument("--seed", type=int, default=0, help="seed of splits, weights, order and augmentation (0)")

    evaluate = add("evaluate", _evaluate, "Judge a model on samples that it has not seen.", data)
    evaluate.add_argument("-m", "--model", type=Path, required=True, help="folder of a run, package, or .onnx")
    evaluate.add_argument("--card", type=Path, help="JSON model card of an .onnx file")
    evaluate.add_argument("--split", help="part of the data (test, if there is one)")
    evaluate.add_argument("-o", "--out", type=Path, required=True, help=".html; figures go to .json beside it")
    evaluate.add_argument(
        "--evaluate",
        dest="evaluate_options",
        metavar="NAME=VALUE",
        nargs="+",
        default=[],
        help="arguments of evaluate, such as operating_point=youden resamples=2000",
    )

    export = add("export", _export, "Write a checked package of a trained run: safetensors, ONNX, card, example.")
    export.add_argument("run_folder", type=Path, help="folder of the run")
    export.add_argument("-o", "--out", type=Path, required=True, help="folder of the package")
    export.add_argument("--report", type=Path, help="JSON of evaluate, whose figures go into the card")
    export.add_argument(
        "--card",
        dest="card_options",
        metavar="NAME=VALUE",
        nargs="+",
        default=[],
        help="what the card says: name, licence, intended_use, limits, data",
    )
    export.add_argument("--overwrite", action="store_true", help="replace the package")


def _train(options: argparse.Namespace) -> dict[str, Any]:
    from dhlab.atomic import atomic_write_text
    from dhlab.augment.windows import read_pipeline
    from dhlab.models import create_model
    from dhlab.training import fit

    described = _read_run(options.described)
    data_options = described["data"] | _pairs(options.data_options)
    model_options = described["model"] | _pairs(options.model_options)
    fit_options = {"seed": options.seed} | described["fit"] | _pairs(options.fit_options)
    if options.augment is not None:
        fit_options["augment"] = read_pipeline(options.augment).to_dict()
    _check_names(fit, fit_options, "--fit")
    data = _open_data(options.data, data_options)
    parts = _split(data, fit_options["seed"])
    shape = data[0][0].shape
    usual = {
        "tile": [n for n, axis in zip(shape, data.axes, strict=True) if axis != "c"],
        "spacing": list(data.spacing) or 1.0,
        "unit": data.unit,
        "axes": data.axes,
        "dtype": str(data[0][0].dtype),
        "channels": shape[data.axes.index("c")] if "c" in data.axes else 1,
        "task": data.task,
        "seed": options.seed,
    }
    model = create_model(options.architecture, data.classes, **(usual | model_options))
    report = fit(
        model, parts["training"], parts.get("validation"), folder=options.out, progress=not options.quiet, **fit_options
    )
    made = model_options | {"architecture": options.architecture}
    command = {"data": data_options, "model": made, "fit": fit_options}
    atomic_write_text(options.out / "command.json", json.dumps(command, indent=1, ensure_ascii=False) + "\n")
    report.to_html(options.out / "training.html")
    report.to_json(options.out / "training.json")
    return {"out": str(options.out), "report": str(options.out / "training.html"), **report.values}


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from dhlab.evaluation import evaluate

    if options.out.suffix != ".html":
        raise BadValueError(f"--out {options.out}; expected a name that ends in .html.")
    keywords = _pairs(options.evaluate_options)
    _check_names(evaluate, keywords, "--evaluate")
    model = _load(options.model, options.card)
    command = options.model / "command.json"
    described = _read_run(command if command.exists() else None)
    data = _open_data(options.data, described["data"] | _pairs(options.data_options))
    if not data.splits and command.exists():
        # What the training held out is drawn again.
        data = data.split(SHARES, seed=described["fit"]["seed"])
    if options.split is not None:
        data = data.part(options.split)
    elif data.splits:
        data = data.part(next((name for name in TEST if name in data.splits), next(iter(data.splits))))
    report = evaluate(model, data, progress=not options.quiet, **keywords)
    report.to_json(options.out.with_suffix(".json"))
    return {"out": str(report.to_html(options.out)), "summary": report.summary, **report.values}


def _export(options: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import replace

    from dhlab.packaging import export
    from dhlab.report import Report

    model = _load(options.run_folder, None)
    model.card = replace(model.card, **_pairs(options.card_options))
    report = Report.from_json(options.report) if options.report else None
    return {"out": str(export(model, options.out, report=report, overwrite=options.overwrite))}


def _load(path: Path, card: Path | None) -> Model:
    from dhlab.models import load_model
    from dhlab.training import load_run

    return load_run(path) if (path / "run.json").exists() else load_model(path, card=card)


def _open_data(path: Path, options: Mapping[str, Any]) -> Dataset:
    from dhlab.datasets import Dataset

    name = "from_folder" if path.is_dir() else READERS.get(path.suffix.lower(), "")
    if not name:
        raise BadFileError(f"{path}: expected a folder of classes, a table ({', '.join(READERS)}) or a YAML file.")
    reader = getattr(Dataset, name)
    _check_names(reader, options, "--data")
    opened: Dataset = reader(path, **options)
    return opened


def _split(data: Dataset, seed: int) -> dict[str, Dataset]:
    """Return the parts to train on and to choose by: those that the data name, else drawn by patient."""
    parts = data if data.splits else data.split(SHARES, seed=seed)
    validation = next((name for name in VALIDATION if name in parts.splits), None)
    found = {"training": parts.part(next(name for name in parts.splits if name.startswith("train")))}
    return found | ({} if validation is None else {"validation": parts.part(validation)})


def _read_run(path: Path | None) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {"data": {}, "model": {}, "fit": {}}
    if path is None:
        return tables
    try:
        found = json.loads(path.read_text("utf-8"))
        tables |= {name: dict(found[name]) for name in tables if name in found}
    except (OSError, ValueError, TypeError) as error:
        raise BadFileError(f"{path}: {error}; expected JSON with the tables data, model and fit.") from error
    tables["model"].pop("architecture", None)
    return tables


def _pairs(words: Sequence[str]) -> dict[str, Any]:
    """Return ``name=value`` words as a table; values are JSON where they can be, else texts."""
    pairs: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise BadValueError(f"{word!r}; expected NAME=VALUE.")
        try:
            pairs[name] = json.loads(value)
        except ValueError:
            pairs[name] = value
    return pairs


def _check_names(function: Callable[..., Any], given: Mapping[str, Any], option: str) -> None:
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in given:
        if name not in known:
            raise UnknownNameError(f"{option} {name}: {function.__name__} has no such argument.{suggest(name, known)}")
