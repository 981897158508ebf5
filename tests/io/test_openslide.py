"""OpenSlide's formats: DICOM and MIRAX from the real data, transparency, bounds, label pictures only on request."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest

import dhlab.io as dio
from dhlab import env, phantoms
from dhlab.errors import BadFileError, BadShapeError, BadValueError, NotFoundError
from dhlab.io.openslide import _flatten, associated_images, read

openslide = pytest.importorskip("openslide")


def real(*parts: str):
    folder = env.data_folder()
    path = None if folder is None else folder.joinpath(*parts)
    if path is None or not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} (DHLAB_DATA)")
    return path


@pytest.fixture
def dicom():
    return min(real("wsi-cmu1-small-region", "CMU-1-Small-Region").glob("*.dcm"))


@pytest.fixture
def mirax():
    return real("wsi-mirax-fluorescence", "Mirax2-Fluorescence-2.mrxs")


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    image = np.asarray(phantoms.paint_slide((612, 804), rng=4)[0])
    return phantoms.write_slide(tmp_path_factory.mktemp("a") / "a.svs", image, tile=64, levels=(1, 4), label=True)


def test_dicom_slide(dicom):
    scan = dio.open(dicom)
    assert scan.shape == (2967, 2220)
    assert scan.spacing == (0.499, 0.499)
    assert scan.meta["reader"] == "openslide"
    assert scan.meta["vendor"] == "dicom"
    assert scan.meta["icc"] == "embedded, not applied"
    json.dumps(dict(scan.meta))
    with openslide.OpenSlide(dicom) as peer:
        wanted = np.asarray(peer.read_region((700, 900), 0, (257, 301)).convert("RGB"))
    window = scan.read((900, 700), (301, 257))
    assert np.array_equal(window, wanted)
    tiff = dio.open(real("wsi-cmu1-small-region", "CMU-1-Small-Region.svs")).read((900, 700), (301, 257))
    assert np.abs(window.astype(int) - tiff).mean() < 8, "the same place, encoded anew"


def test_dicom_colours_are_converted_on_request(dicom):
    plain, converted = dio.open(dicom), dio.open(dicom, icc=True)
    assert converted.meta["icc"] == "applied: sRGB"
    from PIL import Image, ImageCms

    with openslide.OpenSlide(dicom) as peer:
        profile = peer.color_profile
    window = plain.read((900, 700), (128, 128))
    wanted = ImageCms.profileToProfile(
        Image.fromarray(window), profile, ImageCms.createProfile("sRGB"), ImageCms.getDefaultIntent(profile)
    )
    assert np.array_equal(converted.read((900, 700), (128, 128)), np.asarray(wanted))


def test_incomplete_mirax_opens_as_far_as_its_files_go(mirax):
    scan = dio.open(mirax)
    assert scan.shape == (152080, 72448)
    y, x, height, width = scan.meta["bounds"]
    assert (y, x, height, width) == (102664, 9153, 7641, 10439)
    inside = scan.read((y + height // 2, x + width // 2), (64, 64), level=4)
    assert inside.std() > 0
    with pytest.raises(BadFileError, match=r"cannot decode level 0 at \(y=\d+, x=\d+\).*all files|incomplete"):
        scan.read((y + height // 2, x + width // 2), (64, 64), level=0)
    assert np.array_equal(scan.read((y + height // 2, x + width // 2), (64, 64), level=4), inside), "after an error"
    assert (scan.read((0, 0), (9, 9), level=5) == scan.fill).all(), "nothing was scanned there"
    assert (scan.read((-99999, -99999), (9, 9), level=5) == scan.fill).all()


def test_mirax_without_its_folder(mirax, tmp_path):
    shutil.copy(mirax, tmp_path / "a.mrxs")
    with pytest.raises(BadFileError, match="folder|files that belong"):
        dio.open(tmp_path / "a.mrxs")


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("size", [(1, 1), (63, 127), (700, 900)])
def test_windows_are_openslides(slide, level, size):
    scan = read(slide, spacing=None, icc=False, series=0)
    starts = np.random.default_rng(1).integers(-100, 800, (9, 2))
    found = scan.read_many(starts, size, level)
    with openslide.OpenSlide(slide) as peer:
        whole = np.asarray(peer.read_region((0, 0), level, peer.level_dimensions[level]).convert("RGB"))
    padded = np.pad(whole, ((200, 1700), (200, 1700), (0, 0)), constant_values=255)
    for (y, x), window in zip(np.rint(starts / scan.scales[level]).astype(int), found, strict=True):
        assert np.array_equal(window, padded[y + 200 : y + 200 + size[0], x + 200 : x + 200 + size[1]])


def test_slicing_and_long_reads_in_bands(slide, monkeypatch):
    import dhlab.io.openslide as module

    level = read(slide, spacing=None, icc=False, series=0).levels[0]
    whole = np.asarray(level)
    monkeypatch.setattr(module, "BAND_PIXELS", 5000)
    assert np.array_equal(level[...], whole)
    assert np.array_equal(level[500:3:-7, 11, 1:], whole[500:3:-7, 11, 1:])
    with pytest.raises(BadShapeError):
        level[[1, 2]]


def test_pickles_by_path(slide):
    scan = read(slide, spacing=None, icc=False, series=0)
    data = pickle.dumps(scan)
    assert len(data) < 3000
    assert np.array_equal(pickle.loads(data).read((50, 60), (70, 80)), scan.read((50, 60), (70, 80)))


def test_label_pictures_come_only_when_called_for(slide):
    found = associated_images(slide)
    assert {"label", "macro"} <= set(found)
    assert all(a.dtype == np.uint8 and a.ndim == 3 and a.shape[2] == 3 for a in found.values())
    for scan in (dio.open(slide), read(slide, spacing=None, icc=False, series=0)):
        sizes = {level.shape for level in scan.levels}
        assert not sizes & {found[name].shape for name in ("label", "macro")}
    with pytest.raises(NotFoundError):
        associated_images(slide.with_name("missing.svs"))


def test_transparent_pixels_take_the_background():
    from PIL import Image

    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [100, 100, 100, 51]]], np.uint8)
    out = np.empty((1, 3, 3), np.uint8)
    _flatten(Image.fromarray(pixels), np.array([200, 200, 200], np.uint8), out)
    assert out.tolist() == [[[10, 20, 30], [200, 200, 200], [180, 180, 180]]]


@pytest.mark.parametrize("suffix", [".ndpi", ".mrxs", ".scn", ".czi"])
def test_text_in_a_slides_clothes(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("hello")
    with pytest.raises(BadFileError, match="OpenSlide"):
        dio.open(path)


def test_other_series_are_refused(slide):
    with pytest.raises(BadValueError, match="series 1"):
        read(slide, spacing=None, icc=False, series=1)
