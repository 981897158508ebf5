"""The tutorial's annotations: valid, apart in space, and plausible on the slide that they were drawn on."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import shapely

from dhlab.annotations import Annotations
from dhlab.errors import NotFoundError, UnknownNameError
from dhlab.samples import DATA, TUTORIAL_SLIDE, sample_path, tutorial_annotations, tutorial_regions

CLASSES = ("background", "dermis", "epidermis", "keratin")  # by rising optical density
HEIGHT, WIDTH = TUTORIAL_SLIDE.shape


@pytest.fixture(scope="module")
def features() -> list[dict]:
    return json.loads((DATA / "cmu-1-small-region-skin.geojson").read_text("utf-8"))["features"]


@pytest.fixture(scope="module")
def drawn() -> Annotations:
    return tutorial_annotations()


@pytest.fixture(scope="module")
def slide() -> np.ndarray:
    openslide = pytest.importorskip("openslide")
    try:
        path = sample_path("skin-slide")
    except NotFoundError as error:
        pytest.skip(str(error))
    with openslide.OpenSlide(path) as file:
        assert file.dimensions == (WIDTH, HEIGHT)
        assert float(file.properties["openslide.mpp-x"]) == pytest.approx(TUTORIAL_SLIDE.spacing[1])
        return np.asarray(file.read_region((0, 0), 0, file.dimensions).convert("RGB"))


def test_file_is_small_and_as_qupath_writes_it(features):
    assert (DATA / "cmu-1-small-region-skin.geojson").stat().st_size < 300_000
    assert len(features) >= 40
    assert len({f["id"] for f in features}) == len({f["properties"]["name"] for f in features}) == len(features)
    for feature in features:
        properties = feature["properties"]
        assert feature["type"] == "Feature"
        assert properties["objectType"] == "annotation"
        assert properties["classification"]["name"] in CLASSES
        assert len(properties["classification"]["color"]) == 3
        assert properties["metadata"]["split"] in ("training", "test")


def test_polygons_are_valid_and_lie_in_the_region_that_they_name(features):
    regions = tutorial_regions()
    for feature in features:
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.is_valid, feature["properties"]["name"]
        assert shape.area >= 50, feature["properties"]["name"]
        (y, x), (height, width) = regions[feature["properties"]["metadata"]["split"]]
        assert shapely.box(x, y, x + width, y + height).covers(shape), feature["properties"]["name"]


def test_regions_lie_on_the_slide_at_least_64_micrometres_apart():
    regions = tutorial_regions()
    assert set(regions) == {"training", "test"}
    boxes = [shapely.box(x, y, x + w, y + h) for (y, x), (h, w) in regions.values()]
    assert all(shapely.box(0, 0, WIDTH, HEIGHT).covers(b) for b in boxes)
    assert boxes[0].distance(boxes[1]) * TUTORIAL_SLIDE.spacing[0] >= 64


def test_classes_do_not_overlap(drawn):
    merged = {name: shapely.union_all(drawn.of_class(name).geometries) for name in CLASSES}
    for i, first in enumerate(CLASSES):
        for second in CLASSES[i + 1 :]:
            shared = merged[first].intersection(merged[second]).area
            assert shared <= 0.01 * min(merged[first].area, merged[second].area), (first, second)


@pytest.mark.parametrize("split", ["training", "test"])
def test_each_split_has_enough_of_every_class(drawn, split):
    part = tutorial_annotations(split)
    assert set(part.class_names) == set(CLASSES)
    for name in CLASSES:
        assert sum(g.area for g in part.of_class(name).geometries) >= 40_000, name
    assert 0 < len(part) < len(drawn)


def test_splits_together_are_everything(drawn):
    parts = [tutorial_annotations(split) for split in ("training", "test")]
    assert sorted(str(i) for part in parts for i in part.ids) == sorted(map(str, drawn.ids))


def test_an_unknown_split_is_refused():
    with pytest.raises(UnknownNameError, match="training"):
        tutorial_annotations("train")


@pytest.mark.parametrize("split", ["training", "test"])
def test_optical_density_and_colour_fit_the_classes_on_the_slide(slide, drawn, split):
    labels = np.asarray(tutorial_annotations(split).rasterize(classes=CLASSES).levels[0][...])
    assert labels.shape == slide.shape[:2]
    density = -np.log(np.maximum(slide, 1) / 245.0)
    mean = [density[labels == i + 1].mean() for i in range(len(CLASSES))]
    assert mean[0] < 0.05
    assert all(b > a + 0.15 for a, b in pairwise(mean)), mean
    red, green = density[..., 0], density[..., 1]
    pink, purple = (red[labels == i].mean() / green[labels == i].mean() for i in (2, 3))
    assert purple > pink + 0.1  # haematoxylin absorbs red, eosin hardly
    # Borders hold: hardly any glass lies in a tissue class, hardly any tissue in the background.
    bright = density.mean(-1) < 0.08
    assert bright[labels == 1].mean() > 0.98
    assert bright[labels == 3].mean() < 0.02
    assert bright[labels == 4].mean() < 0.03
