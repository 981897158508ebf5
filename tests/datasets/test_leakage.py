"""Leakage: what is shared is found, and what only looks alike is not."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dhlab import env
from dhlab.datasets import Dataset, check_apart, find_duplicates
from dhlab.errors import BadValueError

REAL = {
    "dermoscopy": "dermoscopy-isic-uda1/images/*.jpg",
    "polyps": "histo-colon-ebhi/polyp/images/*.jpg",
    "nuclei": "nuclei-dsb2018/stained/images/*.png",
    "brain": "mri-ms-flair/images/*",
    "chest": "cxr-covid-open/448/*.jpg",
    "lung": "ct-lung-tumour-slices/images/*",
}


def texture(count: int, side: int = 64, seed: int = 0) -> np.ndarray:
    """Pictures of random blobs, ``(count, side, side, 3)`` uint8."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(count, side, side))
    smooth = gaussian_filter(noise, (0, side / 20, side / 20))
    unit = (smooth - smooth.min((1, 2), keepdims=True)) / np.ptp(smooth, (1, 2), keepdims=True)
    return (unit[..., None] * (255, 190, 230)).astype(np.uint8)


def arrays(images: np.ndarray, **options) -> Dataset:
    labels = np.arange(len(images)) % 2
    return Dataset.from_arrays(images, labels, classes=("a", "b"), task="classification", **options)


def changed(image: np.ndarray, how: str) -> np.ndarray:
    picture = Image.fromarray(image)
    if how.startswith("jpeg"):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=int(how[4:]))
        return np.asarray(Image.open(buffer).convert(picture.mode))
    if how == "brighter":
        return np.clip(image * 0.8 + 30, 0, 255).astype(np.uint8)
    factor = float(how)
    size = round(picture.width * factor), round(picture.height * factor)
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


CHANGES = ("jpeg50", "brighter", "0.5", "0.77", "2")


@pytest.mark.parametrize("how", CHANGES)
def test_copies_are_found(how):
    images = texture(12)
    copies = np.stack([changed(image, how) for image in images[[3, 8]]])
    with pytest.raises(
        BadValueError, match=r"2 pairs of nearly the same pictures.*sample 3 and sample 0, sample 8 and sample 1"
    ):
        check_apart(arrays(images), arrays(copies, name="copies"))
    check_apart(arrays(images[:3]), arrays(copies))
    check_apart(arrays(images), arrays(copies), duplicates=False)


def test_duplicates_within_a_set():
    images = texture(9)
    images[7], images[4] = images[2], changed(images[2], "jpeg60")
    assert find_duplicates(arrays(images)) == [(2, 4), (2, 7), (4, 7)]
    assert find_duplicates(arrays(images).subset([1, 7, 3, 2])) == [(1, 3)]
    assert find_duplicates(Dataset.concat([arrays(images[:3]), arrays(images[5:])])) == [(2, 5)]
    with pytest.raises(BadValueError, match="alike 0"):
        find_duplicates(arrays(images), alike=0)


def test_empty_glass_is_no_duplicate():
    rng = np.random.default_rng(0)
    blank = np.clip(240 + rng.normal(0, 1.5, (20, 64, 64, 3)), 0, 255).astype(np.uint8)
    blank[3] = 255
    blank[4] = 255
    assert find_duplicates(arrays(blank)) == []


