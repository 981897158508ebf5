"""TIFF slides: the same pixels as the peers, each tile decoded once, damage told with its place."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import dhlab.io as dio
from dhlab import env, phantoms
from dhlab.errors import BadFileError, BadShapeError, BadValueError, DHLabError, NotFoundError, StorageError
from dhlab.io import tilecache, tilelevel
from dhlab.io.jpeg import JpegDecoder
from dhlab.io.openslide import read as read_with_openslide
from dhlab.scan import Scan, halve

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(11)


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    return np.asarray(phantoms.paint_slide((1061, 1303), rng=3)[0])


@pytest.fixture(scope="module")
def slide(tissue, tmp_path_factory):
    return phantoms.write_slide(tmp_path_factory.mktemp("slide") / "a.svs", tissue, tile=128, levels=(1, 4))


@pytest.fixture
def real(skin_slide):
    return skin_slide


def with_openslide(path, level=0):
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(path) as peer:
        return np.asarray(peer.read_region((0, 0), level, peer.level_dimensions[level]).convert("RGB"))


def cut(image, start, size, fill):
    """Return a window by the plainest means."""
    ys, xs = start[0] + np.arange(size[0])[:, None], start[1] + np.arange(size[1])[None]
    inside = (ys >= 0) & (ys < image.shape[0]) & (xs >= 0) & (xs < image.shape[1])
    out = np.full((*size, *image.shape[2:]), fill, image.dtype)
    out[inside] = image[np.broadcast_to(ys, size)[inside], np.broadcast_to(xs, size)[inside]]
    return out


class TestPixels:
    def test_real_slide_is_identical_to_openslide(self, real):
        assert np.array_equal(dio.open(real).levels[0][...], with_openslide(real))

    def test_phantom_is_identical_to_openslide_on_every_native_level(self, slide):
        scan = dio.open(slide)
        for peer_level, level in enumerate(scan.meta["levels_native"]):
            assert np.array_equal(scan.levels[level][...], with_openslide(slide, peer_level))

    @pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
    @pytest.mark.parametrize("vendor", ["aperio", "generic"])
    def test_every_chroma_subsampling(self, tmp_path, tissue, subsampling, vendor):
        path = tmp_path / "a.tif"
        phantoms.write_slide(path, tissue, tile=240, levels=(1,), subsampling=subsampling, vendor=vendor)
        assert np.array_equal(dio.open(path).levels[0][...], with_openslide(path))

    @pytest.mark.parametrize("size", [(128, 128), (1, 1), (63, 257), (128, 127), (300, 300)])
    def test_windows_anywhere(self, slide, size):
        scan = dio.open(slide)
        image = scan.levels[0][...]
        starts = np.concatenate(
            [
                RNG.integers(-200, 1400, (12, 2)),
                [(0, 0), (128, 256), (1024, 1280), (-128, 0), (5000, 5000), (128, 256), (1060, 1302)],
            ]
        )
        found = scan.read_many(starts, size)
        for start, window in zip(starts, found, strict=True):
            assert np.array_equal(window, cut(image, start, size, 255)), start

    def test_only_the_windows_are_written(self, slide):
        scan = dio.open(slide)
        out = np.full((3, 128, 128, 3), 7, np.uint8)
        scan.read_many([(0, 0), (128, 0)], (128, 128), out=out[:2])
        assert (out[2] == 7).all()
        assert np.array_equal(out[1], scan.levels[0][128:256, :128])

    def test_each_stored_tile_is_decoded_once(self, slide, monkeypatch):
        decoded = []
        plain = JpegDecoder.decode
        monkeypatch.setattr(
            JpegDecoder,
            "decode",
            lambda self, data, index, into: (decoded.append(index), plain(self, data, index, into))[1],
        )
        dio.open(slide).read_many([(y, x) for y in range(64, 600, 64) for x in range(64, 600, 32)], (128, 128))
        assert len(decoded) == len(set(decoded)) == 36

    def test_tiles_at_the_seam_of_two_batches_are_kept(self, slide, monkeypatch):
        decoded = []
        plain = JpegDecoder.decode

        def counted(self, data, index, into):
            decoded.append(index)
            return plain(self, data, index, into)

        monkeypatch.setattr(JpegDecoder, "decode", counted)
        scan = dio.open(slide)
        whole = scan.levels[0].shape
        for y in range(50, 900, 128):
            windows = scan.read_many([(y, x) for x in range(50, 1100, 128)], (128, 128))
        assert len(decoded) == len(set(decoded)), whole
        assert np.array_equal(windows[0], dio.open(slide).levels[0][y : y + 128, 50:178])

    def test_kept_tiles_stay_within_their_bounds(self):
        cache = tilecache.TileCache(1000)
        for number in range(50):
            cache.put(number, np.zeros(300, np.uint8))
        assert cache.bytes <= 1000
        assert cache.get(49) is not None
        assert cache.get(0) is None
        cache.put("large", np.zeros(5000, np.uint8))
        assert cache.get("large") is not None
        assert cache.get(49) is None
        cache.put("large", np.zeros(5000, np.uint8))
        assert cache.bytes == 5000

    def test_aligned_tiles_go_straight_into_the_callers_array(self, slide, monkeypatch):
        monkeypatch.setattr(tilelevel, "_scratch_array", lambda *a: pytest.fail("a copy was made"))
        scan = dio.open(slide)
        out = np.zeros((4, 128, 128, 3), np.uint8)
        scan.read_many([(0, 0), (128, 128), (256, 0), (512, 512)], (128, 128), out=out)
        assert out.min(axis=(1, 2, 3)).min() > 0

    @pytest.mark.parametrize(
        "key",
        [
            np.s_[...],
            np.s_[5],
            np.s_[-1, -1],
            np.s_[100:700:7, 1000:3:-9],
            np.s_[..., 1],
            np.s_[::97, :, ::-1],
            np.s_[40:40],
            np.s_[2000:],
            np.s_[:, -5:, -1:],
        ],
    )
    def test_slicing_is_numpys(self, slide, key):
        level = dio.open(slide).levels[0]
        assert np.array_equal(level[key], np.asarray(level)[key])

    def test_senseless_keys_are_refused(self, slide):
        level = dio.open(slide).levels[0]
        with pytest.raises(IndexError, match="out of bounds"):
            level[9999]
        for key in ([1, 2], (1, 2, 3, 4), np.ones(3, bool), (..., ...)):
            with pytest.raises(BadShapeError):
                level[key]

    @pytest.mark.parametrize("threads", ["1", "2", "5"])
    def test_any_number_of_threads_gives_the_same(self, slide, monkeypatch, threads):
        monkeypatch.setenv("DHLAB_THREADS", threads)
        scan = dio.open(slide)
        starts = RNG.integers(-50, 1300, (40, 2))
        image = np.pad(scan.levels[0][...], ((200, 900), (200, 900), (0, 0)), constant_values=255)
        for (y, x), window in zip(starts, scan.read_many(starts, (99, 101)), strict=True):
            assert np.array_equal(window, image[y + 200 : y + 299, x + 200 : x + 301])

    def test_many_callers_at_once(self, slide):
        scan = dio.open(slide)
        image = scan.levels[0][...]

        def work(seed):
            starts = np.random.default_rng(seed).integers(0, 900, (10, 2))
            windows = scan.read_many(starts, (97, 131))
            return all(
                np.array_equal(w, image[y : y + 97, x : x + 131]) for (y, x), w in zip(starts, windows, strict=True)
            )

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(work, range(30)))


class TestLevels:
    def test_gaps_are_filled_by_scaled_decoding(self, slide):
        scan = dio.open(slide)
        assert [s[0] for s in scan.scales] == [1, 2, 4]
        assert scan.meta["levels_native"] == [0, 2]
        base = scan.levels[0][...].astype(float)
        height, width = (n // 2 for n in base.shape[:2])
        mean = base[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean((1, 3))
        difference = np.abs(scan.levels[1][...] - mean)
        assert difference.mean() < 1.5

    def test_the_coarsest_level_is_scaled_too(self, real):
        scan = dio.open(real)
        assert [s[0] for s in scan.scales] == [1, 2, 4]
        assert max(scan.shape_of(2)) <= 1024
        mine = scan.levels[2][...]
        height, width = mine.shape[:2]
        mean = scan.levels[0][: 4 * height, : 4 * width].reshape(height, 4, width, 4, 3).mean((1, 3))
        assert np.abs(mine - mean).mean() < 0.5

    @pytest.mark.parametrize("level", [1, 2])
    def test_windows_of_scaled_levels_fit_together(self, real, level):
        scan = dio.open(real)
        whole = scan.levels[level][...]
        step = int(scan.scales[level][0])
        starts = np.array([(0, 0), (61, 7), (300, 100), (700, 500)])
        for (y, x), window in zip(starts, scan.read_many(starts * step, (63, 121), level), strict=True):
            assert np.array_equal(window, cut(whole, (y, x), (63, 121), 255))

    def test_odd_sizes_hide_whole_scales(self, tmp_path, tissue):
        path = phantoms.write_slide(tmp_path / "a.svs", tissue, tile=64, levels=(1, 2, 8))
        assert [dio.open(path).scales[i] for i in dio.open(path).meta["levels_native"]] == [(1, 1), (2, 2), (8, 8)]

    def test_tiles_not_divisible_by_eight_get_no_scaled_levels(self, tmp_path):
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, np.full((3000, 2000), 9, np.uint8), compression="jpeg", rowsperstrip=100)
        assert len(dio.open(path).levels) == 1


class TestForms:
    @pytest.mark.parametrize("compression", [None, "deflate", "lzw", "zstd", "packbits"])
    @pytest.mark.parametrize("tile", [None, (32, 48)])
    @pytest.mark.parametrize("shape", [(1, 1), (63, 127), (211, 97, 3), (61, 67, 4)])
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
    def test_what_goes_in_comes_out(self, tmp_path, compression, tile, shape, dtype):
        image = (RNG.random(shape) * 200).astype(dtype)
        photometric = "rgb" if len(shape) == 3 else "minisblack"
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, image, compression=compression, tile=tile, photometric=photometric)
        scan = dio.open(path)
        assert scan.axes == ("yxc" if len(shape) == 3 else "yx")
        assert np.array_equal(scan.levels[0][...], image)
        window = scan.read((-3, 5), (17, 29))
        assert np.array_equal(window, cut(image, (-3, 5), (17, 29), scan.fill))

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("bigtiff", [False, True])
    def test_byte_orders_and_bigtiff(self, tmp_path, order, bigtiff):
        image = RNG.integers(0, 60000, (71, 83), np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", image, byteorder=order, bigtiff=bigtiff, tile=(16, 32))
        assert np.array_equal(dio.open(tmp_path / "a.tif").levels[0][...], image)

    @pytest.mark.parametrize("planar", ["contig", "separate"])
    def test_colours_apart_stay_apart(self, tmp_path, planar):
        image = RNG.integers(0, 255, (3, 65, 71) if planar == "separate" else (65, 71, 3), np.uint8)
        tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", planarconfig=planar, tile=(32, 32))
        scan = dio.open(tmp_path / "a.tif")
        assert scan.axes == ("cyx" if planar == "separate" else "yxc")
        assert scan.channels == ("red", "green", "blue")
        assert np.array_equal(scan.levels[0][...], image)

    @pytest.mark.parametrize("axes", ["CYX", "ZYX", "TCYX", "TZCYX", "ZYXS", "YXS", "YX"])
    def test_ome_axes(self, tmp_path, axes):
        lengths = {"T": 2, "Z": 5, "C": 4, "Y": 63, "X": 71, "S": 3}
        image = RNG.integers(0, 60000, [lengths[a] for a in axes], np.uint16)
        sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 500, "PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 2.0}
        path = tmp_path / "a.ome.tif"
        tifffile.imwrite(
            path,
            image,
            metadata={"axes": axes, **sizes},
            tile=(32, 32),
            photometric="rgb" if "S" in axes else "minisblack",
        )
        scan = dio.open(path)
        assert scan.axes == axes.lower().replace("s", "c")
        assert np.array_equal(scan.levels[0][...], image)
        along = dict(zip(scan.window_axes, scan.spacing, strict=True))
        assert (along["y"], along["x"], along.get("z", 2.0), scan.unit) == (0.5, 0.25, 2.0, "µm")
        size = [
            min(n, 40) if a in "yx" else 2 if a == "z" else 1 for a, n in zip(scan.window_axes, scan.shape, strict=True)
        ]
        start = [1 if a == "t" else 4 if a == "z" else 50 for a in scan.window_axes]
        window = scan.read(start, size)
        plain = Scan.from_array(image, scan.axes, fill=scan.fill, pyramid=False).read(start, size)
        assert np.array_equal(window, plain)

    def test_ome_channels_and_pyramid(self, tmp_path):
        image = RNG.integers(0, 4000, (3, 1100, 1300), np.uint16)
        path = phantoms.write_slide(
            tmp_path / "a.ome.tif", image, vendor="ome", levels=(1, 2), tile=64, channels=("DAPI", "CD3", "CD20")
        )
        scan = dio.open(path)
        assert scan.channels == ("DAPI", "CD3", "CD20")
        assert scan.axes == "cyx"
        assert scan.spacing == (0.25, 0.25)
        assert scan.scales == ((1, 1), (2, 2))
        assert np.array_equal(scan.levels[0][1, 40:90, ::3], image[1, 40:90, ::3])

    def test_imagej_stack_behind_one_directory(self, tmp_path):
        image = RNG.integers(0, 4000, (6, 41, 43), np.uint16)
        tifffile.imwrite(
            tmp_path / "a.tif",
            image,
            imagej=True,
            resolution=(2, 2),
            metadata={"axes": "ZYX", "unit": "um", "spacing": 3},
        )
        scan = dio.open(tmp_path / "a.tif")
        assert scan.axes == "zyx"
        assert scan.spacing == (3, 0.5, 0.5)
        assert np.array_equal(scan.levels[0][...], image)

    def test_pages_of_one_form_are_a_stack(self, tmp_path):
        image = RNG.integers(0, 255, (4, 33, 31), np.uint8)
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            for page in image:
                file.write(page, metadata=None, contiguous=False)
        scan = dio.open(tmp_path / "a.tif")
        assert scan.axes == "zyx"
        assert np.array_equal(scan.levels[0][...], image)

    def test_pages_of_other_forms_are_series(self, tmp_path):
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            file.write(np.full((40, 60), 1, np.uint8), metadata=None)
            file.write(np.full((31, 17), 2, np.uint8), metadata=None)
        assert dio.open(tmp_path / "a.tif", series=1).shape == (31, 17)
        with pytest.raises(BadValueError, match="it holds 2"):
            dio.open(tmp_path / "a.tif", series=2)

    def test_palette_white_is_zero_and_bilevel(self, tmp_path):
        values = RNG.integers(0, 256, (21, 23), np.uint8)
        palette = RNG.integers(0, 65536, (3, 256), np.uint16)
        tifffile.imwrite(tmp_path / "p.tif", values, photometric="palette", colormap=palette)
        assert np.array_equal(dio.open(tmp_path / "p.tif").levels[0][...], (palette.T >> 8)[values])
        tifffile.imwrite(tmp_path / "w.tif", values, photometric="miniswhite")
        assert np.array_equal(dio.open(tmp_path / "w.tif").levels[0][...], 255 - values)
        tifffile.imwrite(tmp_path / "b.tif", values > 99)
        assert np.array_equal(dio.open(tmp_path / "b.tif").levels[0][...], values > 99)

    def test_a_large_strip_is_decoded_once(self, tmp_path, monkeypatch):
        image = np.arange(5_000_000, dtype=np.uint32).astype(np.uint8).reshape(2000, 2500)
        tifffile.imwrite(tmp_path / "a.tif", image, compression="deflate", rowsperstrip=2000)
        scan = dio.open(tmp_path / "a.tif")
        fetched = []
        plain = type(scan.levels[0].source).fetch
        monkeypatch.setattr(
            type(scan.levels[0].source), "fetch", lambda self, *a: (fetched.append(a), plain(self, *a))[1]
        )
        for start in ((0, 0), (100, 200), (1990, 2490)):
            assert np.array_equal(scan.read(start, (20, 20)), cut(image, start, (20, 20), 0))
        assert len(fetched) == 1

    def test_sparse_tiles_read_as_background(self, tmp_path):
        def tiles():
            yield np.full((64, 64, 3), 9, np.uint8)
            yield None
            yield None
            yield np.full((64, 64, 3), 9, np.uint8)

        tifffile.imwrite(
            tmp_path / "a.tif",
            tiles(),
            shape=(128, 128, 3),
            dtype=np.uint8,
            tile=(64, 64),
            photometric="rgb",
            compression="deflate",
        )
        found = dio.open(tmp_path / "a.tif").levels[0][...]
        assert (found[:64, :64] == 9).all()
        assert (found[:64, 64:] == 255).all()

    @pytest.mark.parametrize("name", ["nct-crc", "kather2016"])
    def test_real_pictures(self, name):
        folder = env.data_folder()
        paths = [] if folder is None else sorted((folder / "histo-colorectal-tissue-tiles" / name).rglob("*.tif"))
        if not paths:
            pytest.skip("needs histo-colorectal-tissue-tiles (DHLAB_DATA)")
        for path in paths:
            scan = dio.open(path)
            assert np.array_equal(scan.levels[0][...], tifffile.imread(path))
            assert scan.unit == "px", "72 dpi is a placeholder"


class TestMetadata:
    def test_aperio(self, real):
        scan = dio.open(real)
        assert scan.spacing == (0.499, 0.499)
        assert scan.unit == "µm"
        assert scan.meta["objective"] == 20
        assert scan.meta["vendor"] == "aperio"
        assert scan.meta["spacing_source"] == "vendor metadata"
        json.dumps(scan.meta)

    def test_nothing_about_the_patient_comes_along(self, tmp_path, tissue):
        path = phantoms.write_slide(tmp_path / "a.svs", tissue, label=True, levels=(1,))
        scan = dio.open(path)
        with tifffile.TiffFile(path) as file:
            about = file.pages[0].description
        secrets = [
            part.split("=")[1].strip()
            for part in about.split("|")[1:]
            if part.split("=")[0].strip() not in ("MPP", "AppMag")
        ]
        text = json.dumps(dict(scan.meta))
        assert all(secret not in text for secret in secrets if len(secret) > 3)
        assert len(scan.levels) == len(dio.open(phantoms.write_slide(tmp_path / "b.svs", tissue, levels=(1,))).levels)

    def test_spacing_from_tags(self, tmp_path, tissue):
        path = phantoms.write_slide(tmp_path / "a.tif", tissue, vendor="generic", spacing=0.375, levels=(1,))
        scan = dio.open(path)
        assert scan.spacing == pytest.approx((0.375, 0.375), rel=1e-3)
        assert scan.meta["spacing_source"] == "TIFF resolution tags"

    @pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan"), 9e9])
    def test_senseless_spacing_in_the_file_falls_back(self, tmp_path, tissue, spacing):
        path = phantoms.write_slide(tmp_path / "a.svs", tissue, spacing=spacing, magnification=40, levels=(1,))
        with pytest.warns(UserWarning, match="40× objective"):
            scan = dio.open(path)
        assert scan.spacing == (0.25, 0.25)
        assert "approximate" in scan.meta["spacing_source"]

    @pytest.mark.parametrize("spacing", [0, -0.5, float("nan"), float("inf")])
    def test_senseless_spacing_from_the_user_is_refused(self, slide, spacing):
        with pytest.raises(BadValueError, match="expected positive"):
            dio.open(slide, spacing=spacing)

    def test_the_user_wins(self, slide):
        scan = dio.open(slide, spacing=(0.3, 0.4))
        assert scan.spacing == (0.3, 0.4)
        assert scan.meta["spacing_source"] == "override"

    def test_icc_is_off_unless_asked_for_and_recorded(self, tmp_path, tissue):
        path = phantoms.write_slide(tmp_path / "a.svs", tissue, icc=phantoms.make_icc_profile(), levels=(1,))
        plain, converted = dio.open(path), dio.open(path, icc=True)
        assert plain.meta["icc"] == "embedded, not applied"
        assert converted.meta["icc"] == "applied: sRGB"
        assert dio.open(phantoms.write_slide(tmp_path / "b.svs", tissue, levels=(1,)), icc=True).meta["icc"] == "none"
        from io import BytesIO

        from PIL import Image, ImageCms

        picture = Image.fromarray(plain.levels[0][...])
        wanted = ImageCms.profileToProfile(
            picture, BytesIO(phantoms.make_icc_profile()), ImageCms.createProfile("sRGB")
        )
        assert np.array_equal(converted.levels[0][...], np.asarray(wanted))
        assert not np.array_equal(plain.levels[0][...], np.asarray(wanted))
        assert np.array_equal(converted.read((5, 7), (128, 128)), np.asarray(wanted)[5:133, 7:135])

    def test_broken_icc_profile_is_refused_when_it_is_wanted(self, tmp_path, tissue):
        path = phantoms.write_slide(tmp_path / "a.svs", tissue, icc=b"not a profile" * 20, levels=(1,))
        assert dio.open(path).meta["icc"] == "embedded, not applied"
        with pytest.raises(BadFileError, match="icc=False"):
            dio.open(path, icc=True)


class TestDamage:
    @pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.9, 0.999])
    def test_truncated_slide(self, tmp_path, tissue, keep):
        path = phantoms.write_slide(tmp_path / "a.svs", tissue, tile=64, keep=keep)
        with pytest.raises(BadFileError, match=r"truncated|damaged") as caught:
            dio.open(path).levels[0][...]
        assert "a.svs" in str(caught.value)

    def test_corrupt_tiles_are_told_with_their_place(self, tmp_path, tissue):
        path = phantoms.write_slide(tmp_path / "a.svs", tissue, tile=64, levels=(1, 4), corrupt_level=1)
        scan = dio.open(path)
        sound, broken = scan.meta["levels_native"]
        assert scan.levels[sound][...].shape == (1061, 1303, 3)
        with pytest.raises(BadFileError, match=rf"a\.svs: cannot decode level {broken}, tile \(row \d+, column \d+\)"):
            scan.levels[broken][...]

    def test_file_that_shrinks_while_open(self, tmp_path, slide):
        path = Path(shutil.copy(slide, tmp_path / "a.svs"))
        scan = dio.open(path)
        scan.read((0, 0), (10, 10))
        with path.open("r+b") as file:
            file.truncate(20_000)
        with pytest.raises(BadFileError, match=r"truncated|ended while"):
            scan.levels[0][...]

    def test_levels_of_other_kinds_are_refused(self, tmp_path):
        about = "Aperio Image Library v1\r\n200x200|MPP = 0.25"
        with tifffile.TiffWriter(tmp_path / "a.svs") as file:
            file.write(np.zeros((200, 200), np.uint8), tile=(64, 64), description=about, metadata=None)
            file.write(np.zeros((100, 100), np.uint16), tile=(64, 64), metadata=None)
        with pytest.raises(BadFileError, match="level 1 holds 1 × uint16; expected 1 × uint8"):
            dio.open(tmp_path / "a.svs")

    def test_directories_in_a_circle(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((9, 9), np.uint8), metadata=None)
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            page = file.pages[0]
            at = page.offset + 2 + 12 * len(page.tags)
            start = page.offset
        data = bytearray((tmp_path / "a.tif").read_bytes())
        data[at : at + 4] = start.to_bytes(4, sys.byteorder)
        (tmp_path / "a.tif").write_bytes(data)
        with pytest.raises(BadFileError, match="circle"):
            dio.open(tmp_path / "a.tif")

    def test_random_bytes_never_do_worse_than_an_error_of_ours(self, tmp_path, slide):
        good = slide.read_bytes()
        random = np.random.default_rng(5)
        for _ in range(40):
            data = bytearray(good)
            for at in random.integers(0, len(data), 40):
                data[at] = random.integers(256)
            path = tmp_path / "a.svs"
            path.write_bytes(data)
            try:
                scan = dio.open(path, spacing=1)
                if scan.levels[0].shape == (1061, 1303, 3):
                    scan.read((3, 3), (300, 300))
            except DHLabError:
                pass

    def test_random_directories_never_do_worse_than_an_error_of_ours(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), tile=(16, 16), metadata=None)
        good = (tmp_path / "a.tif").read_bytes()
        random = np.random.default_rng(6)
        for _ in range(120):
            data = bytearray(good)
            for at in random.integers(4, 300, 3):
                data[at] = random.integers(256)
            (tmp_path / "b.tif").write_bytes(data)
            try:
                scan = dio.open(tmp_path / "b.tif", spacing=1)
                if np.prod(scan.levels[0].shape) < 1e6:
                    scan.levels[0][...]
            except DHLabError:
                pass


class TestProcesses:
    def test_pickles_by_path(self, slide):
        scan = dio.open(slide)
        data = pickle.dumps(scan)
        assert len(data) < 4000
        again = pickle.loads(data)
        assert np.array_equal(again.levels[1][...], scan.levels[1][...])
        assert again.scales == scan.scales

    def test_refuses_another_file_in_its_place(self, tmp_path, slide):
        path = Path(shutil.copy(slide, tmp_path / "a.svs"))
        data = pickle.dumps(dio.open(path))
        os.utime(path, ns=(1, 1))
        with pytest.raises(BadFileError, match="has changed"):
            pickle.loads(data).read((0, 0), (9, 9))
        path.unlink()
        with pytest.raises(NotFoundError, match="any more"):
            pickle.loads(data).read((0, 0), (9, 9))

    def test_another_process_reads_the_same(self, slide, tmp_path):
        scan = dio.open(slide)
        (tmp_path / "scan.pickle").write_bytes(pickle.dumps(scan))
        code = (
            "import pickle,sys,pathlib,hashlib;"
            "s=pickle.loads(pathlib.Path(sys.argv[1]).read_bytes());"
            "print(hashlib.sha256(s.levels[0][...].tobytes()).hexdigest())"
        )
        answer = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "scan.pickle"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        import hashlib

        assert answer.stdout.strip() == hashlib.sha256(scan.levels[0][...].tobytes()).hexdigest()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    def test_forked_worker_has_threads_of_its_own(self, slide, monkeypatch):
        monkeypatch.setenv("DHLAB_THREADS", "2")
        scan = dio.open(slide)
        total = int(scan.levels[0][...].sum())
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if int(scan.levels[0][...].sum()) == total else 1)
            finally:
                os._exit(2)
        done = threading.Event()
        status: list[int] = []

        def wait():
            status.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            done.set()

        threading.Thread(target=wait, daemon=True).start()
        if not done.wait(60):
            os.kill(child, 9)
            pytest.fail("the forked worker hangs")
        assert status == [0]

    def test_descriptors_are_given_back(self, slide):
        folder = "/proc/self/fd"
        if not Path(folder).is_dir():
            pytest.skip("needs /proc")
        before = len(os.listdir(folder))
        for _ in range(20):
            dio.open(slide).read((0, 0), (5, 5))
        assert len(os.listdir(folder)) <= before + 1

    def test_opening_imports_neither_torch_nor_tifffile(self, slide):
        code = (
            "import sys, dhlab.io as io; io.open(sys.argv[1]).read((0, 0), (9, 9));"
            "print({'torch', 'tifffile', 'openslide', 'zarr'} & set(sys.modules))"
        )
        answer = subprocess.run(
            [sys.executable, "-c", code, slide],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert answer.stdout.strip() == "set()"


class TestForeign:
    def test_aperio_jpeg2000_goes_to_openslide(self, tmp_path, tissue):
        path = tmp_path / "a.svs"
        tifffile.imwrite(
            path,
            tissue[:512, :512],
            tile=(256, 256),
            photometric="rgb",
            compression=33005,
            description="Aperio Image Library v1\r\n1303x1061 [0,0 1303x1061] (256x256) J2K/KDU Q=70|MPP = 0.5",
            metadata=None,
        )
        scan = dio.open(path)
        assert scan.meta["reader"] == "openslide"
        assert scan.spacing == (0.5, 0.5)
        assert np.abs(scan.levels[0][...].astype(int) - tissue[:512, :512]).mean() < 3

    def test_openslide_agrees_window_by_window(self, real):
        ours, theirs = dio.open(real), read_with_openslide(real, spacing=None, icc=False, series=0)
        starts = RNG.integers(-200, 3000, (12, 2))
        assert np.array_equal(ours.read_many(starts, (131, 257)), theirs.read_many(starts, (131, 257)))


class TestWriting:
    def test_slide_becomes_a_pyramid_that_others_read(self, tmp_path, slide):
        scan = dio.open(slide)
        path = dio.save(scan, tmp_path / "a.ome.tif", tile=256, compression="deflate")
        again = dio.open(path)
        image = scan.levels[0][...]
        assert np.array_equal(again.levels[0][...], image)
        assert np.array_equal(again.levels[1][...], halve(image, (0, 1)))
        assert again.spacing == scan.spacing
        assert again.scales[1] == (2, 2)
        assert np.array_equal(tifffile.imread(path), image)
        with tifffile.TiffFile(path) as file:
            assert file.is_ome
            assert [level.shape for level in file.series[0].levels] == [level.shape for level in again.levels]

    def test_jpeg_by_default_for_colour_images(self, tmp_path, slide):
        scan = dio.open(slide)
        again = dio.open(dio.save(scan, tmp_path / "a.ome.tif"))
        difference = np.abs(again.levels[0][...].astype(int) - scan.levels[0][...])
        assert 0 < difference.mean() < 2
        assert isinstance(again.levels[0].source.layout(0).decoders[0], JpegDecoder)

    @pytest.mark.parametrize("compression", ["deflate", "zstd", "lzw", "none"])
    @pytest.mark.parametrize(
        ("shape", "axes", "dtype", "kind"),
        [
            ((1, 1), "yx", "int16", "image"),
            ((3, 63, 1301), "cyx", "uint16", "heatmap"),
            ((5, 61, 67), "zyx", "float32", "image"),
            ((2, 3, 4, 33, 47), "tczyx", "uint8", "image"),
            ((1061, 31), "yx", "uint8", "labels"),
            ((37, 41, 4), "yxc", "uint8", "image"),
            ((2, 37, 41, 3), "zyxc", "uint8", "image"),
        ],
    )
    def test_any_raster_comes_back(self, tmp_path, shape, axes, dtype, kind, compression):
        image = (RNG.random(shape) * 200).astype(dtype)
        spacing = [0.5 + i for i in range(len(axes.replace("c", "")))]
        scan = Scan.from_array(image, axes, spacing=spacing, unit="µm", kind=kind)
        again = dio.open(dio.save(scan, tmp_path / "a.ome.tif", tile=32, compression=compression))
        assert again.axes == axes
        assert np.array_equal(again.levels[0][...], image)
        mine, theirs = (dict(zip(s.window_axes, s.spacing, strict=True)) for s in (scan, again))
        assert all(theirs[a] == pytest.approx(mine[a]) for a in "zyx" if a in mine)
        for level in range(1, len(scan.levels)):
            assert np.array_equal(again.levels[level][...], scan.levels[level][...])

    def test_millimetres_stay_millimetres(self, tmp_path):
        scan = Scan.from_array(np.zeros((3, 9, 9), np.int16), "zyx", spacing=(3, 0.7, 0.7), unit="mm")
        again = dio.open(dio.save(scan, tmp_path / "a.ome.tif", tile=16))
        assert again.unit == "mm"
        assert again.spacing == pytest.approx((3, 0.7, 0.7))

    def test_mask_becomes_bytes(self, tmp_path):
        mask = RNG.random((70, 90)) > 0.5
        again = dio.open(dio.save(Scan.from_array(mask, "yx", kind="mask"), tmp_path / "a.ome.tif", tile=32))
        assert np.array_equal(again.levels[0][...], mask)

    @pytest.mark.parametrize(
        ("axes", "shape", "options", "error"),
        [
            ("ct", (3, 100), {}, BadShapeError),
            ("yx", (30, 30), {"tile": 100}, BadValueError),
            ("yx", (30, 30), {"compression": "brotli"}, BadValueError),
        ],
    )
    def test_what_cannot_be_written_is_refused_and_leaves_nothing(self, tmp_path, axes, shape, options, error):
        with pytest.raises(error):
            dio.save(Scan.from_array(np.zeros(shape, np.uint16), axes), tmp_path / "a.ome.tif", **options)
        assert not list(tmp_path.iterdir())

    def test_jpeg_of_scores_is_refused(self, tmp_path):
        scan = Scan.from_array(np.zeros((3, 40, 40), np.float32), "cyx", kind="heatmap")
        with pytest.raises(BadValueError, match="deflate"):
            dio.save(scan, tmp_path / "a.ome.tif", compression="jpeg")
        assert not list(tmp_path.iterdir())

    def test_damaged_source_leaves_nothing(self, tmp_path, tissue):
        path = phantoms.write_slide(tmp_path / "a.svs", tissue, tile=64, levels=(1,), corrupt_level=0)
        with pytest.raises(BadFileError):
            dio.save(dio.open(path), tmp_path / "b.ome.tif")
        assert [p.name for p in tmp_path.iterdir()] == ["a.svs"]

    def test_full_disk_is_told_and_leaves_nothing(self, tmp_path, slide, monkeypatch):
        import errno

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(StorageError, match="full"):
            dio.save(dio.open(slide), tmp_path / "b.ome.tif")
        assert not list(tmp_path.iterdir())
