"""Pictures: header at open, pixels when wanted, every mode, upright, bombs refused; writing what a picture can hold."""

from __future__ import annotations

import json
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

import dhlab.io as dio
from dhlab.errors import BadFileError, BadShapeError, BadValueError
from dhlab.scan import Scan

RNG = np.random.default_rng(12)


def rgb(shape=(63, 127)) -> np.ndarray:
    return RNG.integers(0, 255, (*shape, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".jpg", ".JPEG", ".gif"])
def test_every_format_reads_as_pillow_does(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(rgb()).save(path)
    scan = dio.open(path)
    assert (scan.axes, scan.shape, scan.unit, scan.fill) == ("yxc", (63, 127), "px", 255)
    with Image.open(path) as peer:
        assert np.array_equal(scan.levels[0][...], np.asarray(peer.convert("RGB")))
    json.dumps(dict(scan.meta))


@pytest.mark.parametrize(
    ("array", "mode"),
    [
        (RNG.integers(0, 255, (1, 1), np.uint8), "L"),
        (RNG.integers(0, 65535, (37, 41), np.uint16), None),
        (RNG.integers(0, 255, (37, 41, 4), np.uint8), "RGBA"),
    ],
)
def test_grey_deep_and_clear(tmp_path, array, mode):
    Image.fromarray(array).save(tmp_path / "a.png")
    scan = dio.open(tmp_path / "a.png")
    assert scan.dtype == array.dtype
    assert scan.axes == ("yxc" if array.ndim == 3 else "yx")
    assert np.array_equal(scan.levels[0][...], array)


def test_palettes_bits_and_transparency(tmp_path):
    colours = Image.fromarray(rgb()).quantize(7)
    colours.save(tmp_path / "p.png")
    assert np.array_equal(dio.open(tmp_path / "p.png").levels[0][...], np.asarray(colours.convert("RGB")))
    colours.save(tmp_path / "t.png", transparency=0)
    clear = dio.open(tmp_path / "t.png")
    assert clear.channels == ("red", "green", "blue", "alpha")
    assert (clear.levels[0][..., 3] == np.where(np.asarray(colours) == 0, 0, 255)).all()
    bits = RNG.random((9, 17)) > 0.5
    Image.fromarray(bits).save(tmp_path / "b.png")
    assert np.array_equal(dio.open(tmp_path / "b.png").levels[0][...], bits * np.uint8(255))
    Image.fromarray(np.full((5, 6, 4), 99, np.uint8), "CMYK").save(tmp_path / "c.jpg")
    assert dio.open(tmp_path / "c.jpg").levels[0][...].shape == (5, 6, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_as_the_camera_says(tmp_path, orientation):
    image = rgb((31, 47))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    scan = dio.open(tmp_path / "a.png")
    turned = {
        1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1], 5: image.transpose(1, 0, 2),
        6: np.rot90(image, -1), 7: image[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(image, 1),
    }[orientation]  # fmt: skip
    peer = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert np.array_equal(peer, turned)
    assert scan.shape == turned.shape[:2]
    assert np.array_equal(scan.levels[0][...], turned)


def test_opening_reads_no_pixels(tmp_path, monkeypatch):
    Image.fromarray(rgb()).save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    scan = dio.open(tmp_path / "a.png")
    repr(scan)
    pickle.loads(pickle.dumps(scan))


def test_frames_are_series(tmp_path):
    frames = [Image.fromarray(np.full((8, 9), v, np.uint8)) for v in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert dio.open(tmp_path / "a.gif", series=1).levels[0][...].mean() > 150
    with pytest.raises(BadValueError, match="it holds 2"):
        dio.open(tmp_path / "a.gif", series=2)


def test_spacing_and_windows(tmp_path):
    image = rgb()
    Image.fromarray(image).save(tmp_path / "a.png")
    scan = dio.open(tmp_path / "a.png", spacing=0.5)
    assert (scan.spacing, scan.unit) == ((0.5, 0.5), "µm")
    assert np.array_equal(scan.read((-2, 100), (10, 40))[2:, :27], image[:8, 100:])
    assert (scan.read((-2, 100), (10, 40))[:2] == 255).all()


def test_pixels_cannot_be_changed_by_accident(tmp_path):
    Image.fromarray(rgb()).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="read-only"):
        dio.open(tmp_path / "a.png").levels[0][...][0] = 0


def test_truncated_and_disguised(tmp_path):
    Image.fromarray(rgb()).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadFileError, match="truncated"):
        dio.open(tmp_path / "a.png").levels[0][...]
    (tmp_path / "b.jpg").write_text("hello")
    with pytest.raises(BadFileError, match="not a picture"):
        dio.open(tmp_path / "b.jpg")


@pytest.mark.parametrize("side", [20_000, 14_000])
def test_decompression_bomb(tmp_path, side):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(BadFileError, match="too large to be decoded whole"):
        dio.open(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (63, 127, 3), (63, 127, 4), (63, 127)])
