"""Datasets: regions never share a pixel, targets are what was drawn, and what cannot be learned from is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import shapely

from dhlab.annotations import Annotations
from dhlab.datasets import Dataset
from dhlab.errors import BadShapeError, BadValueError, UnknownNameError
from dhlab.scan import Scan

SHAPES = {
    "left": shapely.box(10, 20, 300, 500),
    "right": shapely.box(320, 20, 610, 500),
    "hole": shapely.box(300, 520, 400, 600).difference(shapely.box(330, 540, 360, 560)),
}
CLASSES = ("right", "left", "hole")


@pytest.fixture(scope="module")
def scan() -> Scan:
    """A scan whose red channel numbers rows and green columns, so that a pixel tells where it lies."""
    y, x = np.mgrid[0:701, 0:631]
    image = np.stack([y % 251, x % 241, (y // 251) * 16 + x // 241], axis=-1).astype(np.uint8)
    return Scan.from_array(image, "yxc", spacing=0.5, unit="µm", fill=255, name="numbered")


@pytest.fixture(scope="module")
def drawn(scan) -> Annotations:
    return Annotations.from_geometries(list(SHAPES.values()), list(SHAPES), parent=scan)


def places(images: np.ndarray) -> np.ndarray:
    """Decode the level-0 positions of pixels of the numbered scan, ``(N, 2)``."""
    red, green, blue = (images[..., i].astype(int) for i in range(3))
    return np.stack([red + 251 * (blue // 16), green + 241 * (blue % 16)], -1).reshape(-1, 2)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("tile", [63, (64, 47)])
def test_windows_stay_in_their_region_and_cover_it(scan, drawn, tile, overlap):
    region = ((101, 53), (257, 211))
    data = Dataset.from_annotations(
        scan, drawn, classes=CLASSES, tile=tile, region=region, overlap=overlap, min_labelled=0
    )
    images, targets = data.batch(range(len(data)))
    assert images.dtype == np.uint8
    assert targets.dtype == np.int64
    seen = np.zeros(scan.shape, bool)
    seen[tuple(places(images).T)] = True
    assert seen[101 : 101 + 257, 53 : 53 + 211][:, : 300 - 53].all()
    assert seen.sum() <= 257 * 211
    seen[101 : 101 + 257, 53 : 53 + 211] = False
    assert not seen.any()


def test_targets_are_what_was_drawn(scan, drawn):
    data = Dataset.from_annotations(scan, drawn, classes=CLASSES, tile=97, overlap=0.0, min_labelled=0)
    images, targets = data.batch(range(len(data)))
    assert set(np.unique(targets)) == {-1, 0, 1, 2}
    for (y, x), target in zip(places(images)[::37], targets.reshape(-1)[::37], strict=True):
        point = shapely.Point(x + 0.5, y + 0.5)
        wanted = next((i for i, name in enumerate(CLASSES) if SHAPES[name].contains(point)), -1)
        assert target == wanted


def test_two_regions_apart_share_no_pixel(scan, drawn):
    parts = [
        Dataset.from_annotations(scan, drawn, classes=CLASSES[:2], tile=32, spacing=1.0, region=region, overlap=0.5)
        for region in (((0, 0), (301, 631)), ((301, 0), (400, 631)))
    ]
    ranges = []
    for part in parts:
        grid = part.samples.tiles.grid
        starts = grid.starts()
        ranges.append((starts.min(0), (starts + 64).max(0)))
    assert ranges[0][1][0] <= 301 <= ranges[1][0][0]
    assert part.spacing == (1.0, 1.0)


def test_spacing_keeps_class_areas(scan, drawn):
    fine, coarse = (
        Dataset.from_annotations(
            scan, drawn, classes=CLASSES, tile=tile, spacing=spacing, overlap=0, min_labelled=0
        ).class_counts
        for tile, spacing in ((100, 0.5), (50, 1.0))
    )
    assert coarse * 4 == pytest.approx(fine, rel=0.05)


def test_counts_and_fresh_pixels(scan, drawn):
    data = Dataset.from_annotations(scan, drawn, classes=CLASSES, tile=101, overlap=0.4, min_labelled=0)
    fresh, shown = np.zeros(scan.shape, int), np.zeros(scan.shape, int)
    for index, start in enumerate(data.samples.corners.tolist()):
        fresh[start[0] : start[0] + 101, start[1] : start[1] + 101] += data.samples.fresh(index)
        shown[start[0] : start[0] + 101, start[1] : start[1] + 101] = 1
    assert shown.mean() > 0.5
    assert np.array_equal(fresh, shown)
    _, targets = data.batch(range(len(data)))
    assert np.array_equal(data.class_counts, np.bincount(targets[targets >= 0], minlength=3))


def test_windows_with_too_few_labels_are_left_out(scan, drawn):
    every = Dataset.from_annotations(scan, drawn, classes=CLASSES, tile=50, overlap=0, min_labelled=0)
    half = Dataset.from_annotations(scan, drawn, classes=CLASSES, tile=50, overlap=0, min_labelled=0.5)
    assert len(half) < len(every)
    _, targets = half.batch(range(len(half)))
    assert ((targets >= 0).mean((1, 2)) >= 0.5).all()


def test_groups_are_blocks_unless_the_patient_is_known(scan, drawn):
    data = Dataset.from_annotations(scan, drawn, classes=CLASSES, tile=50, overlap=0.5)
    assert data.unit_name == "block"
    assert 4 < len(set(data.groups)) < len(data)
    known = Dataset.from_annotations(scan, drawn, classes=CLASSES, tile=50, patient="P7")
    assert set(known.groups) == {"P7"}
    assert known.unit_name == "patient"


def test_refuses_what_cannot_be_learned_from(scan, drawn):
    def make(**changes):
        return Dataset.from_annotations(scan, drawn, **({"classes": CLASSES, "tile": 64} | changes))

    with pytest.raises(UnknownNameError, match=r"class 'lefd'.*Did you mean 'left'"):
        make(classes=("lefd",))
    with pytest.raises(BadValueError, match="not inside"):
        make(region=((600, 0), (200, 200)))
    with pytest.raises(BadValueError, match="not inside"):
        make(region=((-1, 0), (200, 200)))
    with pytest.raises(BadShapeError, match="region"):
        make(region=((0, 0, 0), (9, 9, 9)))
    with pytest.raises(BadValueError, match="smaller than a tile"):
        make(region=((0, 0), (60, 200)))
    with pytest.raises(BadValueError, match="no window"):
        make(region=((0, 0), (64, 64)), classes=("hole",))
    with pytest.raises(BadValueError, match="min_labelled"):
        make(min_labelled=1.5)
    with pytest.raises(BadValueError, match="classes"):
        make(classes=())
    volume = Scan.from_array(np.zeros((9, 70, 70), np.float32), "zyx")
    with pytest.raises(BadShapeError, match="y and x only"):
        Dataset.from_annotations(volume, drawn, classes=CLASSES, tile=8)


def arrays(count: int = 7, **changes) -> Dataset:
    rng = np.random.default_rng(count)
    options = {"classes": ("a", "b"), "task": "classification", "name": f"set {count}"} | changes
    shape = (count, 16, 17) if options["task"] == "segmentation" else (count,)
    return Dataset.from_arrays(
        rng.integers(0, 255, (count, 16, 17, 3)).astype(np.uint8), rng.integers(-1, 2, shape), **options
    )


def test_arrays_keep_pixels_and_count_classes():
    data = arrays(9, task="segmentation")
    image, target = data[-1]
    assert np.array_equal(image, data.batch([8])[0][0])
    assert target.shape == (16, 17)
    assert data.class_counts.sum() == (data.batch(range(9))[1] >= 0).sum()
    with pytest.raises(IndexError):
        data[9]
    with pytest.raises(BadValueError, match="expected 0 to 8"):
        data.batch([9])


def test_arrays_that_do_not_fit_are_refused():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    with pytest.raises(BadShapeError, match="targets"):
        Dataset.from_arrays(images, [0, 1], classes=("a", "b"), task="classification")
    with pytest.raises(BadShapeError, match="segmentation"):
        Dataset.from_arrays(images, [0, 1, 0, 1], classes=("a", "b"), task="segmentation")
    with pytest.raises(BadValueError, match="hold 0 to 2"):
        Dataset.from_arrays(images, [0, 1, 2, 0], classes=("a", "b"), task="classification")
    with pytest.raises(BadValueError, match="float64"):
        Dataset.from_arrays(images, [0.0, 1, np.nan, 0], classes=("a", "b"), task="classification")
    with pytest.raises(BadValueError, match="empty"):
        Dataset.from_arrays(images[:0], np.zeros(0, int), classes=("a", "b"), task="classification")
    with pytest.raises(BadValueError, match="task 'guess'"):
        Dataset.from_arrays(images, [0, 1, 0, 1], classes=("a", "b"), task="guess")
    with pytest.raises(BadShapeError, match="3 groups"):
        Dataset.from_arrays(images, [0, 1, 0, 1], classes=("a", "b"), task="classification", groups="xyz")


def test_joined_samples_come_in_the_order_asked_for():
    parts = [arrays(3), arrays(5), arrays(2)]
    whole = Dataset.concat(parts)
    assert len(whole) == 10
    assert len(set(whole.groups)) == 10
    order = np.array([9, 0, 4, 3, 8, 2])
    images, targets = whole.batch(order)
    single = [parts[0][i] for i in range(3)] + [parts[1][i] for i in range(5)] + [parts[2][i] for i in range(2)]
    for image, target, index in zip(images, targets, order, strict=True):
        assert np.array_equal(image, single[index][0])
        assert target == single[index][1]
    assert np.array_equal(whole.class_counts, sum(p.class_counts for p in parts))
    masks = Dataset.concat([arrays(3, task="segmentation"), arrays(4, task="segmentation")])
    assert masks.class_counts.sum() == (masks.batch(range(7))[1] >= 0).sum()


def test_what_differs_cannot_be_joined():
    with pytest.raises(BadValueError, match="task"):
        Dataset.concat([arrays(3), arrays(3, task="segmentation")])
    with pytest.raises(BadValueError, match="classes"):
        Dataset.concat([arrays(3), arrays(4, classes=("a", "c"))])
    with pytest.raises(BadValueError, match="no datasets"):
        Dataset.concat([])


def test_subset_keeps_order_and_groups():
    data = arrays(6, groups=list("uvwxyz"))
    some = data.subset([4, 1])
    assert some.groups == ("y", "v")
    assert np.array_equal(some[0][0], data[4][0])
    assert some.class_counts.sum() == sum(data[i][1] >= 0 for i in (4, 1))
    with pytest.raises(BadValueError, match="no indices"):
        data.subset([])


def test_travels_to_another_process(scan, drawn):
    data = Dataset.from_annotations(scan, drawn, classes=CLASSES, tile=64, overlap=0.2)
    copy = pickle.loads(pickle.dumps(data))
    for a, b in zip(copy.batch([0, 3]), data.batch([0, 3]), strict=True):
        assert np.array_equal(a, b)


def test_shows_itself(scan, drawn):
    data = Dataset.from_annotations(scan, drawn, classes=CLASSES, tile=64)
    html = data._repr_html_()
    assert "data:image/png" in html
    assert "left" in html
    assert "segmentation of right, left, hole" in repr(data)
    signals = Dataset.from_arrays(
        np.zeros((3, 2, 50), np.float32), [0, 1, 0], classes=("<b>", "c"), task="classification", axes="ct"
    )
    assert "&lt;b&gt;" in signals._repr_html_()


@pytest.mark.parametrize(
    ("task", "targets"),
    [("multilabel", [[0, 1], [1, -1]]), ("regression", [[0.5, np.nan], [1, 2]]), ("classification", [1, 0])],
)
@pytest.mark.parametrize("axes", ["yxc", "zyx", "ct"])
def test_every_task_shows_itself(task, targets, axes):
    shape = {"yxc": (9, 7, 3), "zyx": (5, 9, 7), "ct": (2, 90)}[axes]
    images = np.random.default_rng(0).integers(0, 255, (2, *shape)).astype(np.uint8)
    data = Dataset.from_arrays(images, targets, classes=("a", "b"), task=task, axes=axes)
    assert "data:image/png" in data._repr_html_()


def test_windows_of_a_class_each(scan, drawn):
    options = {"classes": CLASSES, "tile": 40, "overlap": 0.5}
    data = Dataset.from_annotations(scan, drawn, task="classification", min_share=0.8, **options)
    images, labels = data.batch(range(len(data)))
    assert labels.shape == (len(data),)
    assert np.array_equal(data.class_counts, np.bincount(labels, minlength=3))
    assert set(data.groups)
    assert data.unit_name == "block"
    for image, label in zip(images, labels, strict=True):
        (top, left), (bottom, right) = places(image).min(0), places(image).max(0) + 1
        box = shapely.box(left, top, right, bottom)
        assert SHAPES[CLASSES[label]].intersection(box).area / box.area > 0.78
    lax = Dataset.from_annotations(scan, drawn, task="classification", min_share=0.2, **options)
    assert len(lax) > len(data)
    assert lax.samples.fresh(3) is None
    with pytest.raises(BadValueError, match="90% of its pixels in one of hole.*min_share"):
        Dataset.from_annotations(
            scan,
            drawn,
            classes=("hole",),
            tile=95,
            task="classification",
            min_share=0.9,
            region=((510, 290), (120, 130)),
        )
    with pytest.raises(BadValueError, match="task 'regression'"):
        Dataset.from_annotations(scan, drawn, task="regression", **options)
    with pytest.raises(BadValueError, match="min_share 2"):
        Dataset.from_annotations(scan, drawn, min_share=2, **options)
