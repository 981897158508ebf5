"""OME-Zarr comes back as it went out, is valid for others, and survives kills, full disks and damage."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import dhlab.io as dio
from dhlab.atomic import process_identity
from dhlab.errors import BadFileError, BadShapeError, BadValueError, ConflictError, NotFoundError, StorageError
from dhlab.io import ownership
from dhlab.io.chunks import ZarrArray
from dhlab.io.omezarr import BandWriter, read, write
from dhlab.io.shards import plan_layout
from dhlab.scan import Scan

if TYPE_CHECKING:
    from collections.abc import Iterator

RNG = np.random.default_rng(7)


def pixels(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return RNG.standard_normal(shape).astype(dtype)
    if dtype == "bool":
        return RNG.random(shape) > 0.5
    info = np.iinfo(dtype)
    return RNG.integers(max(info.min, -2000), min(info.max, 2000), shape, endpoint=True).astype(dtype)


CASES = [
    pytest.param((1, 1, 3), "yxc", "uint8", "image", id="slide-1"),
    pytest.param((63, 127, 3), "yxc", "uint8", "image", id="slide-63"),
    pytest.param((2053, 1031, 3), "yxc", "uint8", "image", id="slide-primes"),
    pytest.param((1031, 2053), "yx", "uint16", "image", id="grey"),
    pytest.param((7, 1033, 63), "cyx", "float32", "heatmap", id="heat"),
    pytest.param((2, 3, 61, 53), "czyx", "float16", "heatmap", id="heat-volume"),
    pytest.param((67, 131, 71), "zyx", "int16", "image", id="volume"),
    pytest.param((5, 23, 29), "tyx", "float64", "image", id="film"),
    pytest.param((19, 100_003), "ct", "float32", "image", id="signal"),
    pytest.param((1009,), "t", "int32", "image", id="trace"),
    pytest.param((1301, 1303), "yx", "bool", "mask", id="mask"),
    pytest.param((1301, 63), "yx", "uint8", "labels", id="labels"),
]


def make_scan(shape: tuple[int, ...], axes: str, dtype: str, kind: str) -> Scan:
    ndim = len(axes.replace("c", ""))
    scan = Scan.from_array(
        pixels(shape, dtype),
        axes,
        spacing=[0.25 * (i + 1) for i in range(ndim)],
        unit="s" if set(axes) <= set("ct") else "µm",
        name="Fall 7 🔬",
        kind=kind,
        channels=[f"Kanal {i}" for i in range(shape[axes.index("c")])] if "c" in axes else (),
        fill=255 if dtype == "uint8" and kind == "image" else 0,
    )
    parent = Scan.from_array(np.zeros((5, 5), np.uint8), "yx", spacing=0.5, unit="µm", name="parent µ").as_parent()
    return scan.replace(origin=tuple(1.5 + i for i in range(ndim)), parent=parent)


def listing(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(("shape", "axes", "dtype", "kind"), CASES)
@pytest.mark.parametrize("compression", ["auto", "none"])
def test_round_trip(tmp_path: Path, shape: Any, axes: str, dtype: str, kind: str, compression: str) -> None:
    scan = make_scan(shape, axes, dtype, kind)
    path = tmp_path / "two words 🔬.ome.zarr"
    dio.save(scan, path, tile=128, compression=compression)
    back = dio.open(path)
    assert (back.axes, back.spacing, back.unit, back.origin) == (scan.axes, scan.spacing, scan.unit, scan.origin)
    assert (back.channels, back.kind, back.parent, back.fill) == (scan.channels, scan.kind, scan.parent, scan.fill)
    assert back.name == "two words 🔬"
    assert back.scales == scan.scales
    assert back.dtype == (np.uint8 if dtype == "bool" else scan.dtype)
    for ours, theirs in zip(back.levels, scan.levels, strict=True):
        np.testing.assert_array_equal(ours[...], theirs)
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize(("shape", "axes", "dtype", "kind"), CASES)
def test_others_read_and_validate_it(tmp_path: Path, shape: Any, axes: str, dtype: str, kind: str) -> None:
    zarr = pytest.importorskip("zarr")
    models = pytest.importorskip("ome_zarr_models.v05")
    scan = make_scan(shape, axes, dtype, kind)
    write(scan, tmp_path / "a.zarr", tile=128)
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")
    model = models.ImageLabel if kind in ("mask", "labels") else models.Image
    multiscale = model.from_zarr(group).attributes.ome.multiscales[0]
    stored = "".join(a.name for a in multiscale.axes)
    assert stored == "".join(a for a in "tczyx" if a in axes or a in "yx")
    for level, theirs in enumerate(scan.levels):
        array = group[str(level)][...]
        hidden = tuple(i for i, a in enumerate(stored) if a not in axes)
        remaining = "".join(a for a in stored if a in axes)
        np.testing.assert_array_equal(
            array.squeeze(hidden).transpose([remaining.index(a) for a in axes]), np.asarray(theirs)
        )


def test_tensorstore_and_ome_zarr_read_it(tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    reader = pytest.importorskip("ome_zarr.reader")
    location = pytest.importorskip("ome_zarr.io")
    scan = make_scan((1063, 1087, 3), "yxc", "uint8", "image")
    write(scan, tmp_path / "a.ome.zarr", tile=256)
    store = {"driver": "file", "path": str(tmp_path / "a.ome.zarr" / "1")}
    found = tensorstore.open({"driver": "zarr3", "kvstore": store}).result().read().result()
    np.testing.assert_array_equal(np.moveaxis(found, 0, -1), scan.levels[1])
    node = next(iter(reader.Reader(location.parse_url(str(tmp_path / "a.ome.zarr")))()))
    np.testing.assert_array_equal(np.moveaxis(np.asarray(node.data[0]), 0, -1), scan.levels[0])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.filterwarnings("ignore")
def test_read_what_ome_zarr_py_writes(tmp_path: Path, version: str) -> None:
    writer = pytest.importorskip("ome_zarr.writer")
    formats = pytest.importorskip("ome_zarr.format")
    form = {"0.4": formats.FormatV04, "0.5": formats.FormatV05}[version]()
    image = pixels((1, 2, 1, 301, 257), "uint16")
    path = tmp_path / "theirs.ome.zarr"
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}] + [
        {"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"
    ]
    transforms = [
        [
            {"type": "scale", "scale": [1, 1, 1, 250 * f, 500 * f]},
            {"type": "translation", "translation": [0, 0, 0, 1000, 0]},
        ]
        for f in (1, 2)
    ]
    writer.write_multiscale(
        [image, image[..., ::2, ::2]], str(path), fmt=form, axes=axes, coordinate_transformations=transforms
    )
    writer.write_multiscale_labels(
        [(image[0, 0] > 7).astype(np.uint8)], str(path), name="nuclei", axes=axes[2:], fmt=form
    )
    scan = dio.open(path)
    assert scan.meta["format"] == f"OME-Zarr {version}"
    assert (scan.axes, scan.unit) == ("cyx", "µm")
    np.testing.assert_allclose(scan.spacing, (0.25, 0.5))
    np.testing.assert_allclose(scan.origin, (1.0, 0.0))
    assert scan.scales == ((1.0, 1.0), (2.0, 2.0))
    np.testing.assert_array_equal(scan.levels[0][...], image[0, :, 0])
    np.testing.assert_array_equal(scan.levels[1][1, ::-1, 5], image[0, 1, 0, ::2, ::2][::-1, 5])
    labels = dio.open(path, series=1)
    assert (labels.kind, labels.axes) == ("labels", "yx")
    np.testing.assert_array_equal(labels.levels[0][...], image[0, 0, 0] > 7)
    np.testing.assert_array_equal(read(path / "labels" / "nuclei").levels[0][...], labels.levels[0][...])
    with pytest.raises(BadValueError, match=r"series 2 of theirs.ome.zarr; it holds 2: 0 theirs.ome.zarr, 1 nuclei"):
        dio.open(path, series=2)


@pytest.mark.parametrize("compressor", ["blosc", "zstd", "gzip", "zlib", "none"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<u2", ">i2", "|u1", ">f4"])
def test_zarr_2_codings(tmp_path: Path, compressor: str, order: str, dtype: str) -> None:
    zarr = pytest.importorskip("zarr")
    numcodecs = pytest.importorskip("numcodecs")
    codec = {
        "blosc": numcodecs.Blosc("lz4", 5, numcodecs.Blosc.BITSHUFFLE),
        "zstd": numcodecs.Zstd(3),
        "gzip": numcodecs.GZip(1),
        "zlib": numcodecs.Zlib(1),
        "none": None,
    }[compressor]
    image = pixels((37, 53), "uint8").astype(dtype)
    array = zarr.create_array(
        str(tmp_path / "a"), shape=image.shape, chunks=(16, 16), dtype=dtype, zarr_format=2, order=order,
        compressors=codec, fill_value=3,
    )  # fmt: skip
    array[:32] = image[:32]
    expected = image.copy()
    expected[32:] = 3
    found = ZarrArray(tmp_path / "a")
    out = np.empty((1, 40, 60), found.dtype)
    found.read_boxes(np.array([[-2, -3]]), (40, 60), out)
    np.testing.assert_array_equal(out[0], np.pad(expected, ((2, 1), (3, 4)), constant_values=3))


@pytest.mark.parametrize("codec", ["blosc", "gzip", "zstd", "crc32c"])
@pytest.mark.parametrize("sharded", [False, True])
def test_zarr_3_codings(tmp_path: Path, codec: str, sharded: bool) -> None:
    zarr = pytest.importorskip("zarr")
    codecs = pytest.importorskip("zarr.codecs")
    made = {
        "blosc": codecs.BloscCodec(cname="zstd", shuffle="shuffle"),
        "gzip": codecs.GzipCodec(),
        "zstd": codecs.ZstdCodec(level=3),
        "crc32c": codecs.Crc32cCodec(),
    }[codec]
    image = pixels((41, 3, 53), "int16")
    array = zarr.create_array(
        str(tmp_path / "a"), shape=image.shape, chunks=(8, 3, 8), shards=(32, 3, 16) if sharded else None,
        dtype="int16", zarr_format=3, compressors=made, filters=codecs.TransposeCodec(order=(2, 0, 1)),
        serializer=codecs.BytesCodec(endian="big"), fill_value=-7,
    )  # fmt: skip
    array[:, :, :33] = image[:, :, :33]
    image[:, :, 33:] = -7
    found = ZarrArray(tmp_path / "a")
    out = np.empty((1, *image.shape), found.dtype)
    np.testing.assert_array_equal(found.read_boxes(np.zeros((1, 3), np.int64), image.shape, out)[0], image)


def test_windows_like_those_of_memory(tmp_path: Path) -> None:
    scan = make_scan((613, 509, 3), "yxc", "uint8", "image")
    write(scan, tmp_path / "a.zarr", tile=64)
    stored = pickle.loads(pickle.dumps(read(tmp_path / "a.zarr")))
    starts = np.concatenate([RNG.integers(-90, 650, (61, 2)), [[-64, -64], [0, 0], [64, 128], [5000, 5], [-5000, 0]]])
    for size in ((64, 64), (1, 1), (63, 127), (700, 600)):
        found = stored.read_many(starts, size)
        np.testing.assert_array_equal(found, scan.read_many(starts, size))
        assert (found[-1] == 255).all()
    for key in (
        np.s_[5],
        np.s_[..., 1],
        np.s_[::-7, 3:400:5],
        np.s_[-1, -1, -1],
        np.s_[600:700, :, 0:2],
        np.s_[9:9],
        np.s_[5:2],
    ):
        np.testing.assert_array_equal(stored.levels[0][key], scan.levels[0][key])
    with pytest.raises(IndexError):
        stored.levels[0][613]
    with pytest.raises(BadShapeError, match="numbers and slices"):
        stored.levels[0][[1, 2]]


def test_forked_worker_reads_after_its_parent_has(tmp_path: Path) -> None:
    scan = make_scan((300, 300), "yx", "uint8", "image")
    write(scan, tmp_path / "a.zarr", tile=64)
    script = (
        "import os, sys, warnings\nimport numpy as np\nfrom dhlab.io.omezarr import read\n"
        "warnings.simplefilter('ignore')\nscan = read(sys.argv[1])\nfirst = scan.read((0, 0), (300, 300))\n"
        "pid = os.fork()\nif pid == 0:\n"
        "    os._exit(0 if np.array_equal(first, scan.read((0, 0), (300, 300))) else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    environment = {**os.environ, "DHLAB_THREADS": "2"}
    command = [sys.executable, "-c", script, str(tmp_path / "a.zarr")]
    assert subprocess.run(command, check=False, timeout=60, env=environment).returncode == 0


def test_many_threads_read_the_same(tmp_path: Path) -> None:
    scan = make_scan((400, 400, 3), "yxc", "uint8", "image")
    write(scan, tmp_path / "a.zarr", tile=64)
    stored = read(tmp_path / "a.zarr")
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(12):
            starts = rng.integers(-20, 400, (9, 2))
            if not np.array_equal(stored.read_many(starts, (70, 50)), scan.read_many(starts, (70, 50))):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_spacing_override_and_missing_unit(tmp_path: Path) -> None:
    write(Scan.from_array(pixels((30, 40), "uint8"), "yx"), tmp_path / "a.zarr")
    scan = read(tmp_path / "a.zarr")
    assert (scan.spacing, scan.unit) == ((1.0, 1.0), "px")
    scan = read(tmp_path / "a.zarr", spacing=0.5)
    assert (scan.spacing, scan.unit, scan.meta["spacing_source"]) == ((0.5, 0.5), "µm", "override")
    assert read(tmp_path / "a.zarr", spacing=(0.5, 0.75)).spacing == (0.5, 0.75)
    for bad in (0, -1, float("nan"), float("inf"), (1, 2, 3)):
        with pytest.raises(BadValueError, match="spacing"):
            read(tmp_path / "a.zarr", spacing=bad)


def test_rgb_of_others_comes_as_colour(tmp_path: Path) -> None:
    scan = make_scan((61, 67, 3), "yxc", "uint8", "image")
    write(scan, tmp_path / "a.zarr")
    place = tmp_path / "a.zarr" / "zarr.json"
    meta = json.loads(place.read_text())
    del meta["attributes"]["dhlab"]
    place.write_text(json.dumps(meta))
    foreign = read(tmp_path / "a.zarr")
    assert foreign.axes == "yxc"
    np.testing.assert_array_equal(foreign.levels[0][...], scan.levels[0])
    for channel in meta["attributes"]["ome"]["omero"]["channels"]:
        channel["color"] = "FFFFFF"
    place.write_text(json.dumps(meta))
    assert read(tmp_path / "a.zarr").axes == "cyx"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "a.ome.zarr"
    write(make_scan((1200, 1100, 3), "yxc", "uint8", "image"), path, tile=32)
    assert len(list((path / "0" / "c").rglob("*"))) > 4
    return path


def shards_of(path: Path, level: int = 0) -> list[Path]:
    return sorted(p for p in (path / str(level) / "c").rglob("*") if p.is_file())


def test_lost_shard_is_named(stored: Path) -> None:
    shards_of(stored)[1].unlink()
    scan = dio.open(stored)
    assert scan.read((0, 0), (10, 10)).shape == (10, 10, 3)
    with pytest.raises(BadFileError, match=r"shard c/0/0/1 of .*a.ome.zarr/0 is lost: \d+ were written. Copy"):
        scan.thumbnail() if len(scan.levels) == 1 else scan.levels[0][...]


@pytest.mark.parametrize("damage", ["cut", "flip", "index", "empty"])
def test_damaged_shard_is_named(stored: Path, damage: str) -> None:
    shard = shards_of(stored)[0]
    data = bytearray(shard.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[1000] ^= 16
    elif damage == "index":
        data[-10] ^= 1
    else:
        data = bytearray()
    shard.write_bytes(data)
    scan = dio.open(stored)
    with pytest.raises(BadFileError, match=r"0/c/0/0/0.*(damaged|cut off).*[Cc]opy it again"):
        scan.levels[0][...]


def test_level_of_another_dtype_or_shape(stored: Path) -> None:
    place = stored / "1" / "zarr.json"
    meta = json.loads(place.read_text())
    place.write_text(json.dumps({**meta, "data_type": "uint16"}))
    with pytest.raises(BadFileError, match="level 1 of .* has dtype uint16; expected uint8 as in level 0"):
        dio.open(stored)
    place.write_text(json.dumps({**meta, "shape": [600, 550]}))
    with pytest.raises(BadFileError, match=r"cannot understand|shape \(600, 550\); expected 3 axes 'cyx'"):
        dio.open(stored)
    shutil.rmtree(stored / "1")
    with pytest.raises(BadFileError, match="level 1 of .* is missing"):
        dio.open(stored)


def rewrite(path: Path, change: Any) -> None:
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["attributes"]["ome"].update(version="0.7"), "is OME-Zarr 0.7; dhlab reads 0.4 and 0.5"),
        (lambda m: m["attributes"].pop("ome"), "group without multiscales metadata; it holds 0, 1"),
        (lambda m: m["attributes"]["ome"].update(multiscales=[{}]), "cannot understand its multiscales"),
        (lambda m: m["attributes"]["ome"]["multiscales"][0].update(datasets=[]), "names no dataset"),
        (lambda m: m["attributes"]["ome"]["multiscales"][0]["axes"][0].update(name="q"), "axes .* expected distinct"),
        (lambda m: m["attributes"]["ome"]["multiscales"][0]["axes"].pop(), r"cannot understand|expected 2 axes"),
        (
            lambda m: m["attributes"]["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0].update(
                scale=[1, 0, 1]
            ),
            "expected positive numbers",
        ),
    ],
)
def test_bad_metadata(stored: Path, change: Any, message: str) -> None:
    rewrite(stored / "zarr.json", change)
    with pytest.raises(BadFileError, match=message):
        dio.open(stored)


def test_other_things_named_zarr(tmp_path: Path, stored: Path) -> None:
    empty = tmp_path / "empty.zarr"
    empty.mkdir()
    with pytest.raises(BadFileError, match="no zarr metadata .* it holds nothing"):
        dio.open(empty)
    (empty / "photo.png").touch()
    with pytest.raises(BadFileError, match=r"it holds photo.png. Copy the whole folder again, hidden"):
        dio.open(empty)
    (empty / "zarr.json").write_text("{ not json")
    with pytest.raises(BadFileError, match=r"zarr.json: cannot be read as JSON"):
        dio.open(empty)
    shutil.copytree(stored / "0", tmp_path / "array.zarr")
    with pytest.raises(BadFileError, match=r"bare zarr array.*Scan.from_array"):
        dio.open(tmp_path / "array.zarr")
    (tmp_path / "file.zarr").write_text("text")
    with pytest.raises(BadFileError, match="is a file; expected an OME-Zarr folder"):
        dio.open(tmp_path / "file.zarr")
    with pytest.raises(NotFoundError):
        dio.open(tmp_path / "nothing.zarr")


def test_unknown_settings(tmp_path: Path) -> None:
    scan = make_scan((63, 63), "yx", "uint8", "image")
    with pytest.raises(BadValueError, match=r"compression 'jpeg'; OME-Zarr takes 'auto', 'zstd', 'none'"):
        write(scan, tmp_path / "a.zarr", compression="jpeg")
    with pytest.raises(BadValueError, match="dtype complex64"):
        write(Scan.from_array(np.zeros((3, 3), np.complex64), "yx"), tmp_path / "a.zarr")
    assert names(tmp_path) == []


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(tmp_path: Path) -> None:
    scan = make_scan((900, 900, 3), "yxc", "uint8", "image")
    with mounted(tmp_path, "size=1m"):
        with pytest.raises(StorageError, match=r"cannot write 'a.ome.zarr' into .*disk is full.*Free some space"):
            dio.save(scan, tmp_path / "a.ome.zarr")
        assert names(tmp_path) == []
        writer = make_writer(tmp_path / "h.zarr", heat(shape=(4, 700, 300)))
        with pytest.raises(StorageError, match=r"'h.zarr'.*disk is full.*finished bands are kept"):
            write_all(writer, heat(shape=(4, 700, 300)))
        assert len(writer.done) > 0
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path)], check=True)
        write_all(writer, heat(shape=(4, 700, 300)))
        np.testing.assert_array_equal(read(tmp_path / "h.zarr").levels[0][...], heat(shape=(4, 700, 300)))


def test_read_only_folder(tmp_path: Path) -> None:
    scan = make_scan((63, 63), "yx", "uint8", "image")
    with mounted(tmp_path, "ro"):
        with pytest.raises(StorageError, match="'a.zarr' into .*read-only. Write elsewhere"):
            dio.save(scan, tmp_path / "a.zarr")
        with pytest.raises(StorageError, match="'a.zarr' into .*read-only. Write elsewhere"):
            make_writer(tmp_path / "a.zarr", heat())


def test_failing_source_leaves_nothing(tmp_path: Path) -> None:
    class Broken:
        shape, dtype = (300, 300), np.dtype(np.uint8)

        def __getitem__(self, key: Any) -> Any:
            raise BadFileError("tile 3 is damaged")

    write(make_scan((63, 63), "yx", "uint8", "image"), tmp_path / "a.zarr")
    before = listing(tmp_path)
    with pytest.raises(BadFileError, match="tile 3"):
        dio.save(Scan((Broken(),), "yx", (1, 1)), tmp_path / "a.zarr", overwrite=True)
    assert listing(tmp_path) == before


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path) -> None:
    """A scan of 860 MB that exists nowhere is written by a process that grows by far less than that."""
    script = (
        "import resource, sys\nimport numpy as np\nfrom dhlab.io.omezarr import write\nfrom dhlab.scan import Scan\n"
        "class Endless:\n    shape, dtype = (16896, 16896, 3), np.dtype(np.uint8)\n"
        "    def __getitem__(self, key):\n"
        "        y, x = (np.arange(k.start, k.stop).astype(np.uint8) for k in key[:2])\n"
        "        return np.broadcast_to((y[:, None] + x)[..., None], (len(y), len(x), 3))\n"
        "write(Scan((Endless(),), 'yxc', (1, 1)), sys.argv[2], tile=512) if len(sys.argv) > 2 else None\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )

    def peak(*arguments: str) -> int:
        command = [sys.executable, "-c", script, "x", *arguments]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    grown = peak(str(tmp_path / "a.zarr")) - peak()
    assert grown < 300_000, f"{grown} kB for a scan of 836,352 kB"
    scan = read(tmp_path / "a.zarr")
    assert scan.read((16000, 11000), (1, 2)).tolist() == [[[(16000 + 11000) % 256] * 3, [(16000 + 11001) % 256] * 3]]


@pytest.mark.parametrize("band", [None, 1])
@pytest.mark.parametrize("tile", [128, 256, 512])
def test_layout_keeps_files_few_and_memory_small(tile: int, band: int | None) -> None:
    layout = plan_layout((4, 40_000, 60_000), "cyx", np.dtype("f4"), tile=tile, band=band)
    assert all(s % c == 0 for s, c in zip(layout.shard, layout.encoding.chunk, strict=True))
    assert np.prod(layout.shard) * 4 <= 64 << 20
    assert np.prod(layout.grid) <= 5000
    if band is not None:
        assert 4 * layout.shard[1] * 60_000 * 4 <= 512 << 20


def heat(seed: int = 3, shape: tuple[int, ...] = (3, 331, 257)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def make_writer(path: Path, array: np.ndarray, axes: str = "cyx", **changes: Any) -> BandWriter:
    window = axes.replace("c", "")
    settings: dict[str, Any] = {
        "shape": array.shape,
        "axes": axes,
        "dtype": array.dtype,
        "spacing": (2.0,) * len(window),
        "unit": "µm",
        "channels": [f"class {i}" for i in range(array.shape[axes.index("c")])] if "c" in axes else (),
        "tile": 32,
        "fingerprint": {"model": "unet", "weights": "abc", "overlap": 0.25},
    }
    return BandWriter.create(path, **(settings | changes))


def band_of(writer: BandWriter, array: np.ndarray, index: int, axis: int = 1) -> np.ndarray:
    cut = [slice(None)] * array.ndim
    cut[axis] = slice(index * writer.band_height, (index + 1) * writer.band_height)
    return array[tuple(cut)]


def write_all(writer: BandWriter, array: np.ndarray, axis: int = 1) -> None:
    for index in range(writer.bands):
        if index not in writer.done:
            writer.write_band(index, band_of(writer, array, index, axis))
    writer.finish()


@pytest.mark.parametrize(
    ("shape", "axes", "kind", "dtype"),
    [
        ((3, 331, 257), "cyx", "heatmap", "float32"),
        ((1, 1, 1), "cyx", "heatmap", "float32"),
        ((2111, 63), "yx", "labels", "uint8"),
        ((67, 63, 61), "zyx", "mask", "uint8"),
        ((2, 67, 31, 61), "czyx", "heatmap", "float16"),
        ((5, 20_011), "ct", "heatmap", "float32"),
        ((63, 131, 3), "yxc", "image", "uint8"),
    ],
)
def test_bands_make_what_write_makes(tmp_path: Path, shape: Any, axes: str, kind: str, dtype: str) -> None:
    array = pixels(shape, dtype)
    scan = Scan.from_array(array, axes, kind=kind)
    axis = axes.index(axes.replace("c", "")[0])
    with make_writer(tmp_path / "a b 🔬.ome.zarr", array, axes, kind=kind, name="n") as writer:
        assert writer.bands == -(-shape[axis] // writer.band_height)
        assert writer.band_shape(0)[axis] == min(shape[axis], writer.band_height)
        for index in reversed(range(writer.bands)):
            writer.write_band(index, band_of(writer, array, index, axis))
        assert writer.done == set(range(writer.bands))
        assert not writer.path.exists()
        writer.finish()
    back = dio.open(tmp_path / "a b 🔬.ome.zarr")
    assert (back.axes, back.kind) == (axes, kind)
    assert back.meta["fingerprint"]["model"] == "unet"
    for ours, theirs in zip(back.levels, scan.levels, strict=True):
        np.testing.assert_array_equal(ours[...], theirs)
    assert names(tmp_path) == ["a b 🔬.ome.zarr"]


def test_bands_of_fill_and_wrong_bands(tmp_path: Path) -> None:
    array = heat()
    writer = make_writer(tmp_path / "a.zarr", array, fill=0.5)
    with pytest.raises(BadShapeError, match=r"band 0 is \(3, 5, 257\) float32; expected"):
        writer.write_band(0, array[:, :5])
    with pytest.raises(BadShapeError, match="float64"):
        writer.write_band(0, band_of(writer, array, 0).astype(float))
    with pytest.raises(BadValueError, match="band 99"):
        writer.write_band(99, array)
    with pytest.raises(BadValueError, match=r"bands \[0, 1.*are not written"):
        writer.finish()
    for index in range(writer.bands):
        writer.write_band(index, None)
    writer.finish()
    assert (read(tmp_path / "a.zarr").levels[0][...] == 0.5).all()
    assert len(shards_of(tmp_path / "a.zarr")) == writer.bands


def test_resume_refuses_another_fingerprint(tmp_path: Path) -> None:
    array, path = heat(), tmp_path / "a.zarr"
    with make_writer(path, array) as writer:
        writer.write_band(2, band_of(writer, array, 2))
    other = {"model": "unet", "weights": "xyz", "overlap": 0.25}
    with pytest.raises(ConflictError, match=r"weights was 'abc', is 'xyz'. Pass resume=False"):
        make_writer(path, array, fingerprint=other)
    with pytest.raises(ConflictError, match="tile was 32, is 64"):
        make_writer(path, array, tile=64)
    with make_writer(path, array) as writer:
        assert writer.done == {2}
    with make_writer(path, array, fingerprint=other, resume=False) as writer:
        assert writer.done == set()
        write_all(writer, array)
    with pytest.raises(ConflictError, match="exists already"):
        make_writer(path, array)
    with make_writer(path, array + 1, overwrite=True) as writer:
        np.testing.assert_array_equal(read(path).levels[0][...], array)
        write_all(writer, array + 1)
    np.testing.assert_array_equal(read(path).levels[0][...], array + 1)
    assert names(tmp_path) == ["a.zarr"]


def test_damaged_journal_or_shard_is_written_again(tmp_path: Path) -> None:
    array, path = heat(), tmp_path / "a.zarr"
    with make_writer(path, array) as writer:
        for index in (0, 1, 2):
            writer.write_band(index, band_of(writer, array, index))
    hidden = tmp_path / ".a.zarr.partial"
    (hidden / "journal" / "0.json").write_text("{")
    shard = shards_of(hidden / "image")[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with make_writer(path, array) as writer:
        assert writer.done == {2}
        write_all(writer, array)
    np.testing.assert_array_equal(read(path).levels[0][...], array)


def test_a_replaced_image_left_by_a_crash_is_not_taken_for_the_new_one(tmp_path: Path) -> None:
    old, new, path = heat(1), heat(2), tmp_path / "a.zarr"
    write_all(make_writer(path, old, compression="none", fingerprint={"seed": 1}), old)
    writer = make_writer(path, new, compression="none", fingerprint={"seed": 2}, overwrite=True)
    for index in range(writer.bands):
        writer.write_band(index, band_of(writer, new, index))
    writer.close()
    # As a kill leaves it between the exchange of the two images and the removal of the older one.
    hidden = tmp_path / ".a.zarr.partial" / "image"
    shutil.rmtree(hidden)
    shutil.copytree(path, hidden)
    writer = make_writer(path, new, compression="none", fingerprint={"seed": 2}, overwrite=True)
    assert writer.done == set()
    write_all(writer, new)
    np.testing.assert_array_equal(read(path).levels[0][...], new)


def test_second_writer_is_refused(tmp_path: Path) -> None:
    array, path = heat(), tmp_path / "a.zarr"
    writer = make_writer(path, array)
    with pytest.raises(ConflictError, match="this process is writing"):
        make_writer(path, array)
    script = (
        "import sys\nfrom dhlab.errors import ConflictError\nfrom dhlab.io.ownership import Ownership\n"
        "from pathlib import Path\ntry:\n    Ownership.take(Path(sys.argv[1]))\n"
        "except ConflictError as e:\n    print(e)\n"
    )
    other = subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True)
    assert f"process {os.getpid()} on this machine is writing" in other.stdout
    writer.close()
    with pytest.raises(ConflictError, match="no longer holds"):
        writer.write_band(0, band_of(writer, array, 0))
    with make_writer(path, array) as again:
        again.discard()
    assert names(tmp_path) == []


def test_owner_on_another_machine_counts_until_it_falls_silent(tmp_path: Path) -> None:
    array, path = heat(), tmp_path / "a.zarr"
    with make_writer(path, array) as writer:
        writer.write_band(0, band_of(writer, array, 0))
    owner = max((tmp_path / ".a.zarr.partial").glob("owner.*"))
    owner.write_text("othermachine-12-345")
    with pytest.raises(ConflictError, match="another machine"):
        make_writer(path, array)
    silent = time.time() - ownership.SILENCE_S - 1
    os.utime(owner, (silent, silent))
    writer = make_writer(path, array)
    assert writer.done == {0}
    # The silent one wakes up and takes the place back: this one must notice.
    (tmp_path / ".a.zarr.partial" / "owner.99").write_text(process_identity())
    with pytest.raises(ConflictError, match="taken over"):
        writer.write_band(1, band_of(writer, array, 1))


def test_abandoned_writer_gives_its_place_free(tmp_path: Path) -> None:
    array, path = heat(), tmp_path / "a.zarr"
    writer = make_writer(path, array)
    del writer
    with make_writer(path, array) as again:
        assert again.done == set()


def test_threads_write_bands_together(tmp_path: Path) -> None:
    array, path = heat(), tmp_path / "a.zarr"
    writer = make_writer(path, array)
    threads = [
        threading.Thread(target=writer.write_band, args=(i, band_of(writer, array, i))) for i in range(writer.bands)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.finish()
    np.testing.assert_array_equal(read(path).levels[0][...], array)


KILLED = """
import sys, time
import numpy as np
from dhlab.io.omezarr import BandWriter, write
from dhlab.scan import Scan
what, path = sys.argv[1:]
array = np.random.default_rng(3).random((3, 1531, 257), np.float32)
print("begun", flush=True)
if what == "save":
    write(Scan.from_array(array, "cyx", kind="heatmap"), path, tile=32)
