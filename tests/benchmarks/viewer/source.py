"""Tiles at their source, before any transport: stored ones passed on undecoded, beside large_image."""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from bench_read import TILE, write_slide
from harness import Bench

from dhlab.io import open as open_scan
from dhlab.view.tiles import TileSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

TESTS = ["tests/io/test_jpeg.py", "tests/view/test_tiles.py"]
SIDE = 4096
LIMITS_MS = {50: 0.1, 95: 0.3}
# Row and column of a tile to its bytes; a maker opens the slide anew, so that nothing is kept from the round before.
Tiles = "Callable[[int, int], bytes]"


def measure(bench: Bench) -> None:
    """Time every stored tile of a slide once a round, in random order."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_slide(Path(folder) / "slide.svs", SIDE)
        count = SIDE // TILE
        order = [divmod(int(i), count) for i in np.random.default_rng(3).permutation(count * count)]
        makers: dict[str, Callable[[Path], Callable[[int, int], bytes]]] = {"dhlab": ours}
        for name, maker in (("large_image (openslide)", with_openslide), ("large_image (tiff)", with_tiff)):
            try:
                check(maker(path), ours(path))
                makers[name] = maker
            except ImportError as error:
                print(f"  {name}: absent ({error})")
        seconds: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(bench.arguments.rounds):
            for name, maker in makers.items():
                get = maker(path)
                for place in order:
                    begin = time.perf_counter()
                    get(*place)
                    seconds[name].append(time.perf_counter() - begin)
    for percent, limit in LIMITS_MS.items():
        value = {name: float(np.percentile(times, percent)) * 1e3 for name, times in seconds.items()}
        case = f"stored tile at the source, p{percent}"
        bench.record(case, value["dhlab"], limit, peer_name=f"limit: {limit:g} ms", unit="ms", goal=1.0)
        goal = 15.0 if percent == 50 else None
        for name in ("large_image (openslide)", "large_image (tiff)"):
            bench.record(
                case,
                value["dhlab"],
                value.get(name),
                peer_name=name,
                unit="ms",
                goal=goal if "openslide" in name else None,
                package="large-image",
            )


def ours(path: Path) -> Callable[[int, int], bytes]:
    """Return dhlab's tiles."""
    source = TileSource(open_scan(path))
    assert source.tile_shape(0) == (TILE, TILE)
    return lambda row, column: source.encode(0, row, column)[0]


def with_openslide(path: Path) -> Callable[[int, int], bytes]:
    """Return large_image's tiles as OpenSlide reads them, encoded anew."""
    from large_image_source_openslide import OpenslideFileTileSource

    source = OpenslideFileTileSource(str(path), noCache=True)
    return lambda row, column: bytes(source.getTile(column, row, source.levels - 1))


def with_tiff(path: Path) -> Callable[[int, int], bytes]:
    """Return large_image's tiles through libtiff, which passes stored ones on as well."""
    from large_image_source_tiff import TiffFileTileSource

    source = TiffFileTileSource(str(path), noCache=True)
    return lambda row, column: bytes(source.getTile(column, row, source.levels - 1))


def check(one: Callable[[int, int], bytes], other: Callable[[int, int], bytes]) -> None:
    """Refuse to compare tiles that do not show the same place."""
    for place in ((0, 0), (3, 9), (15, 15)):
        difference = np.abs(decode(one(*place)).astype(int) - decode(other(*place)))
        assert difference.mean() < 4, f"tile {place} differs by {difference.mean():.1f} on average"


def decode(data: bytes) -> NDArray[np.uint8]:
    """Return an encoded tile's pixels, ``(height, width, 3)``."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