def test_volumes_deep_pictures_signals_and_bags():
    base = texture(5)[..., 0]
    deep = base.astype(np.uint16) * 200
    deep[4] = deep[1] + 300
    assert find_duplicates(arrays(deep, axes="yx")) == [(1, 4)]
    volumes = np.stack([np.stack([p // 2, p, p // 3]) for p in base])
    volumes[3] = volumes[0]
    assert find_duplicates(arrays(volumes, axes="zyx")) == [(0, 3)]
    assert find_duplicates(arrays(np.moveaxis(volumes, 1, -1), axes="yxz")) == [(0, 3)]
    signals = np.random.default_rng(0).normal(size=(6, 2, 90)).astype(np.float32)
    signals[5] = signals[0]
    assert find_duplicates(arrays(signals, axes="ct")) == [(0, 5)]
    with pytest.raises(BadValueError, match="sample 2 and sample 0"):
        check_apart(arrays(signals[3:], axes="ct"), arrays(signals[:2], axes="ct"))
    bags = [s.T for s in signals]
    assert find_duplicates(Dataset.from_bags(bags, [0] * 6, classes="a")) == [(0, 5)]


def test_shared_patients_and_files_are_named(tmp_path):
    images = texture(8)
    first, second = arrays(images[:4], groups=list("abcd"), name="one"), arrays(images[4:], groups=list("dxay"))
    with pytest.raises(BadValueError, match=r"'one' and 'arrays' are not apart: 2 patients in both \(a, d\)"):
        check_apart(first, second)
    for label in "ab":
        (tmp_path / label).mkdir()
    for n, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "ab"[n % 2] / f"{n}.png")
    data = Dataset.from_folder(tmp_path)
    parts = data.split({"training": 0.5, "test": 0.5})
    check_apart(parts.part("training"), parts.part("test"))
    with pytest.raises(BadValueError, match=r"1 file in both \(.*b/1\.png\)"):
        check_apart(data.subset([0, 4]), data.subset([4, 5]))
    (tmp_path / "linked" / "a").mkdir(parents=True)
    (tmp_path / "linked" / "a" / "other.png").symlink_to(tmp_path / "a" / "2.png")
    with pytest.raises(BadValueError, match="1 file in both"):
        check_apart(data, Dataset.from_folder(tmp_path / "linked"))


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_regions_of_one_scan_may_not_overlap(task):
    import shapely

    from dhlab.annotations import Annotations
    from dhlab.scan import Scan

    scan = Scan.from_array(texture(1, 300)[0], "yxc", spacing=0.5, unit="µm", name="slide")
    drawn = Annotations.from_geometries([shapely.box(0, 0, 300, 300)], ["all"], parent=scan)

    def cut(start: int) -> Dataset:
        return Dataset.from_annotations(
            scan, drawn, classes=("all",), tile=25, spacing=1.0, task=task, region=((start, 0), (100, 300))
        )

    check_apart(cut(0), cut(100))
    with pytest.raises(BadValueError, match=r"1 scan with windows that overlap in both \(slide\)"):
        check_apart(Dataset.concat([cut(200), cut(0)]), cut(90))
    check_apart(cut(0).subset([0]), cut(90))
    check_apart(Dataset.concat([cut(90), cut(0)]).subset([len(cut(90))]), cut(90))
    with pytest.raises(BadValueError, match="training and test would show the same places of slide.*region="):
        cut(0).split({"training": 0.5, "test": 0.5})
    with pytest.raises(BadValueError, match="fold 1 and fold 2 would show"):
        cut(0).folds(2)
    other = cut(200)
    known = Dataset.concat(
        [replace(d, groups=(g,) * len(d), unit_name="patient") for d, g in ((cut(0), "a"), (other, "b"))]
    )
    assert len(known.split({"training": 0.5, "test": 0.5}).part("test")) == len(other)


def test_samples_without_names_share_no_patient():
    images = texture(8)
    check_apart(arrays(images[:4]), arrays(images[4:]))


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_pictures_look_like_no_other_and_like_their_copies(name, tmp_path):
    folder = env.data_folder()
    paths = sorted(folder.glob(REAL[name]))[:60] if folder is not None else []
    if not paths:
        pytest.skip(f"{REAL[name]} is not in the data folder")
    from dhlab.datasets.files import FileSamples, PictureFiles

    def dataset(files):
        pictures = PictureFiles(tuple((str(p),) for p in files), (128, 128), channels=1).check()
        return Dataset(FileSamples(pictures, np.zeros(len(files), np.int64)), ("a",), "classification", axes="yx")

    data = dataset(paths)
    assert find_duplicates(data) == []
    copies = []
    for n, path in enumerate(paths):
        copies.append(tmp_path / f"{n}.png")
        small = changed(np.asarray(Image.open(path).convert("L")), "0.77")
        Image.fromarray(changed(small, "jpeg60")).save(copies[-1])
    joined = Dataset.concat([data, dataset(copies)])
    assert find_duplicates(joined) == [(i, i + len(paths)) for i in range(len(paths))]


def test_the_published_chest_set_repeats_pictures_across_its_splits():
    folder = env.data_folder()
    if folder is None or not (folder / "cxr-pneumoniamnist").is_dir():
        pytest.skip("cxr-pneumoniamnist is not in the data folder")
    sets = []
    for name in ("train", "val"):
        stored = np.load(folder / "cxr-pneumoniamnist" / f"{name}.npz")
        sets.append(
            Dataset.from_arrays(
                stored["images"],
                stored["labels"].astype(int),
                classes=("normal", "pneumonia"),
                task="classification",
                axes="yx",
                name=name,
            )
        )
    pairs = find_duplicates(sets[0])
    assert len(pairs) == 2
    for i, j in pairs:
        assert np.array_equal(sets[0][i][0], sets[0][j][0])
    with pytest.raises(BadValueError, match="'train' and 'val' are not apart: 2 pairs of nearly the same pictures"):
        check_apart(*sets)
