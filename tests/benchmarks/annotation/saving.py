"""From a stroke to its saved state: in Python and over a real Jupyter server, on documents small and large."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from harness import ROOT, Bench
from viewer.polygons import SIDES, nuclei

import dhlab as dh
from dhlab.view.editing import Editor

sys.path += [str(ROOT / "tests" / folder) for folder in ("shared", "extensions")]
from conftest import run_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TESTS = [
    "tests/annotations/test_document_files.py",
    "tests/view/test_editing.py",
    "tests/extensions/test_lab_documents.py",
]
SAVED_MS, SEEN_MS = 100, 1000
STROKES = 100
# A hand that never rests: the file of a large document is written again and again meanwhile.
PAUSE_S = 0.1
COUNTS = (0, 10_000, 100_000)


def measure(bench: Bench) -> None:
    """Draw on documents of some sizes, and do to the largest what is done to all objects at once."""
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            path, side = make_document(folder, count)
            with dh.Document.open(dh.open(folder / "slide.png"), path, "anna") as document:
                editor = Editor(document, lambda news: None)
                limit(bench, f"stroke saved, {count:,} objects", list(draw(editor.answer, side)), SAVED_MS)
                if count == COUNTS[-1]:
                    measure_all_at_once(bench, document)
            measure_server(bench, folder, count, side)


def make_document(folder: Path, count: int) -> tuple[Path, int]:
    """Return the path of a document of many nuclei on a small picture that stands for a slide, and the slide's side."""
    dh.save(dh.Scan.from_array(np.full((512, 512, 3), 240, np.uint8), "yxc", name="slide"), folder / "slide.png")
    path, side = folder / "slide.geojson", SIDES[COUNTS[-1]]
    if count:
        nuclei(count, side, 0).to_geojson(path)
    return path, side


def draw(answer: Callable[[dict[str, Any]], dict[str, Any]], side: int) -> Iterator[float]:
    """Yield the milliseconds that each of many strokes takes: new ones, and such that an object grows by."""
    rng = np.random.default_rng(5)
    for number in range(STROKES):
        path = (rng.uniform(0.1, 0.9, 2) * side + np.cumsum(rng.normal(0, 6, (60, 2)), 0)).tolist()
        grown = [f"stroke {number - 1}"] if number % 2 else []
        message = {"action": "draw", "tool": "brush", "path": path, "radius": 20, "class": "tumour", "objects": grown}
        begin = time.perf_counter()
        answer(message | {"create": f"stroke {number}"})
        yield (time.perf_counter() - begin) * 1e3
        time.sleep(PAUSE_S)


def measure_server(bench: Bench, folder: Path, count: int, side: int) -> None:
    """Draw over HTTP, and look how soon another process knows."""
    home = folder / "home"
    home.mkdir()
    with run_server(folder, home) as server, server.person() as person:
        body = {"path": "slide.geojson", "on": "slide.png", "document": True}
        opened = person.post("dhlab/scans", json=body).raise_for_status().json()

        def answer(message: dict[str, Any]) -> dict[str, Any]:
            return person.post(f"dhlab/documents/{opened['token']}", json=message).raise_for_status().json()

        times = list(draw(lambda message: answer(message | {"create": f"page {message['create']}"}), side))
        limit(bench, f"stroke saved over HTTP, {count:,} objects", times, SAVED_MS)
        with dh.Document.open(dh.open(folder / "slide.png"), folder / "slide.geojson", "ben") as document:
            seen: list[float] = []
            document.observe(lambda update: seen.append(time.perf_counter()))
            delays = []
            for number in range(10):
                draw_one = {"action": "draw", "tool": "brush", "path": [[number, number]], "radius": 9}
                seen.clear()
                answer(draw_one)
                answered = time.perf_counter()
                while not seen:
                    time.sleep(0.001)
                delays.append((seen[0] - answered) * 1e3)
            limit(bench, f"seen by another process, {count:,} objects", delays, SEEN_MS)


def measure_all_at_once(bench: Bench, document: dh.Document) -> None:
    """Time what concerns every object of a large document."""
    keys = document.annotations.ids.tolist()
    works: dict[str, Callable[[], Any]] = {
        "re-class": lambda: document.change(keys, class_name="checked"),
        "undo of the re-class": document.undo,
        "annotations after it": lambda: document.annotations,
        "file written": document.save,
        "opening": lambda: dh.Document.open(document.scan, document.path).annotations,
        "annotations after one edit": lambda: (document.add(shapely.Point(1, 1)), document.annotations),
    }
    for what, work in works.items():
        begin = time.perf_counter()
        work()
        bench.record(f"{len(keys):,} objects: {what}", (time.perf_counter() - begin) * 1e3, unit="ms")


def limit(bench: Bench, case: str, milliseconds: list[float], most: float) -> None:
    """Add the median, and the 95th percentile beside what is allowed."""
    bench.record(f"{case}, p50", float(np.median(milliseconds)), unit="ms")
    value = float(np.percentile(milliseconds, 95))
    bench.record(f"{case}, p95", value, most, peer_name=f"limit: {most:g} ms", unit="ms", goal=1.0)
