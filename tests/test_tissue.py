"""Tissue is found where phantoms have it, and not where only ink, rims, noise or nothing are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dhlab import phantoms
from dhlab.errors import BadShapeError, BadValueError
from dhlab.grid import TileGrid
from dhlab.scan import Scan
from dhlab.tissue import find_tissue, tissue_mask


def overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return Dice's coefficient of two masks."""
    return 2 * np.count_nonzero(mask & truth) / (np.count_nonzero(mask) + np.count_nonzero(truth))


def shade(image: np.ndarray) -> np.ndarray:
    """Light that falls off towards one corner by a quarter, as of a dirty condenser."""
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]] / np.array(image.shape[:2]).reshape(2, 1, 1)
    return (image * (1 - 0.18 * ((x - 0.3) ** 2 + (y - 0.4) ** 2) - 0.06 * x)[..., None]).astype(np.uint8)


def compress(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR)


def warm(image: np.ndarray) -> np.ndarray:
    return (image * np.array([1, 0.97, 0.9])).astype(np.uint8)


def empty_glass(shape: tuple[int, int] = (701, 503), seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(243, 2, (*shape, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=["h&e", "pale", "ihc"])
def slide(request):
    """A phantom at 4 µm and its truth; pale fat and fat without eosin are as bright as glass, so they do not count."""
    image, labels = phantoms.paint_slide((1100, 1300), rng=3, spacing=4.0, stain=request.param)
    faint = (phantoms.ADIPOSE,) if request.param != "h&e" else ()
    return image, ~np.isin(labels, (phantoms.BACKGROUND, *faint))


@pytest.mark.parametrize("spoil", [lambda i: i, shade, compress, warm, lambda i: shade(compress(i))])
def test_finds_stained_tissue_of_phantoms(slide, spoil):
    image, truth = slide
    mask = tissue_mask(spoil(image), min_area=300, max_hole=300)
    assert mask.shape == truth.shape
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1}
    assert overlap(mask, truth) > 0.9


@pytest.mark.parametrize("rng", range(3))
def test_pen_ink_is_no_tissue(slide, rng):
    image, truth = slide
    drawn = phantoms.draw_pen(image, rng=rng)
    ink = np.abs(drawn.astype(int) - image).max(-1) > 90
    mask = tissue_mask(drawn, min_area=300, max_hole=300)
    assert mask[ink].mean() < 0.05
    assert overlap(mask[~ink], truth[~ink]) > 0.85


def test_pen_ink_counts_if_asked_for():
    drawn = phantoms.draw_pen(empty_glass(), rng=2)
    blue = (drawn[..., 2] > drawn[..., 0] + 60) & (drawn[..., 0] < 120)
    assert tissue_mask(drawn)[blue].mean() < 0.05
    assert tissue_mask(drawn, ink=True)[blue].mean() > 0.5


@pytest.mark.parametrize("colour", [(200, 40, 50), (60, 90, 200), (40, 120, 80), (25, 25, 30)])
def test_a_stroke_of_any_ink_on_glass_is_no_tissue(colour):
    image = empty_glass()
    cv2.line(image, (50, 60), (450, 600), colour, 22, cv2.LINE_AA)
    assert tissue_mask(image).mean() < 0.004


def test_black_rim_is_no_tissue(slide):
    image, truth = slide
    mask = tissue_mask(phantoms.draw_rim(image, width=40), min_area=300, max_hole=300)
    inside = np.s_[48:-48, 48:-48]
    assert mask[:38].max() == mask[:, :38].max() == 0
    assert overlap(mask[inside], truth[inside]) > 0.9


@pytest.mark.parametrize("spoil", [lambda i: i, shade, compress, warm, phantoms.draw_rim])
def test_empty_slide_gives_empty_mask(spoil):
    assert tissue_mask(spoil(empty_glass())).max() == 0


@pytest.mark.parametrize("value", [0, 128, 255])
def test_one_grey_is_no_tissue(value):
    mask = tissue_mask(np.full((97, 61, 3), value, np.uint8))
    assert mask.shape == (97, 61)
    assert mask.max() == 0


@pytest.mark.parametrize(("stain", "sensitivity"), [("h&e", 1), ("pale", 1), ("ihc", 2)])
def test_slide_without_glass_is_all_tissue(stain, sensitivity):
    """No background to split off: Otsu would call half of the tissue glass. Stroma of "ihc" is a twentieth darker."""
    image, labels = phantoms.paint_slide((600, 600), rng=5, spacing=4.0, stain=stain, whole=True)
    solid = np.isin(labels, (phantoms.STROMA, phantoms.EPITHELIUM))
    mask = tissue_mask(image, min_area=100, max_hole=100, sensitivity=sensitivity)
    assert mask[solid].mean() > 0.93


def test_fluorescence_rises_from_the_dark():
    image, labels = phantoms.paint_fluorescence((700, 640), rng=1, spacing=1.0)
    mask = tissue_mask(np.moveaxis(image, 0, -1), min_area=20, max_hole=20)
    assert overlap(mask, labels > 1) > 0.88
    nuclei = tissue_mask(image[0], min_area=20, max_hole=20)
    assert overlap(nuclei, labels == 3) > 0.8


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64, np.int32])
def test_dark_noise_is_no_tissue(dtype):
    noise = np.random.default_rng(0).normal(100, 12, (512, 512)).astype(dtype)
    assert tissue_mask(noise).mean() < 0.001


