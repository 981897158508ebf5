"""What comes of it: a model, a map of the whole slide, polygons, places to draw next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
import torch

import dhlab as dh
from dhlab.annotations import Annotations
from dhlab.errors import BadValueError, ConflictError, DHLabError
from dhlab.learner import Learner
from dhlab.learner.proposals import choose_diverse, doubt
from dhlab.phantoms import CLASSES
from dhlab.scan import Scan

# Half precision of kept features, in steps of 1/255 of a score.
TOLERANCE = 6


def test_the_map_of_the_whole_is_what_is_seen(learner: Learner, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    heat = learner.apply(tmp_path / "heat.ome.zarr", progress=lambda done, total: told.append((done, total)))
    seen, applied = learner.heat.levels[0][...].astype(int), heat.levels[0][...].astype(int)
    assert np.abs(applied - seen).max() <= TOLERANCE
    assert told
    assert told[-1][0] == told[-1][1]
    assert heat.channels == tuple(sorted(CLASSES))


def test_only_heat_maps_are_replaced(learner: Learner, slide: Scan, strokes: Annotations, tmp_path: Path) -> None:
    saved = dh.open(dh.save(slide, tmp_path / "slide.ome.zarr"))
    taught = Learner(saved, strokes.on(saved))
    with pytest.raises(ConflictError, match="'image'"):
        taught.apply(tmp_path / "slide.ome.zarr", progress=False)
    np.testing.assert_array_equal(dh.open(tmp_path / "slide.ome.zarr").levels[0][...], slide.levels[0][...])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("results")
    with pytest.raises(DHLabError):
        taught.apply(tmp_path / "notes", progress=False)
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "results"
    for number in (1, 2):
        drawn = strokes if number == 1 else strokes[:9]
        heat = Learner(slide, drawn).apply(tmp_path / "heat.ome.zarr", progress=False)
    np.testing.assert_array_equal(dh.open(tmp_path / "heat.ome.zarr").levels[0][...], heat.levels[0][...])


def test_what_is_learned_meanwhile_is_not_in_the_map(slide: Scan, strokes: Annotations) -> None:
    taught = Learner(slide, strokes)
    colors = taught.heat.meta["class_colors"]

    def draw(done: int, total: int) -> None:
        taught.strokes = strokes.where(class_name=["stroma", "epithelium"])
        taught.update()

    heat = taught.apply(progress=draw)
    assert taught.classes == ("epithelium", "stroma")
    assert heat.channels == tuple(sorted(CLASSES))
    assert heat.meta["class_colors"] == colors


def test_windows_that_are_cut_elsewhere_agree(learner: Learner, slide: Scan) -> None:
    """The halo: what lies within reach of a window's rim is taken from the next window."""
    from dataclasses import replace

    model = learner.model
    assert model.card.margin == model.net.reach == 48
    small = dh.Model(model.net, replace(model.card, tile=(160, 224)))
    maps = [dh.predict(m, slide, overlap=0, progress=False).levels[0][...].astype(int) for m in (model, small)]
    inner = np.s_[:, :-64, :-64]  # windows hang over the far edges
    assert np.abs(maps[0] - maps[1])[inner].max() <= 1


