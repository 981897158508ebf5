"""What a function found on a slide, as files, and back: scans, bags, regions, reports and plain values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from dhlab.errors import BadValueError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HEATMAP", "load_results", "save_results"]

RESULT = "result"
# The name under which a function that takes `out` writes its scan itself.
HEATMAP = f"{RESULT}.ome.zarr"
# By name, so that a worker that makes no bags loads no torch.
KINDS = ("Annotations", "Bag", "Report", "Scan")
LOADERS = {
    ".ome.zarr": "dhlab.io:open",
    ".safetensors": "dhlab.mil:Bag.load",
    ".geojson": "dhlab.annotations:Annotations.from_geojson",
    ".report.json": "dhlab.report:Report.from_json",
}
_KEY = re.compile(r"\w[\w -]*")


def save_results(found: Any, folder: Path) -> dict[str, Any]:
    """Write what a function returned and return its plain values.

    Parameters
    ----------
    found
        A scan, bag, `Annotations`, report or plain value (number, text, list), or a dict of them.
    folder
        Where to; each is named by its key, or ``result``.

    Returns
    -------
    dict
        The plain values, JSON-compatible.

    Raises
    ------
    BadValueError
        If it is something else.
    """
    values = {}
    for key, thing in (found if isinstance(found, Mapping) else {RESULT: found}).items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise BadValueError(f"a result is called {key!r}; expected letters, digits, '_', '-' and spaces.")
        if not _save(thing, folder, key):
            values[key] = _plain(thing, key)
    return values


def load_results(folder: Path, values: Mapping[str, Any]) -> Any:
    """Return what `save_results` wrote: a dict, or the only value if the function returned no dict.

    Parameters
    ----------
    folder
        Where it was written.
    values
        The plain values.
    """
    found = dict(values)
    for path in sorted(folder.iterdir()):
        for suffix, target in LOADERS.items():
            if path.name.endswith(suffix):
                module, _, name = target.partition(":")
                found[path.name.removesuffix(suffix)] = attrgetter(name)(import_module(module))(path)
    return found[RESULT] if list(found) == [RESULT] else found


def _save(thing: Any, folder: Path, key: str) -> bool:
    """Write a thing that has a file format; False if it has none."""
    kind = type(thing).__name__ if type(thing).__module__.startswith("dhlab.") else ""
    match kind:
        case "Scan":
            from dhlab.io import save

            # A function that takes `out` has written it already.
            if not (path := folder / f"{key}.ome.zarr").exists():
                save(thing, path)
        case "Bag":
            thing.save(folder / f"{key}.safetensors")
        case "Annotations":
            thing.to_geojson(folder / f"{key}.geojson")
        case "Report":
            thing.to_json(folder / f"{key}.report.json")
    return kind in KINDS


def _plain(thing: Any, key: str) -> Any:
    # Numbers of numpy and torch become Python's.
    thing = thing.tolist() if hasattr(thing, "tolist") else thing
    try:
        json.dumps(thing)
    except (TypeError, ValueError) as error:
        raise BadValueError(
            f"{key} is a {type(thing).__name__} ({error}); expected a scan, bag, annotations, report, number, text or "
            "list, or a dict of them."
        ) from error
    return thing
