"""Phantoms: the same seed gives the same pixels, the truth is true, and the files are what scanners write."""

from __future__ import annotations

import io
import math

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image, ImageCms

from dhlab.errors import BadShapeError, BadValueError, StorageError
from dhlab.phantoms import (
    CLASSES,
    FLUOROPHORES,
    STAINS,
    draw_pen,
    draw_rim,
    make_icc_profile,
    make_signal,
    make_volume,
    paint_fluorescence,
    paint_large_slide,
    paint_slide,
    write_slide,
)


def density(image: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(image, 1) / 243.0)


@pytest.fixture(scope="module")
def slide() -> tuple[np.ndarray, np.ndarray]:
    return paint_slide((1101, 1301), rng=3, spacing=0.5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (63, 1), (127, 131)])
@pytest.mark.parametrize("stain", ["h&e", "ihc", "pale"])
def test_any_shape_is_painted(shape, stain):
    image, labels = paint_slide(shape, rng=1, stain=stain)
    assert image.shape == (*shape, 3)
    assert image.dtype == labels.dtype == np.uint8
    assert labels.shape == shape
    assert 1 <= labels.min() <= labels.max() <= len(CLASSES)


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others():
    first, again, other = (paint_slide((160, 200), rng=seed, spacing=1.0) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).mean() > 0.2
    drawn = paint_slide((160, 200), rng=np.random.default_rng(5), spacing=1.0)[0]
    np.testing.assert_array_equal(first[0], drawn)


def test_every_class_is_there_and_absorbs_as_its_stains_do(slide):
    image, labels = slide
    absorbed = density(image)
    mean = [absorbed[labels == i + 1].mean(0) for i in range(len(CLASSES))]
    glass, stroma, epithelium, fat = mean
    assert all((labels == i + 1).mean() > 0.005 for i in range(len(CLASSES)))
    assert glass.mean() < 0.02 < fat.mean() < stroma.mean() < epithelium.mean()
    eosin, haematoxylin = (np.asarray(STAINS[s]) / np.linalg.norm(STAINS[s]) for s in ("eosin", "haematoxylin"))

    def direction(v):
        return v / np.linalg.norm(v)

    assert direction(stroma) @ eosin > 0.98
    assert direction(epithelium) @ haematoxylin > direction(stroma) @ haematoxylin + 0.01


def test_structures_keep_their_physical_size():
    """A gland's wall has the same thickness in µm whatever the spacing: area grows with the square of resolution."""
    shares = []
    for spacing in (0.5, 1.0):
        side = int(900 / spacing)
        shares.append(np.mean([(paint_slide((side, side), rng=s, spacing=spacing)[1] == 3).mean() for s in range(4)]))
    assert shares[0] == pytest.approx(shares[1], rel=0.5)


def test_pale_is_paler_and_ihc_is_brown(slide):
    image, labels = slide
    pale, same = paint_slide((1101, 1301), rng=3, spacing=0.5, stain="pale")
    brown, _ = paint_slide((1101, 1301), rng=3, spacing=0.5, stain="ihc")
    np.testing.assert_array_equal(same, labels)
    tissue = labels == 2
    assert density(pale)[tissue].mean() == pytest.approx(0.33 * density(image)[tissue].mean(), rel=0.1)
    red, blue = (density(brown)[labels == 3][:, i].mean() for i in (0, 2))
    assert blue > 1.1 * red  # DAB absorbs blue most


def test_whole_leaves_no_glass_around():
    _, labels = paint_slide((300, 300), rng=2, whole=True)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    assert (border == 1).mean() < 0.4
    _, labels = paint_slide((300, 300), rng=2)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    assert (border == 1).mean() > 0.6


def test_jpeg_tiles_weigh_what_real_ones_do():
    image, _ = paint_slide((1024, 1024), rng=1, spacing=0.25, whole=True)
    sizes = []
    for y in range(0, 1024, 256):
        for x in range(0, 1024, 256):
            buffer = io.BytesIO()
            Image.fromarray(image[y : y + 256, x : x + 256]).save(buffer, "JPEG", quality=80)
            sizes.append(buffer.tell())
    assert 20_000 < np.mean(sizes) < 32_000


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"shape": (0, 5)}, BadShapeError),
        ({"spacing": 0.0}, BadValueError),
        ({"spacing": math.nan}, BadValueError),
        ({"stain": "giemsa"}, BadValueError),
    ],
)
def test_senseless_arguments_are_refused(arguments, error):
    with pytest.raises(error, match="expected"):
        paint_slide(**{"shape": (8, 8), **arguments})


