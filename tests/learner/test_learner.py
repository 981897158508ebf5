"""Strokes teach a classifier: what it finds, when it learns anew, what it says where it cannot."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import shapely

import dhlab as dh
from dhlab.annotations import Annotations, Document
from dhlab.errors import BadShapeError, BadValueError
from dhlab.learner import Learner, draw_strokes
from dhlab.phantoms import CLASSES
from dhlab.scan import Scan, halve


def dice(scores: np.ndarray, truth: np.ndarray) -> float:
    found = np.array([CLASSES.index(name) for name in sorted(CLASSES)])[scores.argmax(0)]
    values = [2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum()) for k in range(4)]
    return float(np.mean(values))


def test_a_few_strokes_segment_the_slide(learner: Learner, truth: np.ndarray) -> None:
    heat = learner.heat
    assert heat.channels == tuple(sorted(CLASSES))
    assert heat.kind == "heatmap"
    assert heat.dtype == np.uint8
    scores = heat.levels[0][...]
    assert dice(scores, truth) > 0.75
    assert np.abs(scores.astype(int).sum(0) - 255).max() <= 2


def test_coarser_levels_show_what_the_finest_shows(learner: Learner, truth: np.ndarray) -> None:
    heat = learner.heat
    assert [level.shape[1:] for level in heat.levels] == [(768, 768), (384, 384), (192, 192)]
    for number, level in enumerate(heat.levels):
        step = 2**number
        assert dice(level[...], truth[step // 2 :: step, step // 2 :: step]) > 0.7


def test_any_part_is_that_part_of_the_whole(learner: Learner) -> None:
    level = learner.heat.levels[0]
    whole = level[...]
    for key in (np.s_[:, 250:520, 3:9], np.s_[1, 700:, -70:], np.s_[..., 255, 256], np.s_[2:0:-1, ::7, 5::11]):
        np.testing.assert_array_equal(level[key], whole[key])
    np.testing.assert_array_equal(
        learner.heat.read((-20, 700), (60, 100))[:, 20:, :68], whole[:, :40, 700:768], err_msg="beyond the border"
    )


def test_order_ids_and_authors_do_not_matter(slide: Scan, strokes: Annotations) -> None:
    names = [strokes.class_names[i] for i in strokes.classes]
    shuffled = [5, 0, 11, 3, 1, 2, 4, 10, 9, 8, 7, 6]
    other = Annotations.from_geometries(
        [strokes.geometries[i] for i in shuffled], [names[i] for i in shuffled], author="another", parent=slide
    )
    one, two = Learner(slide, strokes), Learner(slide, other)
    assert one.classes == two.classes == tuple(sorted(CLASSES))
    np.testing.assert_array_equal(two.heat.levels[0][:, :256, :256], one.heat.levels[0][:, :256, :256])


def test_a_correction_is_learned_and_nothing_else_is(slide: Scan, strokes: Annotations, truth: np.ndarray) -> None:
    learner = Learner(slide, strokes)
    assert learner.update()
    before = learner.heat
    assert not learner.update()
    assert learner.heat is before
    wrong = np.array([CLASSES.index(name) for name in before.channels])[before.levels[0][...].argmax(0)] != truth
    learner.strokes = Annotations.concat([strokes, draw_strokes(truth, CLASSES, 8, wrong=wrong, seed=1, parent=slide)])
    assert learner.update()
    assert learner.heat is not before
    assert dice(learner.heat.levels[0][...], truth) > dice(before.levels[0][...], truth)


def test_a_point_counts_among_many_areas() -> None:
    image = np.random.default_rng(0).integers(0, 12, (512, 512, 3)).astype(np.uint8)
    image[:, 256:] += 180
    image[400:, :, 1] = 120
    scan = Scan((image, halve(image, (0, 1))), "yxc", (1.0, 1.0), "µm", name="three kinds")
    dark = [shapely.box(x, y, x + 33, y + 33) for x in range(5, 170, 40) for y in range(5, 170, 40)]
    bright = [shapely.box(x + 256, y, x + 289, y + 33) for x, y, *_ in (shape.bounds for shape in dark)]
    # Named so that the point comes between the others.
    names = ["a dark"] * len(dark) + ["c bright"] * len(bright) + ["b green"]
    drawn = Annotations.from_geometries([*dark, *bright, shapely.Point(100, 450)], names, parent=scan)
    heat = Learner(scan, drawn, stroke_width=2.0).heat
    for level, side in zip(heat.levels, (512, 256), strict=True):
        found = np.asarray(level[...]).argmax(0)
        assert (found[side * 420 // 512 : side * 500 // 512, side // 16 : side * 3 // 8] == 1).mean() > 0.7
        assert (found[: side // 2, : side // 2 - side // 16] == 0).mean() > 0.95


def test_a_document_is_followed(slide: Scan, strokes: Annotations, tmp_path: Path) -> None:
    with Document.open(slide, tmp_path / "slide.geojson", author="Ada") as document:
        learner = Learner(slide, document)
        with pytest.raises(BadValueError, match="no strokes"):
            learner.update()
        document.add(strokes)
        assert learner.update()
        assert learner.counts == dict.fromkeys(CLASSES, 3)
        colors = learner.heat.meta["class_colors"]
        assert colors == [list(c.color) for name in learner.classes for c in document.classes if c.name == name]
        document.change(strokes.ids[0], review="rejected")
        assert learner.update()
        assert sum(learner.counts.values()) == 11
        document.remove_class("adipose", to="background")
        assert learner.update()
        assert "adipose" not in learner.classes
        assert learner.heat.channels == learner.classes


def test_proposed_shapes_do_not_teach(slide: Scan, strokes: Annotations, tmp_path: Path) -> None:
    with Document.open(slide, tmp_path / "slide.geojson", author="Ada") as document:
        document.add(strokes, review="proposed")
        with pytest.raises(BadValueError, match="no strokes"):
            Learner(slide, document).update()
        document.change(strokes.ids, review="accepted")
        assert Learner(slide, document).update()


@pytest.mark.parametrize(
    ("shapes", "classes", "words"),
    [
        ([], [], "no strokes"),
        ([shapely.Point(9, 9)], [None], "no strokes"),
        ([shapely.Point(9, 9), shapely.Point(90, 9)], ["gland", "gland"], "'gland' only"),
        ([shapely.Point(9, 9), shapely.Point(-900, 9)], ["gland", "fat"], "'fat' lie outside"),
    ],
)
def test_says_what_is_missing(slide: Scan, shapes: list, classes: list, words: str) -> None:
    learner = Learner(slide, Annotations.from_geometries(shapes, classes))
    with pytest.raises(BadValueError, match=words):
        learner.update()
    with pytest.raises(BadValueError, match=words):
        _ = learner.model


def test_what_was_learned_stays_when_strokes_go(slide: Scan, strokes: Annotations) -> None:
    learner = Learner(slide, strokes)
    before = learner.heat
    learner.strokes = strokes.of_class("stroma")
    with pytest.raises(BadValueError, match="'stroma' only"):
        learner.update()
    assert learner.heat is before


def test_a_stroke_outside_is_left_out(slide: Scan, strokes: Annotations, learner: Learner) -> None:
    more = strokes.add(shapely.LineString([(-500, -500), (-400, -400)]), "stroma")
    other = Learner(slide, more)
    np.testing.assert_array_equal(other.heat.levels[0][:, :256, :256], learner.heat.levels[0][:, :256, :256])
    assert other.counts == learner.counts


def test_looks_at_the_level_nearest_to_a_spacing(slide: Scan, strokes: Annotations) -> None:
    assert [Learner(slide, strokes, spacing=s).level for s in (None, 0.1, 1.3, 1.6, 3.9, 99)] == [0, 0, 0, 1, 2, 2]
    assert Learner(slide, strokes, spacing=2.0).heat.spacing == (2.0, 2.0)


@pytest.mark.parametrize("spacing", [0, -1.0])
def test_refuses_impossible_numbers(slide: Scan, strokes: Annotations, spacing: float) -> None:
    with pytest.raises(BadValueError, match="positive"):
        Learner(slide, strokes, spacing=spacing)
    with pytest.raises(BadValueError, match="stroke_width"):
        Learner(slide, strokes, stroke_width=spacing)


def test_takes_grey_channels_first_and_sixteen_bits(
    painted: tuple[np.ndarray, np.ndarray], strokes: Annotations
) -> None:
    grey = painted[0][..., 1]
    forms = [
        Scan.from_array(grey, "yx"),
        Scan.from_array(np.moveaxis(painted[0], -1, 0)[:2], "cyx"),
        Scan.from_array(grey.astype(np.uint16) * 13 + 700, "yx"),
        Scan.from_array(grey.astype(np.float32) / 255, "yx"),
    ]
    for scan in forms:
        learner = Learner(scan, strokes.replace(parent=None))
        assert learner.heat.levels[0][:, :64, :64].shape == (4, 64, 64)
        heat = learner.apply(progress=False)
        assert np.abs(heat.levels[0][:, :64, :64].astype(int) - learner.heat.levels[0][:, :64, :64]).max() <= 6


def test_refuses_volumes(strokes: Annotations) -> None:
    with pytest.raises(BadShapeError, match="planes"):
        Learner(Scan.from_array(np.zeros((4, 8, 8), np.uint8), "zyx"), strokes)


@pytest.mark.parametrize("shape", [(7, 300), (1, 1), (40, 40)])
def test_tiny_scans(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    image[:, shape[1] // 2 :] = 200
    scan = Scan.from_array(image, "yxc")
    points = [shapely.Point(0.5, 0.5), shapely.Point(shape[1] - 0.5, 0.5)]
    learner = Learner(scan, Annotations.from_geometries(points, ["dark", "light"]), stroke_width=1.0)
    scores = learner.heat.levels[0][...]
    assert scores.shape == (2, *shape)
    if shape[1] > 1:
        assert scores[0, 0, 0] > 200
        assert scores[1, 0, -1] > 200
    assert len(learner.propose(3)) <= 3


def test_readers_in_threads_see_one_result(slide: Scan, strokes: Annotations, learner: Learner) -> None:
    fresh = Learner(slide, strokes)
    heat, found = fresh.heat, {}

    def look(number: int) -> None:
        found[number] = heat.levels[number % 3][...]

    threads = [threading.Thread(target=look, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, scores in found.items():
        np.testing.assert_array_equal(scores, learner.heat.levels[number % 3][...])


def test_is_public_and_says_what_it_is(learner: Learner) -> None:
    assert dh.Learner is Learner
    assert "3 × stroma" in repr(learner)