def test_lossless_writing_comes_back(tmp_path, suffix, shape):
    if suffix == ".webp" and len(shape) == 2:
        pytest.skip("WebP makes colours of grey")
    array = RNG.integers(1, 255, shape, np.uint8)
    scan = Scan.from_array(array, "yxc" if len(shape) == 3 else "yx")
    again = dio.open(dio.save(scan, tmp_path / f"a{suffix}", compression="lossless"))
    assert np.array_equal(again.levels[0][...], array)


def test_masks_deep_and_planar(tmp_path):
    mask = RNG.random((9, 17)) > 0.5
    again = dio.open(dio.save(Scan.from_array(mask, "yx", kind="mask"), tmp_path / "m.png"))
    assert np.array_equal(again.levels[0][...], mask * np.uint8(255))
    deep = RNG.integers(0, 65535, (9, 17), np.uint16)
    assert np.array_equal(dio.open(dio.save(Scan.from_array(deep, "yx"), tmp_path / "d.png")).levels[0][...], deep)
    planar = RNG.integers(0, 255, (3, 9, 17), np.uint8)
    again = dio.open(dio.save(Scan.from_array(planar, "cyx"), tmp_path / "c.png"))
    assert np.array_equal(again.levels[0][...], np.moveaxis(planar, 0, -1))
    smooth = np.full((64, 64, 3), 120, np.uint8)
    again = dio.open(dio.save(Scan.from_array(smooth, "yxc"), tmp_path / "a.jpg"))
    assert np.abs(again.levels[0][...].astype(int) - smooth).max() <= 2


@pytest.mark.parametrize(
    ("array", "axes", "suffix", "options", "error"),
    [
        (np.zeros((3, 4, 5), np.uint8), "zyx", ".png", {}, BadShapeError),
        (np.zeros((4, 5), np.float32), "yx", ".png", {}, BadShapeError),
        (np.zeros((4, 5), np.uint16), "yx", ".jpg", {}, BadShapeError),
        (np.zeros((4, 5, 2), np.uint8), "yxc", ".png", {}, BadShapeError),
        (np.zeros((4, 5, 4), np.uint8), "yxc", ".jpg", {}, BadShapeError),
        (np.zeros((4, 5), np.uint8), "yx", ".png", {"compression": "zstd"}, BadValueError),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000)), "yx", ".png", {}, BadValueError),
        (np.broadcast_to(np.uint8(0), (1, 17_000)), "yx", ".webp", {}, BadValueError),
    ],
)
def test_what_a_picture_cannot_hold_is_refused_and_leaves_nothing(tmp_path, array, axes, suffix, options, error):
    with pytest.raises(error):
        dio.save(Scan.from_array(array, axes, pyramid=False), tmp_path / f"a{suffix}", **options)
    assert not list(tmp_path.iterdir())
