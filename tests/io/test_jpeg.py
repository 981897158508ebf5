"""Stored tiles go out as pictures of their own only where any other program shows what reading gives."""

from __future__ import annotations

import contextlib
import io
import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image

import dhlab.io as dio
from dhlab import phantoms
from dhlab.errors import BadFileError, BadShapeError
from dhlab.io.jpeg import JpegDecoder, tile_header

RNG = np.random.default_rng(5)
PLAIN = JpegDecoder(tile_header(b"", rgb=False), colour="RGB", tile=(48, 64))


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    return np.asarray(phantoms.paint_slide((613, 487), rng=3)[0])


def encode(height: int = 48, width: int = 64, mode: str = "RGB", **options: object) -> bytes:
    picture = Image.fromarray(RNG.integers(0, 255, (height, width, 3), dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def after_start(stream: bytes, extra: bytes) -> bytes:
    return stream[:2] + extra + stream[2:]


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"comment": b"made here"}])
def test_plain_tiles_pass(options) -> None:
    stream = encode(**options)
    assert PLAIN.picture(stream) == stream


def broken() -> dict[str, bytes]:
    good = encode()
    frame = good.index(b"\xff\xc0")
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "empty": b"",
        "one byte": b"\xff",
        "noise": RNG.bytes(5000),
        "zeros": bytes(5000),
        "cut off": good[:-200],
        "head alone": good[:40] + b"\xff\xd9",
        "turned": encode(exif=exif),
        "with a profile": after_start(good, segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(128))),
        "two frames": after_start(good, good[frame : frame + 19]),
        "no frame": good[:frame] + good[frame + 19 :],
        "huge": good[: frame + 5] + b"\xff\xff\xff\xff" + good[frame + 9 :],
        "12 bit": good[: frame + 4] + b"\x0c" + good[frame + 5 :],
        "lossless": good[: frame + 1] + b"\xc3" + good[frame + 2 :],
        "arithmetic": good[: frame + 1] + b"\xc9" + good[frame + 2 :],
        "a segment of no length": after_start(good, b"\xff\xfe\x00\x00") + b"\xff\xd9",
        "smaller": encode(height=40),
        "grey": encode(mode="L"),
        "four inks": encode(mode="CMYK"),
    }


@pytest.mark.parametrize("name", broken())
def test_tiles_that_others_show_otherwise_stay_here(name) -> None:
    assert PLAIN.picture(broken()[name]) is None


def test_no_bytes_whatever_make_it_fail() -> None:
    stream = bytearray(encode())
    for _ in range(2000):
        at = int(RNG.integers(0, 700))
        damaged = bytes(stream[:at]) + RNG.bytes(3) + bytes(stream[at + 3 :])
        found = PLAIN.picture(damaged)
        if found is not None:
            # A browser may fail at it, but is not told of gigabytes.
            with contextlib.suppress(ValueError):
                assert simplejpeg.decode_jpeg_header(found)[:2] == (48, 64)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("vendor", ["aperio", "generic"])
@pytest.mark.parametrize("tile", [128, 240])
def test_stored_tiles_are_what_reading_gives(tmp_path, tissue, subsampling, vendor, tile) -> None:
    path = tmp_path / "a.tif"
    phantoms.write_slide(path, tissue, tile=tile, levels=(1, 2), subsampling=subsampling, vendor=vendor)
    scan = dio.open(path)
    data = path.read_bytes()
    for number in scan.meta["levels_native"]:
        level = scan.levels[number]
        assert level.holds_pictures
        for row in range(-(-level.shape[0] // tile)):
            for column in range(-(-level.shape[1] // tile)):
                stream = level.stored_tile(row, column)
                pixels = level[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
                height, width = pixels.shape[:2]
                assert np.array_equal(simplejpeg.decode_jpeg(stream, "RGB")[:height, :width], pixels)
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(stream)))[:height, :width], pixels)
                assert stream[-500:] in data


def test_levels_that_are_not_stored_as_pictures_say_so(tmp_path, tissue) -> None:
    from PIL import ImageCms

    path = tmp_path / "a.svs"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    phantoms.write_slide(path, tissue, tile=128, levels=(1,), icc=profile)
    plain, converted = dio.open(path), dio.open(path, icc=True)
    assert plain.levels[0].holds_pictures
    assert not converted.levels[0].holds_pictures
    assert converted.levels[0].stored_tile(0, 0) is None
    dio.save(plain, tmp_path / "zip.ome.tif", compression="deflate")
    other = dio.open(tmp_path / "zip.ome.tif")
    assert not other.levels[0].holds_pictures
    assert other.levels[0].stored_tile(0, 0) is None


def test_levels_scaled_while_decoding_are_not_stored(tmp_path, tissue) -> None:
    path = phantoms.write_slide(tmp_path / "a.svs", np.tile(tissue, (4, 4, 1)), tile=128, levels=(1,))
    scan = dio.open(path)
    assert [level.holds_pictures for level in scan.levels] == [True] + [False] * (len(scan.levels) - 1)
    assert len(scan.levels) > 1


def test_tiles_that_are_missing_cut_off_or_nowhere(tmp_path, tissue) -> None:
    import tifffile

    path = phantoms.write_slide(tmp_path / "a.tif", tissue, tile=128, levels=(1,), vendor="generic")
    with tifffile.TiffFile(path) as file:
        counts, offsets = file.pages[0].tags["TileByteCounts"], file.pages[0].dataoffsets
    data = bytearray(path.read_bytes())
    data[counts.valueoffset : counts.valueoffset + 4] = bytes(4)
    data[offsets[1] : offsets[1] + 100] = bytes(100)
    path.write_bytes(data)
    level = dio.open(path).levels[0]
    assert level.stored_tile(0, 0) is None
    assert level.stored_tile(0, 1) is None
    assert level.stored_tile(0, 2) is not None
    for place in ((-1, 0), (0, 4), (5, 0)):
        with pytest.raises(BadShapeError, match=r"5 × 4 tiles"):
            level.stored_tile(*place)
    last = 4 + 4 * len(offsets) - 8
    data[counts.valueoffset + last - 4 : counts.valueoffset + last] = struct.pack("<I", 1 << 30)
    path.write_bytes(data)
    with pytest.raises(BadFileError, match=r"row 4, column 2"):
        dio.open(path).levels[0].stored_tile(4, 2)