def test_large_slide_reads_the_same_in_any_pieces():
    large = paint_large_slide((5000, 3001), rng=4)
    assert large.shape == (5000, 3001, 3)
    window = large[1900:2300, 900:1300]
    for rows, columns in ((slice(1900, 2100), slice(900, 1301)), (slice(2099, 2300), slice(1100, 1300))):
        piece = large[rows, columns]
        top, left = rows.start - 1900, columns.start - 900
        height, width = min(len(piece), 400 - top), min(piece.shape[1], 400 - left)
        np.testing.assert_array_equal(piece[:height, :width], window[top : top + height, left : left + width])
    whole = large[::16, ::16]
    assert whole.shape == (313, 188, 3)
    truth = large.labels(np.s_[::16, ::16])
    assert density(whole)[truth == 1].mean() < 0.02 < density(whole)[truth == 2].mean()


@pytest.mark.parametrize("vendor", ["aperio", "generic"])
def test_file_is_what_openslide_expects(tmp_path, slide, vendor):
    image, _ = slide
    options = {"magnification": 20.0} if vendor == "aperio" else {}
    path = write_slide(tmp_path / "a b é.svs", image, spacing=0.5, vendor=vendor, **options)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with openslide.OpenSlide(path) as file:
        assert file.properties["openslide.vendor"] == {"aperio": "aperio", "generic": "generic-tiff"}[vendor]
        assert file.level_dimensions == ((1301, 1101), (325, 275), (81, 68))
        assert float(file.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        levels = [
            np.asarray(file.read_region((0, 0), i, file.level_dimensions[i]).convert("RGB"), float) for i in range(3)
        ]
    assert np.abs(levels[0] - image).mean() < 6
    for step, level in ((4, levels[1]), (16, levels[2])):
        height, width = level.shape[:2]
        mean = image[: height * step, : width * step].reshape(height, step, width, step, 3).mean((1, 3))
        assert np.abs(level - mean).mean() < 5, step


def test_written_in_horizontal_bands(tmp_path):
    class Spy:
        shape, dtype = (1024, 700, 3), np.dtype(np.uint8)
        most = 0

        def __getitem__(self, key):
            part = np.broadcast_to(np.uint8(200), self.shape)[key]
            Spy.most = max(Spy.most, part.size)
            return part

    write_slide(tmp_path / "a.svs", Spy(), tile=64)
    assert Spy.most == 64 * 700 * 3


def test_ome_tiff_has_its_levels_and_spacing(tmp_path, slide):
    image, _ = slide
    path = write_slide(tmp_path / "a.ome.tif", image, spacing=0.5, vendor="ome", levels=(1, 2, 4))
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert [level.shape for level in file.series[0].levels] == [(1101, 1301, 3), (550, 650, 3), (275, 325, 3)]
        assert 'PhysicalSizeX="0.5"' in file.ome_metadata


def test_fluorescence_is_kept_losslessly(tmp_path):
    image, labels = paint_fluorescence((131, 257), rng=1)
    assert image.shape == (3, 131, 257)
    assert image.dtype == np.uint16
    nuclei = image[0]
    assert nuclei[labels == 3].mean() > 5 * nuclei[labels == 1].mean()
    path = write_slide(tmp_path / "a.ome.tif", image, vendor="ome", channels=FLUOROPHORES, levels=(1, 4))
    with tifffile.TiffFile(path) as file:
        np.testing.assert_array_equal(file.series[0].asarray(), image)
        small = file.series[0].levels[1].asarray()
        assert all(f'Name="{name}"' in file.ome_metadata for name in FLUOROPHORES)
    mean = image[:, :128, :256].reshape(3, 32, 4, 64, 4).mean((2, 4))
    assert np.abs(small - mean).max() <= 1


def test_missing_spacing_is_missing(tmp_path, slide):
    image = slide[0][:256, :256]
    for vendor in ("aperio", "generic"):
        path = write_slide(tmp_path / f"{vendor}.svs", image, spacing=None, vendor=vendor, levels=(1,))
        with openslide.OpenSlide(path) as file:
            assert "openslide.mpp-x" not in file.properties
            assert "openslide.objective-power" not in file.properties


def test_label_pages_show_an_invented_patient(tmp_path, slide):
    image = slide[0][:256, :256]
    with openslide.OpenSlide(write_slide(tmp_path / "with.svs", image, label=True)) as file:
        assert set(file.associated_images) == {"label", "macro", "thumbnail"}
        assert np.asarray(file.associated_images["label"].convert("L")).min() < 100
    with openslide.OpenSlide(write_slide(tmp_path / "without.svs", image)) as file:
        assert set(file.associated_images) == {"thumbnail"}


def test_icc_profile_is_valid_and_changes_colours(tmp_path, slide):
    image = slide[0][:256, :256]
    profile = make_icc_profile()
    with openslide.OpenSlide(write_slide(tmp_path / "a.svs", image, icc=profile)) as file:
        assert file.color_profile.tobytes() == profile
    picture = Image.fromarray(np.full((4, 4, 3), (200, 120, 170), np.uint8))

    def to_srgb(profile: bytes) -> np.ndarray:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        return np.asarray(ImageCms.profileToProfile(picture, source, target), int)[0, 0]

    assert (to_srgb(profile) > np.add((200, 120, 170), 5)).all()  # a smaller exponent means more light
    assert np.abs(to_srgb(make_icc_profile(2.2)) - (200, 120, 170)).max() < 4


def test_corrupt_level_leaves_the_others_sound(tmp_path, slide):
    image = slide[0]
    path = write_slide(tmp_path / "a.svs", image, corrupt_level=1)
    with tifffile.TiffFile(path) as file:
        levels = file.series[0].levels
        assert np.abs(levels[0].asarray().astype(int) - image).mean() < 6
        with pytest.raises(Exception, match=r"(?i)jpeg|decode|header|marker"):
            levels[1].asarray()
        levels[2].asarray()


def test_truncated_file_keeps_its_share(tmp_path, slide):
    image = slide[0][:300, :300]
    whole = write_slide(tmp_path / "whole.svs", image).stat().st_size
    assert write_slide(tmp_path / "part.svs", image, keep=0.5).stat().st_size == whole // 2


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"tile": 100}, BadValueError),
        ({"levels": (2, 4)}, BadValueError),
        ({"levels": (1, 4, 6)}, BadValueError),
        ({"keep": 0.0}, BadValueError),
        ({"corrupt_level": 9}, BadValueError),
        ({"levels": (1, 64)}, BadShapeError),
        ({"image": np.zeros((64, 64), np.uint8)}, BadShapeError),
        ({"image": np.zeros((64, 64, 3), np.uint16)}, BadShapeError),
        ({"image": np.zeros((2, 64, 64), np.uint16)}, BadShapeError),
        ({"path": "nowhere/a.svs"}, StorageError),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, change, error):
    arguments = {"path": "a.svs", "image": np.zeros((32, 32, 3), np.uint8), "levels": (1, 2), **change}
    with pytest.raises(error):
        write_slide(tmp_path / arguments.pop("path"), arguments.pop("image"), **arguments)
    assert not list(tmp_path.iterdir())