def test_a_run_can_be_ended(learner: Learner) -> None:
    def end(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.apply(progress=end)


def test_only_the_mask_is_mapped(learner: Learner, slide: Scan) -> None:
    mask = Scan.from_array(np.zeros((96, 96), np.uint8), "yx", spacing=8.0, unit="µm", kind="mask")
    with pytest.warns(dh.errors.DHLabWarning, match="no window"):
        heat = learner.apply(within=mask, progress=False)
    assert not heat.levels[0][...].any()


def test_the_model_is_a_model(learner: Learner, slide: Scan, truth: np.ndarray, tmp_path: Path) -> None:
    model = learner.model
    window = slide.read((100, 100), model.card.tile)[None]
    with torch.inference_mode():
        scores = model(torch.from_numpy(window)).numpy()
    assert scores.shape == (1, 4, *model.card.tile)
    order = [sorted(CLASSES).index(name) for name in CLASSES]
    data = dh.Dataset.from_arrays(
        slide.levels[0][None], np.array(order)[truth][None], classes=model.card.classes, task="segmentation"
    )
    assert dh.evaluate(model, data, progress=False).values["mean Dice"] > 0.75
    with torch.enable_grad():
        learned = dh.fit(model, data, epochs=1, batch_size=1, learning_rate=1e-4, progress=False)
    assert learned.values


def test_it_exports_and_loads_again(learner: Learner, slide: Scan, tmp_path: Path) -> None:
    from dataclasses import replace

    model = learner.model
    small = dh.Model(model.net, replace(model.card, tile=(128, 128)))
    example = np.stack([slide.read((200, 200), (128, 128)), slide.read((400, 300), (128, 128))])
    folder = dh.export(small, tmp_path / "package", example=example)
    again, graph = dh.load_model(folder), dh.load_model(folder / "model.onnx", card=small.card)
    with torch.inference_mode():
        scores = [m(torch.from_numpy(example)).numpy() for m in (small, again, graph)]
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_allclose(scores[0], scores[2], atol=1e-4)
    assert again.card.margin == 48


def test_training_and_judging_give_the_same_logits(learner: Learner, slide: Scan) -> None:
    """With gradients, part by part and folded, the network says the same."""
    model = learner.model
    x = torch.from_numpy(slide.read((0, 0), (160, 200))[None])
    with torch.inference_mode():
        quick = model(x)
    torch.testing.assert_close(model(x), quick, atol=1e-4, rtol=0)


def test_polygons_are_proposed(learner: Learner, truth: np.ndarray) -> None:
    found = learner.polygons(min_area=200.0)
    assert set(found.class_names) <= set(CLASSES) - {"background"}
    assert set(found.reviews.tolist()) == {"proposed"}
    drawn = found.rasterize(classes=CLASSES[1:] if set(found.class_names) == set(CLASSES[1:]) else None)
    names = drawn.meta["classes"]
    mine = drawn.levels[0][...] == names.index("stroma") + 1
    theirs = truth == CLASSES.index("stroma")
    assert 2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()) > 0.75
    window = learner.polygons(region=((100, 200), (300, 250)), classes=["stroma"])
    y0, x0, y1, x1 = (*window.bounds[:, :2].min(0), *window.bounds[:, 2:].max(0))
    assert 99 <= y0 <= y1 <= 401
    assert 199 <= x0 <= x1 <= 451
    with pytest.raises(dh.errors.UnknownNameError):
        learner.polygons(classes=["bone"])


def test_doubtful_places_come_first(learner: Learner, truth: np.ndarray) -> None:
    places = learner.propose(6)
    assert len(places) == 6
    assert set(places.reviews.tolist()) == {"proposed"}
    assert (places.classes == -1).all()
    heat = learner.heat.levels[0][...].astype(float) / 255
    doubts = doubt(heat)
    inside = [doubts[int(y0) : int(y1), int(x0) : int(x1)].mean() for y0, x0, y1, x1 in places.bounds]
    assert np.mean(inside) > 1.5 * doubts.mean()
    np.testing.assert_allclose(places.scores, 1 - np.array(inside), atol=0.02)
    centres = places.bounds[:, :2]
    assert len(np.unique(centres, axis=0)) == 6


def test_places_keep_to_region_mask_and_what_is_not_drawn(learner: Learner, slide: Scan, strokes: Annotations) -> None:
    region = ((256.0, 256.0), (200.0, 300.0))
    mask = np.zeros((96, 96), np.uint8)
    mask[40:50] = 1
    within = Scan.from_array(mask, "yx", spacing=8.0, unit="µm", kind="mask")
    places = learner.propose(100, region=region, within=within)
    assert len(places)
    middles = (places.bounds[:, :2] + places.bounds[:, 2:]) / 2
    assert ((middles >= (320, 256)) & (middles <= (400, 556))).all()
    lines = shapely.union_all(strokes.geometries)
    assert not shapely.contains_properly(places.geometries, lines).any()
    assert len(learner.propose(5, region=((-900, -900), (10, 10)))) == 0


def test_strokes_that_were_not_learned_hide_no_place(slide: Scan, strokes: Annotations) -> None:
    taught = Learner(slide, strokes)
    region = ((0.0, 0.0), (256.0, 256.0))
    places = taught.propose(3, region=region)
    shapes = [*places.geometries, shapely.Point(-9, -9)]
    more = Annotations.from_geometries(shapes, ["stroma"] * len(places) + ["bone"], parent=slide)
    taught.strokes = Annotations.concat([strokes, more])
    with pytest.raises(BadValueError, match="outside"):
        taught.update()
    np.testing.assert_array_equal(taught.propose(3, region=region).bounds, places.bounds)


def test_doubt_and_distance() -> None:
    scores = np.array([[1.0, 0.5, 0.4], [0.0, 0.5, 0.35], [0.0, 0.0, 0.25]])
    np.testing.assert_allclose(doubt(scores), [0, 1, 0.95], atol=1e-6)
    features = torch.cat([torch.tensor([[0.0, 0], [0.01, 0], [9, 9], [0, 9]]), torch.rand(36, 2) * 9])
    doubts = np.array([0.9, 0.89, 0.8, 0.85] + [0.1] * 36, np.float32)
    assert choose_diverse(features, doubts, 3)[0] == 0
    assert set(choose_diverse(features, doubts, 3)) == {0, 2, 3}, "the second is like the first"
