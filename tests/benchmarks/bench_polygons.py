"""Polygons to disk and back: GeoJSON and GeoParquet streamed, beside the usual libraries on the same polygons.

The peers hold everything in memory and are slow, so they take fewer polygons (``--peer-count``) and all are compared
as polygons per second. ``--count`` sets how many ours streams for the goals: one million to disk in 20 s and back in
15 s, with flat memory.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from harness import ROOT, Bench, Peer, main

from dhlab.annotations import Annotations, read_geojson_chunks, write_geojson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK = 20_000
WRITE_GOAL, READ_GOAL = 20.0, 15.0  # seconds for a million


def nuclei(count: int, seed: int) -> Annotations:
    """Return detections of 12 to 30 vertices with a class and a score, as a nucleus segmentation makes them."""
    rng = np.random.default_rng(seed)
    vertices = rng.integers(12, 31, count)
    starts = np.append(0, np.cumsum(vertices + 1))
    place = np.arange(starts[-1]) - np.repeat(starts[:-1], vertices + 1)
    angle = 2 * np.pi * place / np.repeat(vertices, vertices + 1)
    radius = 12 * rng.uniform(0.8, 1.2, len(angle))
    ring = np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None]
    points = np.round(np.repeat(rng.uniform(50, 100_000, (count, 2)), vertices + 1, axis=0) + ring, 2)
    points[starts[1:] - 1] = points[starts[:-1]]
    shapes = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (starts, np.arange(count + 1)))
    return Annotations(
        shapes,
        classes=rng.integers(0, 3, count).astype(np.int32),
        class_names=("epithelial", "lymphocyte", "stromal"),
        scores=np.round(rng.random(count), 4),
        kinds=np.full(count, "detection", object),
    )


def chunks(count: int) -> Iterator[Annotations]:
    """Yield the polygons in chunks, the same ones every time."""
    for first in range(0, count, CHUNK):
        yield nuclei(min(CHUNK, count - first), first)


def stream(action: str, count: int, path: str, clock: str) -> None:
    """Write or read polygons, and print seconds (the making of polygons apart) and peak memory."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    made, begin = 0.0, now()
    if action == "write":

        def timed() -> Iterator[Annotations]:
            nonlocal made
            for first in range(0, count, CHUNK):
                before = now()
                part = nuclei(min(CHUNK, count - first), first)
                made += now() - before
                yield part

        write_geojson(path, timed())
    else:
        assert sum(map(len, read_geojson_chunks(path))) == count
    seconds = now() - begin - made
    # Not ru_maxrss: a process inherits that of its parent.
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    print(json.dumps({"seconds": seconds, "peak": int(peak[1]) / 1024 if peak else float("nan")}))


def in_a_process(action: str, count: int, path: Path, clock: str) -> dict[str, float]:
    """Run `stream` in a fresh process, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--stream", action, str(count), str(path), clock]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return dict(json.loads(answer.stdout))


def equal(ours: Any, theirs: Any) -> None:
    """Assert that both hold the same polygons."""
    ours, theirs = (np.asarray(getattr(v, "geometries", v), object) for v in (ours, theirs))
    assert len(ours) == len(theirs)
    assert shapely.equals_exact(ours, theirs, 1e-9).all()


def same_file(ours: Path, theirs: Path) -> None:
    """Assert that both files hold the same polygons."""
    equal(Annotations.from_geojson(ours), Annotations.from_geojson(theirs))


def collection(zones: Annotations) -> dict[str, Any]:
    """Return what a script would build for json.dump: mappings and lists."""
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "id": zone.id,
                "geometry": shapely.geometry.mapping(zone.geometry),
                "properties": {
                    "objectType": zone.kind,
                    "classification": {"name": zone.class_name, "color": zone.color},
                    "measurements": {"score": zone.score},
                },
            }
            for zone in zones
        ],
    }


def measure(bench: Bench) -> None:
    """Measure writing, reading, memory and drawing."""
    few, many, clock = bench.arguments.peer_count, bench.arguments.count, bench.arguments.clock
    zones = Annotations.concat(list(chunks(few)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, packed = folder / "ours.geojson", folder / "ours.parquet"
        zones.to_parquet(packed)

        def json_write() -> Callable[[], Path]:
            def run() -> Path:
                with (folder / "json.geojson").open("w") as file:
                    json.dump(collection(zones), file)
                return folder / "json.geojson"

            return run

        def geopandas_write() -> Callable[[], Path]:
            import warnings

            import geopandas

            warnings.filterwarnings("ignore", "'crs' was not provided")  # pixels have none
            frame = geopandas.GeoDataFrame(
                {
                    "objectType": zones.kinds,
                    "class": [zones.class_names[i] for i in zones.classes],
                    "score": zones.scores,
                },
                geometry=zones.geometries,
            )

            def run() -> Path:
                frame.to_file(folder / "geopandas.geojson", driver="GeoJSON", COORDINATE_PRECISION=2)
                return folder / "geopandas.geojson"

            return run

        bench.compare(
            f"write GeoJSON, {few:,}",
            lambda: write_geojson(path, zones),
            [
                Peer("json + shapely", json_write, package="shapely", check=same_file),
                Peer("geopandas", geopandas_write, package="geopandas", check=same_file),
            ],
            work=few,
            unit="polygons/s",
        )

        def json_read() -> Callable[[], list[Any]]:
            def run() -> list[Any]:
                with path.open() as file:
                    return [shapely.geometry.shape(f["geometry"]) for f in json.load(file)["features"]]

            return run

        def geopandas_read() -> Callable[[], Any]:
            import geopandas

            return lambda: geopandas.read_file(path).geometry.to_numpy()

        bench.compare(
            f"read GeoJSON, {few:,}",
            lambda: Annotations.from_geojson(path),
            [
                Peer("json + shapely", json_read, package="shapely", check=equal),
                Peer("geopandas", geopandas_read, package="geopandas", check=equal),
            ],
            work=few,
            unit="polygons/s",
        )

        def parquet_read() -> Callable[[], Any]:
            import geopandas

            return lambda: geopandas.read_parquet(packed).geometry.to_numpy()

        bench.compare(
            f"read GeoParquet, {few:,}",
            lambda: Annotations.from_parquet(packed),
            [Peer("geopandas", parquet_read, package="geopandas", check=equal)],
            work=few,
            unit="polygons/s",
        )

        large = folder / "large.geojson"
        for action, goal in (("write", WRITE_GOAL), ("read", READ_GOAL)):
            small = in_a_process(action, min(CHUNK, many), folder / "small.geojson", clock)
            runs = [in_a_process(action, many, large, clock) for _ in range(min(2, bench.arguments.rounds))]
            best = min(run["seconds"] for run in runs)
            case = f"{action} {many:,} polygons, streamed"
            bench.record(case, best, goal * many / 1e6, peer_name="goal", unit="s", goal=1.0)
            peak = runs[0]["peak"]
            bench.record(f"{case}: peak memory", peak, small["peak"], peer_name=f"{CHUNK:,} polygons", unit="MiB")
        bench.record("file size", large.stat().st_size / 2**20, unit="MiB")


def options(parser: argparse.ArgumentParser) -> None:
    """Add how many polygons to take."""
    parser.add_argument("--count", type=int, default=1_000_000, help="polygons streamed (default: 1000000)")
    parser.add_argument("--peer-count", type=int, default=50_000, help="polygons given to peers (default: 50000)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stream"]:
        stream(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
    else:
        main("polygons", measure, tests=["tests/annotations"], rounds=3, options=options)