else:
    writer = BandWriter.create(path, shape=array.shape, axes="cyx", dtype="f4", spacing=(1, 1), tile=32, name="n",
                               channels="abc", fingerprint={"seed": 3}, overwrite=True)
    for i in range(writer.bands):
        if i not in writer.done:
            writer.write_band(i, array[:, i * writer.band_height : (i + 1) * writer.band_height])
    writer.finish()
"""


def run_and_kill(what: str, path: Path, after: float | None) -> float:
    environment = {**os.environ, "DHLAB_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, what, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        begun = time.perf_counter()
        try:
            assert process.wait(after) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return time.perf_counter() - begun


@pytest.mark.slow
@pytest.mark.parametrize("what", ["save", "bands"])
def test_killed_at_random_moments(tmp_path: Path, what: str) -> None:
    whole = tmp_path / "whole.ome.zarr"
    duration = run_and_kill(what, whole, None)
    expected = listing(whole)
    rng, path = random.Random(what), tmp_path / "killed.ome.zarr"
    kept: list[int] = []
    for _ in range(200):
        if len(kept) == 10:
            break
        run_and_kill(what, path, rng.uniform(0, 0.95 if what == "save" else 0.5) * duration)
        if not path.exists():
            kept.append(len(list((tmp_path / f".{path.name}.partial" / "journal").glob("*.json"))))
            continue
        assert listing(path) == expected
        shutil.rmtree(path)
    assert len(kept) == 10
    assert what == "save" or max(kept) > 0
    run_and_kill(what, path, None)
    assert listing(path) == expected
    assert names(tmp_path) == sorted([path.name, whole.name])
    np.testing.assert_array_equal(
        dio.open(path).levels[0][...], np.random.default_rng(3).random((3, 1531, 257), np.float32)
    )


def test_killed_as_it_had_published_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.zarr"
    plan = {"shape": (63, 64), "axes": "yx", "dtype": "u1", "spacing": (1, 1), "tile": 32, "name": "n"}
    writer = BandWriter.create(path, **plan, fingerprint={"seed": 3})
    writer._owner.release()
    shutil.rmtree(tmp_path / f".{path.name}.partial" / "image")
    again = BandWriter.create(path, **plan, fingerprint={"seed": 3})
    assert not again.done
    again._owner.release()


def test_killed_while_replacing_leaves_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.zarr"
    old = make_scan((63, 64), "yx", "uint8", "image")
    write(old, path)
    before = listing(path)
    duration = run_and_kill("save", tmp_path / "whole.ome.zarr", None)
    after = listing(tmp_path / "whole.ome.zarr")
    rng = random.Random(5)
    for _ in range(4):
        run_and_kill("save", path, rng.uniform(0.3, 1.0) * duration)
        assert listing(path) in (before, after)