def test_dark_and_bright_can_be_told():
    dark = np.zeros((200, 200, 3), np.uint8)
    dark[50:150, 50:150] = (90, 20, 180)
    assert tissue_mask(dark).mean() == pytest.approx(0.25, abs=0.02)
    assert tissue_mask(dark, background="bright")[100, 100] == 1
    image, _ = phantoms.paint_slide((300, 300), rng=1, spacing=4.0)
    assert tissue_mask(image, background="dark").mean() != tissue_mask(image).mean()


@pytest.mark.parametrize("shape", [(1, 1), (1, 997), (63, 1), (2, 3), (1025, 7), (2049, 1031)])
def test_hostile_shapes(shape):
    image = np.full((*shape, 3), 243, np.uint8)
    image[: shape[0] // 2 + 1] = (190, 90, 150)
    mask = tissue_mask(image, min_area=1, max_hole=1)
    assert mask.shape == shape
    if min(shape) > 6:
        assert mask.mean() == pytest.approx((shape[0] // 2 + 1) / shape[0], abs=0.03)


def test_alpha_zero_is_glass():
    image, _ = phantoms.paint_slide((300, 300), rng=1, spacing=4.0, whole=True)
    alpha = np.full((300, 300, 1), 255, np.uint8)
    alpha[:, :150] = 0
    mask = tissue_mask(np.concatenate([image, alpha], axis=2))
    assert mask[:, :140].max() == 0
    assert mask[:, 160:].mean() > 0.7


def test_small_parts_and_holes_go():
    image = np.full((600, 600, 3), 243, np.uint8)
    tissue = (190, 90, 150)
    image[100:400, 100:400] = tissue
    image[200:216, 200:216] = 243
    image[300:360, 300:360] = 243
    image[500:510, 500:510] = tissue
    mask = tissue_mask(image, min_area=400, max_hole=400)
    assert mask[205, 205] == 1
    assert mask[330, 330] == 0
    assert mask[505, 505] == 0
    everything = tissue_mask(image, min_area=0, max_hole=0)
    assert everything[208, 208] == 0
    assert everything[505, 505] == 1


def test_sensitivity_finds_paler_tissue():
    image = empty_glass((400, 400))
    image[100:300, 100:300] -= np.array([3, 7, 4], np.uint8)
    assert tissue_mask(image, sensitivity=0.5).max() == 0
    assert tissue_mask(image, sensitivity=2)[120:280, 120:280].mean() > 0.9


def test_mask_lies_on_its_scan():
    image, labels = phantoms.paint_slide((1400, 1201), rng=3, spacing=2.0)
    scan = Scan.from_array(image, "yxc", spacing=2.0, unit="µm", fill=255, name="phantom").replace(origin=(100.0, 50.0))
    mask = find_tissue(scan, spacing=8.0)
    assert mask.kind == "mask"
    assert mask.axes == "yx"
    assert mask.unit == "µm"
    assert all(4 < s <= 8.08 for s in mask.spacing)
    assert mask.origin == (100.0, 50.0)
    assert mask.parent == scan.as_parent()
    assert all(m >= s - 1e-6 for m, s in zip(mask.size, scan.size, strict=True))
    truth = labels != phantoms.BACKGROUND
    fine = cv2.resize(mask.levels[0], None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)[:1400, :1201]
    assert overlap(fine, truth) > 0.93


def test_tiles_within_the_mask():
    image, _ = phantoms.paint_slide((1000, 1000), rng=3, spacing=2.0)
    scan = Scan.from_array(image, "yxc", spacing=2.0, unit="µm", fill=255)
    tissue = find_tissue(scan)
    grid = TileGrid.cover(scan, 100, within=tissue)
    assert 20 < len(grid) < 100
    bare = Scan.from_array(empty_glass((1000, 1000)), "yxc", spacing=2.0, unit="µm", fill=255)
    assert len(TileGrid.cover(bare, 100, within=find_tissue(bare))) == 0


def test_reads_in_bands_where_no_level_is_coarse(monkeypatch):
    image, _ = phantoms.paint_slide((1001, 907), rng=3, spacing=1.0)
    scan = Scan.from_array(image, "yxc", spacing=1.0, unit="µm", fill=255, pyramid=False)
    whole = find_tissue(scan, spacing=4.0).levels[0]
    monkeypatch.setattr("dhlab.tissue.BAND_PX", 907 * 64)
    assert np.array_equal(find_tissue(scan, spacing=4.0).levels[0], whole)


def test_works_for_channels_first_grey_and_volumes():
    image, labels = phantoms.paint_fluorescence((600, 600), rng=1, spacing=1.0)
    scan = Scan.from_array(image, "cyx", spacing=1.0, unit="µm", channels=("a", "b", "c"))
    assert overlap(find_tissue(scan, spacing=1.0, min_area=20).levels[0], labels > 1) > 0.85
    colour, truth = phantoms.paint_slide((600, 600), rng=1, spacing=4.0)
    planes = Scan.from_array(np.moveaxis(colour, -1, 0), "cyx", spacing=4.0, unit="µm", fill=255)
    assert overlap(find_tissue(planes).levels[0], truth != phantoms.BACKGROUND) > 0.9
    ball = np.linalg.norm(np.mgrid[-10:11, -30:31, -30:31] / np.array([10, 30, 30]).reshape(3, 1, 1, 1), axis=0) < 0.7
    volume = np.where(ball, 400, -900) + np.random.default_rng(0).normal(0, 30, ball.shape)
    mask = find_tissue(Scan.from_array(volume.astype(np.int16), "zyx", spacing=(3, 1, 1), unit="mm", fill=-1000))
    assert mask.axes == "zyx"
    assert overlap(mask.levels[0], ball) > 0.98
    flat = Scan.from_array(np.zeros((5, 31, 29), np.int16), "zyx", unit="mm")
    assert find_tissue(flat).levels[0].max() == 0


def test_refuses_what_it_cannot_do():
    image = Scan.from_array(empty_glass((50, 50)), "yxc")
    with pytest.raises(BadShapeError, match="expected y and x"):
        find_tissue(Scan.from_array(np.zeros((3, 100), np.float32), "ct", unit="s"))
    with pytest.raises(BadValueError, match="spacing 0"):
        find_tissue(image, spacing=0)
    with pytest.raises(BadValueError, match="min_area"):
        find_tissue(image, min_area=float("nan"))
    with pytest.raises(BadValueError, match="sensitivity"):
        find_tissue(image, sensitivity=-1)
    with pytest.raises(BadValueError, match="background"):
        find_tissue(image, background="grey")
    with pytest.raises(BadShapeError, match="height, width"):
        tissue_mask(np.zeros(5, np.uint8))


@pytest.fixture
def overview(skin_slide) -> np.ndarray:
    import openslide

    with openslide.OpenSlide(skin_slide) as slide:
        region = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]
    return cv2.resize(region, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)


def test_real_slide_against_places_seen_by_eye(overview):
    image = overview
    height, width = image.shape[:2]
    mask = tissue_mask(image, min_area=400, max_hole=400)
    for y, x in [(0.45, 0.53), (0.75, 0.55), (0.92, 0.30), (0.93, 0.55), (0.36, 0.22), (0.85, 0.77)]:
        near = np.s_[int(y * height) - 6 : int(y * height) + 7, int(x * width) - 6 : int(x * width) + 7]
        assert mask[near].mean() > 0.7, (y, x)
    for y, x in [(0.10, 0.20), (0.60, 0.20), (0.30, 0.85), (0.55, 0.92), (0.18, 0.60), (0.90, 0.10)]:
        near = np.s_[int(y * height) - 6 : int(y * height) + 7, int(x * width) - 6 : int(x * width) + 7]
        assert mask[near].max() == 0, (y, x)
    assert 0.33 < mask.mean() < 0.45


def test_real_slide_with_uneven_light_and_a_rim_stays_the_same(overview):
    image = overview
    plain = tissue_mask(image, min_area=400, max_hole=400)
    inside = np.s_[40:-40, 40:-40]
    spoiled = tissue_mask(phantoms.draw_rim(shade(image), width=20), min_area=400, max_hole=400)
    assert overlap(spoiled[inside], plain[inside]) > 0.95
