"""Pictures and masks: every value has a name, every mask fits its picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dhlab.datasets import Dataset
from dhlab.datasets.masks import MaskValues
from dhlab.errors import BadShapeError, BadValueError

COLOURS = {"background": (0, 0, 0), "disc": (255, 0, 0), "canal": (0, 255, 7)}


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    for n in range(4):
        Image.fromarray(rng.integers(0, 255, (37, 41, 3)).astype(np.uint8)).save(tmp_path / "images" / f"p{n}.png")
        save(tmp_path, n, rng.integers(0, 3, (37, 41)).astype(np.uint8) * 100)
    return tmp_path


def save(folder, n, mask, suffix=".png", **options):
    for old in (folder / "masks").glob(f"p{n}*"):
        old.unlink()
    Image.fromarray(mask).save(folder / "masks" / f"p{n}{suffix}", **options)


def load(folder, **options):
    named = {"values": {"a": 0, "b": 100, "c": 200}} | options
    return Dataset.from_pairs(folder / "images", folder / "masks", **named)


def mask_of(folder, n):
    return np.asarray(Image.open(folder / "masks" / f"p{n}.png"))


def test_masks_become_class_indices(folder):
    data = load(folder, patient=r"p(\d)")
    assert data.classes == ("a", "b", "c")
    assert data.groups == ("0", "1", "2", "3")
    _, targets = data.batch([2, 0])
    assert targets.dtype == np.int64
    assert np.array_equal(targets[0] * 100, mask_of(folder, 2))
    assert np.array_equal(data.class_counts, np.bincount(data.batch(range(4))[1].ravel()))
    ignoring = load(folder, values={"c": 200, "a": 0}, ignore=[100])
    assert np.array_equal(ignoring[1][1], np.select([mask_of(folder, 1) == 200, mask_of(folder, 1) == 0], [0, 1], -1))


def test_colours_and_palettes(folder):
    index = mask_of(folder, 0) // 100
    coloured = np.array(list(COLOURS.values()), np.uint8)[index]
    for n in range(4):
        save(folder, n, coloured)
    assert np.array_equal(load(folder, values=COLOURS)[0][1], index)
    with pytest.raises(BadValueError, match=r"p0\.png is in colour \(3 colours\), but values are grey"):
        load(folder)[0]
    with pytest.raises(BadValueError, match=r"\(255, 0, 0\) \(\d+ px\).*Known: background"):
        load(folder, values={"background": (0, 0, 0), "canal": (0, 255, 7)})[0]
    near = np.where(coloured == 255, 251, coloured).astype(np.uint8)
    save(folder, 1, near)
    assert np.array_equal(load(folder, values=COLOURS, tolerance=4)[1][1], index)
    palette = Image.fromarray(index, "P")
    palette.putpalette([9, 9, 9, 99, 0, 0, 7, 200, 31])
    palette.save(folder / "masks" / "p2.png")
    assert np.array_equal(load(folder, values={"a": 0, "b": 1, "c": 2})[2][1], index)
    grey_in_colour = np.repeat(index[..., None], 3, 2)
    save(folder, 3, grey_in_colour)
    assert np.array_equal(load(folder, values={"a": 0, "b": 1, "c": 2})[3][1], index)


def test_the_rest_may_have_one_name(folder):
    numbers = np.arange(37 * 41, dtype=np.uint16).reshape(37, 41)
    save(folder, 0, numbers)
    assert np.array_equal(load(folder, values={"background": 0, "nucleus": "rest"})[0][1], numbers > 0)
    with pytest.raises(BadValueError, match="at most one"):
        MaskValues({"a": "rest", "b": "rest"})


def test_jpeg_masks_need_a_tolerance(folder):
    disc = (np.hypot(*np.mgrid[-18:19, -20:21]) < 12).astype(np.uint8) * 255
    save(folder, 0, disc, ".jpg", quality=60)
    with pytest.raises(
        BadValueError, match=r"p0\.jpg holds values without a name.*JPEG changes values: give tolerance"
    ):
        load(folder, values={"a": 0, "b": 255})[0]
    got = load(folder, values={"a": 0, "b": 255}, tolerance=127)[0][1]
    assert (got != disc // 255).mean() < 0.01


def test_resized_masks_hold_no_new_class(folder):
    data = load(folder, size=(19, 83), values={"a": 0, "b": 100, "c": 200})
    images, targets = data.batch([0, 1])
    assert images.shape == (2, 19, 83, 3)
    assert targets.shape == (2, 19, 83)
    assert set(np.unique(targets)) == {0, 1, 2}


@pytest.mark.parametrize("size", [None, 16])
def test_a_mask_of_another_size_is_refused(folder, size):
    save(folder, 2, np.zeros((41, 37), np.uint8))
    with pytest.raises(BadShapeError, match=r"masks/p2\.png is 41 × 37 px, its picture .*images/p2\.png 37 × 41 px"):
        load(folder, size=size)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_threads_change_nothing(folder, monkeypatch, threads):
    monkeypatch.setenv("DHLAB_THREADS", threads)
    order = [3, 0, 2, 1] * 5
    images, targets = load(folder, size=(20, 30)).batch(order)
    for image, target, index in zip(images, targets, order, strict=True):
        alone = load(folder, size=(20, 30))[index]
        assert np.array_equal(image, alone[0])
        assert np.array_equal(target, alone[1])


def test_unknown_values_are_counted(folder):
    mask = np.zeros((37, 41), np.uint8)
    mask[:2, :3], mask[9, 9] = 7, 9
    save(folder, 3, mask)
    with pytest.raises(
        BadValueError, match=r"masks/p3\.png holds values without a name: 7 \(6 px\), 9 \(1 px\)\. Known: a 0"
    ):
        load(folder).batch([0, 3])
    flat = mask.astype(np.float32) / 3
    Image.fromarray(flat).save(folder / "masks" / "p3.tif")
    (folder / "masks" / "p3.png").unlink()
    with pytest.raises(BadValueError, match="whole numbers"):
        load(folder)[3]


def test_pairs_must_be_whole(folder):
    (folder / "masks" / "p1.png").rename(folder / "masks" / "q1.png")
    with pytest.raises(BadValueError, match=r"1 of the images have no mask.*images/p1\.png"):
        load(folder)
    (folder / "images" / "p1.png").unlink()
    with pytest.raises(BadValueError, match=r"1 of the masks have no image.*masks/q1\.png"):
        load(folder)
    lists = [sorted((folder / name).iterdir()) for name in ("images", "masks")]
    with pytest.raises(BadValueError, match="3 images and 4 masks"):
        Dataset.from_pairs(*lists, values={"a": "rest"})
    with pytest.raises(BadValueError, match=r"p0\.png stands among the images more than once"):
        Dataset.from_pairs([*lists[0], lists[0][0]], lists[1], values={"a": "rest"})
    assert len(Dataset.from_pairs(lists[0], lists[1][:3], values={"a": "rest"})) == 3
    for path in lists[1]:
        path.rename(path.with_name(path.stem + "_mask.png"))
    (folder / "masks" / "q1_mask.png").unlink()
    assert len(load(folder, mask_suffix="_mask")) == 3


def test_volumes_pair_too(tmp_path):
    import nibabel

    rng = np.random.default_rng(0)
    for n in range(2):
        for name, volume in (
            (f"p{n}", rng.normal(size=(4, 5, 6)).astype(np.float32)),
            (f"p{n}_seg", rng.integers(0, 3, (4, 5, 6)).astype(np.float32)),
        ):
            folder = tmp_path / ("masks" if "seg" in name else "images")
            folder.mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), folder / f"{name}.nii.gz")
    data = load(tmp_path, values={"a": 0, "b": 1, "c": 2}, mask_suffix="_seg")
    assert data.axes == "zyx"
    image, target = data[1]
    assert image.dtype == np.float32
    stored = nibabel.load(tmp_path / "masks" / "p1_seg.nii.gz").get_fdata()
    assert np.array_equal(target, stored.T[:, ::-1, ::-1])
    small = load(tmp_path, values={"a": 0, "b": 1, "c": 2}, mask_suffix="_seg", size=(3, 2))[0]
    assert small[0].shape == small[1].shape == (6, 3, 2)
    assert "data:image/png" in data._repr_html_()


def test_values_must_be_values():
    for values, message in (
        ({}, "at least one class"),
        ({"a": 3, "b": 3}, "two meanings"),
        ({"a": 3, "b": (1, 2, 3)}, "mix"),
        ({"a": "other"}, "'rest'"),
        ({"a": -1}, "grey value"),
        ({"a": (1, 2)}, "grey value"),
    ):
        with pytest.raises(BadValueError, match=message):
            MaskValues(values)
