"""OME-Zarr: 256 px tiles of H&E into the caller's batch, against zarr-python and tensorstore on the same shards."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from harness import Bench, Peer, main

from dhlab.errors import NotFoundError
from dhlab.io.chunks import ZarrArray
from dhlab.io.omezarr import ZarrLevel, read, write
from dhlab.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

TILE, SIDE = 256, 2048


def tissue() -> NDArray[np.uint8]:
    """Return 2048 x 2048 pixels of the real skin slide, else of a phantom."""
    try:
        from dhlab.samples import sample

        scan = sample("skin-slide")
        return scan.read([(n - SIDE) // 2 for n in scan.shape], (SIDE, SIDE))
    except NotFoundError:
        from dhlab.phantoms import paint_slide

        return paint_slide((SIDE, SIDE), whole=True)[0]


def corners(kind: str) -> NDArray[np.int64]:
    rng = np.random.default_rng(0)
    count = (SIDE // TILE) ** 2
    if kind == "aligned":
        grid = np.stack(np.meshgrid(*[np.arange(0, SIDE, TILE)] * 2, indexing="ij"), -1).reshape(-1, 2)
        return rng.permutation(grid)
    return rng.integers(0, SIDE - TILE, (count, 2))


def zarr_python(array: Path, starts: NDArray[np.int64]) -> Callable[[], Any]:
    import zarr

    zarr.config.set({"async.concurrency": 1, "threading.max_workers": 1})
    stored = zarr.open_array(str(array), mode="r")
    out = np.empty((len(starts), TILE, TILE, 3), np.uint8)

    def run() -> NDArray[np.uint8]:
        for window, (y, x) in zip(out, starts.tolist(), strict=True):
            window[...] = np.moveaxis(stored[:, y : y + TILE, x : x + TILE], 0, -1)
        return out

    return run


def bare_tensorstore(array: Path, starts: NDArray[np.int64], threads: int) -> Callable[[], Any]:
    import tensorstore as ts

    limits = {"limit": threads}
    context = ts.Context({"data_copy_concurrency": limits, "file_io_concurrency": limits})
    store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(array)}, "recheck_cached_data": "open"}
    view = ts.open(store, open=True, context=context).result().transpose([1, 2, 0])
    out = np.empty((len(starts), TILE, TILE, 3), np.uint8)

    def run() -> NDArray[np.uint8]:
        pending = [
            ts.array(window, copy=False, write=True).write(view[y : y + TILE, x : x + TILE])
            for window, (y, x) in zip(out, starts.tolist(), strict=True)
        ]
        for one in pending:
            one.result()
        return out

    return run


def measure(bench: Bench) -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-omezarr-"))
    try:
        image = tissue()
        for compression in ("zstd", "none"):
            path = folder / f"{compression}.ome.zarr"
            write(
                Scan.from_array(image, "yxc", spacing=0.5, unit="µm", fill=255),
                path,
                tile=TILE,
                compression=compression,
            )
            for kind in ("aligned", "unaligned"):
                compare(bench, f"{kind}, {compression}", path, corners(kind), "yxc")
        planar = folder / "planar.ome.zarr"
        write(Scan.from_array(np.ascontiguousarray(np.moveaxis(image, -1, 0)), "cyx"), planar, tile=TILE)
        compare(bench, "aligned, planar file of others", planar, corners("aligned"), "yxc")
        bench.compare("open and first tile", lambda: read(folder / "zstd.ome.zarr").read((512, 512), (TILE, TILE)))
        scan, target = Scan.from_array(image, "yxc", fill=255), folder / "again.ome.zarr"
        megabytes = image.nbytes / 1e6
        bench.compare(
            "save with its levels", lambda: write(scan, target, tile=TILE),
            [Peer("zarr-python, level 0 only", lambda: zarr_save(image, folder / "peer.zarr"), package="zarr")],
            work=megabytes, unit="MB/s",
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)


def compare(bench: Bench, case: str, path: Path, starts: NDArray[np.int64], axes: str) -> None:
    level = ZarrLevel(ZarrArray(path / "0", complete=True), "cyx", axes)
    out = np.empty((len(starts), TILE, TILE, 3), np.uint8)

    def ours() -> NDArray[np.uint8]:
        level.read_windows(starts, (TILE, TILE), out)
        return out

    array, threads = path / "0", bench.arguments.threads
    bench.compare(
        case,
        ours,
        [
            Peer("zarr-python", lambda: zarr_python(array, starts), 2.5, "zarr", np.testing.assert_array_equal),
            Peer(
                "tensorstore",
                lambda: bare_tensorstore(array, starts, threads),
                0.9,
                "tensorstore",
                np.testing.assert_array_equal,
            ),
        ],
        work=len(starts),
        unit="tiles/s",
    )


def zarr_save(image: NDArray[np.uint8], path: Path) -> Callable[[], Any]:
    import zarr
    from zarr.codecs import ZstdCodec

    planar = np.moveaxis(image, -1, 0)

    def run() -> None:
        array = zarr.create_array(
            str(path), shape=planar.shape, chunks=(3, TILE, TILE), shards=(3, SIDE, SIDE), dtype="uint8",
            compressors=ZstdCodec(level=1), zarr_format=3, overwrite=True,
        )  # fmt: skip
        array[...] = planar

    return run


if __name__ == "__main__":
    main("omezarr", measure, tests=["tests/io/test_omezarr.py"])