def test_pen_and_rim_darken_only_where_they_are(slide):
    image = slide[0]
    marked = draw_pen(image, rng=1)
    touched = (marked != image).any(-1)
    assert 0.005 < touched.mean() < 0.2
    assert marked[touched].mean() < image[touched].mean()
    rimmed = draw_rim(image, width=17)
    np.testing.assert_array_equal(rimmed[17:-17, 17:-17], image[17:-17, 17:-17])
    assert rimmed[:17].max() < 10
    np.testing.assert_array_equal(draw_rim(image, width=0), image)


def test_volume_holds_the_nodules_that_it_names():
    volume, truth = make_volume((23, 61, 67), rng=2, nodules=3)
    values, labels = (np.asarray(s.levels[0][...]) for s in (volume, truth))
    assert (volume.axes, volume.dtype, volume.unit) == ("zyx", np.int16, "mm")
    assert values[labels == 1].mean() == pytest.approx(-1000, abs=30)
    assert values[labels == 3].mean() == pytest.approx(-840, abs=80)
    assert len(volume.meta["nodules"]) == 3
    for nodule in volume.meta["nodules"]:
        assert labels[tuple(nodule["centre"])] == 5
    voxel = math.prod(volume.spacing)
    largest = max(n["diameter"] for n in volume.meta["nodules"])
    assert 0 < (labels == 5).sum() * voxel <= 3 * math.pi / 6 * (largest + 6) ** 3
    again = make_volume((23, 61, 67), rng=2, nodules=3)[0]
    np.testing.assert_array_equal(np.asarray(again.levels[0][...]), values)


def test_signal_bursts_where_it_says():
    signal, truth = make_signal(20.0, rng=1, rate=101.0, channels=("C3", "O1"), bursts=2)
    values, labels = (np.asarray(s.levels[0][...]) for s in (signal, truth))
    assert (signal.axes, signal.dtype, signal.unit) == ("ct", np.float32, "s")
    assert values.shape == (2, 2020)
    assert signal.spacing == pytest.approx((1 / 101,))
    assert values[:, labels == 2].std() > 2 * values[:, labels == 1].std()
    time = np.arange(2020) / 101
    inside = np.zeros(2020, bool)
    for start, stop in signal.meta["bursts"]:
        inside |= (time >= start - 1e-3) & (time < stop + 1e-3)
    assert (inside == (labels == 2)).mean() > 0.998
    with pytest.raises(BadShapeError):
        make_signal(0.0)
