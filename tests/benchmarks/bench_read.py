"""Reading tiles of a JPEG slide: each tile once per pass, fresh readers, side by side with every reader installed."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from harness import Bench, Peer, main

from dhlab import phantoms
from dhlab.io import open as open_scan

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from numpy.typing import NDArray

TILE, BATCH, SAMPLED = 256, 64, 8
SHIFT = (100, 77)
Corners = list[tuple[int, int]]


def measure(bench: Bench) -> None:
    """Measure tile reading of a whole-slide JPEG pyramid against the readers in use."""
    side = bench.arguments.side
    with tempfile.TemporaryDirectory() as folder:
        path = write_slide(Path(folder) / "slide.svs", side)
        count = side // TILE
        corners = [(y * TILE, x * TILE) for y in range(count) for x in range(count)]
        print(f"slide: {side} × {side} px, {len(corners)} tiles of {path.stat().st_size / len(corners) / 1e3:.1f} kB")
        shuffled = [corners[i] for i in np.random.default_rng(3).permutation(len(corners))]
        bench.compare(
            "aligned tiles, random order",
            reader(path, shuffled, BATCH),
            [
                *slide_peers(path, shuffled, (3.3, 1.25, 1.0)),
                Peer("bare libjpeg-turbo", floor(path, shuffled), 0.95, "simplejpeg", same),
            ],
            work=len(corners),
            unit="tiles/s",
        )
        unaligned = [(y + SHIFT[0], x + SHIFT[1]) for y, x in corners if max(y, x) + TILE < side]
        blocks = sorted(unaligned, key=lambda c: (c[0] // (16 * TILE), c[1] // (16 * TILE), c))
        for name, order, batch in (
            ("unaligned, rows, batches of 256", unaligned, 256),
            ("unaligned, blocks of 16 × 16", blocks, 256),
            ("unaligned, random order, batches of 256", np.random.default_rng(4).permutation(unaligned).tolist(), 256),
        ):
            bench.compare(
                name,
                reader(path, order, batch),
                slide_peers(path, order, (4.0, None, None)),
                work=len(order),
                unit="tiles/s",
            )
        full = reader(path, shuffled, BATCH)
        for level, goal in ((1, 1.5), (2, 1.8), (3, 2.0)):
            peers = [
                Peer("full size", functools.partial(lambda run: run, full), goal),
                Peer("bare libjpeg-turbo", floor(path, shuffled, 2**level), 0.95, "simplejpeg", same),
            ]
            scaled = reader(path, shuffled, BATCH, level)
            bench.compare(f"at 1/{2**level} by DCT scaling", scaled, peers, work=len(corners), unit="tiles/s")
        measure_opening(bench, path)
    measure_memory(bench)


def measure_opening(bench: Bench, path: Path) -> None:
    """Time from a closed file to the first pixels, after import."""

    def ours() -> Any:
        return open_scan(path).read((4 * TILE, 4 * TILE), (TILE, TILE))

    def with_openslide() -> Callable[[], Any]:
        import openslide

        def run() -> Any:
            with openslide.OpenSlide(path) as slide:
                return np.asarray(slide.read_region((4 * TILE, 4 * TILE), 0, (TILE, TILE)).convert("RGB"))

        return run

    def with_tifffile() -> Callable[[], Any]:
        import tifffile

        def run() -> Any:
            with tifffile.TiffFile(path) as file:
                page = file.pages[0]
                index = 4 * -(-page.imagewidth // TILE) + 4
                file.filehandle.seek(page.dataoffsets[index])
                data = file.filehandle.read(page.databytecounts[index])
                return page.decode(data, index, jpegtables=page.jpegtables)[0][0]

        return run

    least = bench.compare(
        "open to first tile",
        ours,
        [
            Peer("openslide", with_openslide, package="openslide-python", check=same),
            Peer("tifffile", with_tifffile, package="tifffile", check=same),
        ],
    )
    bench.record("open to first tile", least["dhlab"] * 1e3, 1.0, peer_name="limit: 1 ms", unit="ms", goal=1.0)


def measure_memory(bench: Bench) -> None:
    """Peak memory of a process that reads every tile of a slide, of two sizes."""
    peaks = {}
    for side in (4096, 16384):
        with tempfile.TemporaryDirectory() as folder:
            path = write_slide(Path(folder) / "slide.svs", side)
            answer = subprocess.run(
                [sys.executable, __file__, "--peak-of", path], capture_output=True, text=True, check=True
            )
            peaks[side] = float(answer.stdout)
    bench.record(
        "peak memory, 16 times the pixels", peaks[16384], peaks[4096], peer_name="4096 px slide", unit="MiB", goal=0.95
    )


def print_peak(path: Path) -> None:
    """Read a slide tile by tile and print the peak memory of this process in MiB."""
    scan = open_scan(path)
    corners = [(y, x) for y in range(0, scan.shape[0], TILE) for x in range(0, scan.shape[1], TILE)]
    reader(path, corners, BATCH)()
    # The kernel's own high-water mark: getrusage would report the parent's memory from before the exec.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024)


def write_slide(path: Path, side: int) -> Path:
    """Write a square slide full of tissue, 4:2:0 JPEG at quality 80, as scanners do."""
    image, truth = phantoms.paint_slide((2048, 2048), rng=1, spacing=0.25, whole=True)
    slide = phantoms.LargeSlide((side, side, 3), image, image, truth, np.ones((2, 2), np.float32))
    return phantoms.write_slide(path, slide, tile=TILE, levels=(1, 16), quality=80)


def reader(path: Path, corners: Corners, batch: int, level: int = 0) -> Callable[[], NDArray[Any]]:
    """Return our pass: opens the slide, reads windows in batches into one reused array, returns the first few."""
    size = TILE // 2**level
    out = np.empty((batch, size, size, 3), np.uint8)

    def run() -> NDArray[Any]:
        scan = open_scan(path)
        first: NDArray[Any] | None = None
        for start in range(0, len(corners), batch):
            part = corners[start : start + batch]
            found = scan.read_many(part, (size, size), level, out=out[: len(part)])
            if first is None:
                first = found[:SAMPLED].copy()
        assert first is not None
        return first

    return run


def slide_peers(path: Path, corners: Corners, goals: tuple[float | None, float | None, float | None]) -> list[Peer]:
    """Return the readers that people use, each opening the slide anew in every pass."""

    def collect(read: Callable[[int, int], NDArray[Any]]) -> NDArray[Any]:
        first = [read(y, x) for y, x in corners[:SAMPLED]]
        for y, x in corners[SAMPLED:]:
            read(y, x)
        return np.stack(first)

    def with_openslide() -> Callable[[], Any]:
        import openslide

        def run() -> Any:
            with openslide.OpenSlide(path) as slide:
                return collect(lambda y, x: np.asarray(slide.read_region((x, y), 0, (TILE, TILE)).convert("RGB")))

        return run

    def with_fastslide() -> Callable[[], Any]:
        import fastslide

        def run() -> Any:
            slide = fastslide.FastSlide.from_file_path(str(path))
            return collect(lambda y, x: slide.read_region((x, y), 0, (TILE, TILE)).numpy())

        return run

    def with_pyvips() -> Callable[[], Any]:
        import pyvips

        pyvips.cache_set_max(0)

        def run() -> Any:
            region = pyvips.Region.new(pyvips.Image.new_from_file(str(path), access="random"))
            return collect(lambda y, x: np.frombuffer(region.fetch(x, y, TILE, TILE), np.uint8).reshape(TILE, TILE, -1))

        return run

    def with_tiffslide() -> Callable[[], Any]:
        import tiffslide

        def run() -> Any:
            with tiffslide.TiffSlide(path) as slide:
                return collect(lambda y, x: slide.read_region((x, y), 0, (TILE, TILE), as_array=True))

        return run

    return [
        Peer("openslide", with_openslide, goals[0], "openslide-python", same),
        Peer("fastslide", with_fastslide, goals[1], "fastslide", alike),
        Peer("pyvips", with_pyvips, goals[2], "pyvips", alike),
        Peer("tiffslide", with_tiffslide, None, "tiffslide", alike),
    ]


def floor(path: Path, corners: Corners, factor: int = 1) -> Callable[[], Callable[[], Any]]:
    """Return the physical limit: a plain loop that decodes mapped bytes into one array, and does nothing else."""

    def make() -> Callable[[], Any]:
        import mmap

        import simplejpeg
        import tifffile

        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            offsets, counts, tables = page.dataoffsets, page.databytecounts, page.jpegtables
            across = -(-page.imagewidth // TILE)
        header = tables[:-2] if tables else b"\xff\xd8"

        size = TILE // factor
        scaling = {} if factor == 1 else {"min_height": size, "min_width": size}
        out = np.empty((BATCH, size, size, 3), np.uint8)

        def run() -> Any:
            first = None
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                for number, (y, x) in enumerate(corners):
                    index = y // TILE * across + x // TILE
                    offset = offsets[index]
                    data = header + mapped[offset + 2 : offset + counts[index]]
                    simplejpeg.decode_jpeg(data, "RGB", buffer=out[number % BATCH], **scaling)
                    if number == SAMPLED - 1:
                        first = out[:SAMPLED].copy()
            return first

        return run

    return make


def same(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    """Demand identical pixels."""
    assert np.array_equal(ours, theirs), f"pixels differ by up to {np.abs(ours.astype(int) - theirs).max()}"


def alike(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    """Demand the same place; some readers smooth the chroma otherwise."""
    difference = np.abs(ours.astype(int) - theirs[..., :3])
    assert difference.mean() < 5, f"pixels differ by {difference.mean():.1f} on average"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's own arguments."""
    parser.add_argument("--side", type=int, default=8192, help="side of the slide in pixels (default: 8192)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak-of"]:
        print_peak(Path(sys.argv[2]))
    else:
        main(
            "read",
            measure,
            tests=["tests/io/test_tiff.py::TestPixels", "tests/io/test_tiff.py::TestLevels"],
            options=add_options,
        )
