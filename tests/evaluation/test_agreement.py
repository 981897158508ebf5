"""Agreement of annotators: known overlaps, scikit-learn on the same pixels, areas, several scans, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

import dhlab as dh
from dhlab.errors import BadShapeError, BadValueError
from dhlab.metrics import fleiss_kappa

SIDE = 63


@pytest.fixture
def scan() -> dh.Scan:
    return dh.Scan.from_array(np.zeros((SIDE, SIDE + 4), np.uint8), "yx", spacing=0.5, unit="µm", name="field")


def squares(scan: dh.Scan, *boxes: tuple[str, int, int, int, int]) -> dh.Annotations:
    shapes = [shapely.box(*corners) for _, *corners in boxes]
    return dh.Annotations.from_geometries(shapes, [name for name, *_ in boxes], parent=scan)


def test_two_squares_that_overlap_by_half(scan):
    first = squares(scan, ("tumour", 10, 10, 30, 30))
    second = squares(scan, ("tumour", 20, 10, 40, 30))
    found = dh.compare_annotators({"Anna": first, "Ben": second})
    values = found.report.values
    assert values["mean Dice"] == pytest.approx(0.5)
    total, both, each = SIDE * (SIDE + 4), 200, 400
    chance = (each / total) ** 2 + (1 - each / total) ** 2
    seen = 1 - 2 * (each - both) / total
    assert values["Cohen's kappa Anna, Ben"] == pytest.approx((seen - chance) / (1 - chance))
    (heat,) = found.disagreement
    assert heat.parent == scan.as_parent()
    assert heat.spacing == scan.spacing
    picture = heat.levels[0]
    assert (np.asarray(picture) == 255).sum() == 2 * (each - both)
    assert picture[15, 12] == 255
    assert picture[15, 25] == 0
    areas = found.report.tables["Area drawn"]
    assert [row["tumour (mm²)"] for row in areas] == pytest.approx([each * 0.25e-6] * 2)
    assert not found.report.intervals


def test_the_area_judged_limits_what_counts(scan):
    first = squares(scan, ("tumour", 10, 10, 30, 30))
    second = squares(scan, ("tumour", 10, 10, 30, 30), ("tumour", 40, 40, 50, 50))
    area = squares(scan, ("area", 0, 0, 35, 35))
    assert dh.compare_annotators({"Anna": first, "Ben": second}).report.values["mean Dice"] == pytest.approx(800 / 900)
    inside = dh.compare_annotators({"Anna": first, "Ben": second}, within=area)
    assert inside.report.values["mean Dice"] == 1
    assert inside.report.values["Cohen's kappa Anna, Ben"] == 1
    assert not np.asarray(inside.disagreement[0].levels[0]).any()


def test_three_annotators_on_several_scans(scan):
    rng = np.random.default_rng(3)
    drawn: dict[str, list[dh.Annotations]] = {"Anna": [], "Ben": [], "Chen": []}
    for _ in range(5):
        x, y = rng.integers(0, 30, 2).tolist()
        for move, name in enumerate(drawn):
            dx = int(rng.integers(0, 5)) * move
            # Classes in another order must not be taken for one another.
            boxes = [("tumour", x + dx, y, x + dx + 20, y + 20), ("stroma", x, y + 20, x + 20, y + 30)]
            drawn[name].append(squares(scan, *boxes[:: 1 if move else -1]))
    found = dh.compare_annotators(drawn, resamples=200)
    labels = []
    for parts in drawn.values():
        maps = [one.rasterize(parent=scan) for one in parts]
        codes = [np.searchsorted(["", *sorted(m.meta["classes"])], ["", *m.meta["classes"]]) for m in maps]
        labels.append(
            np.concatenate([c[np.asarray(m.levels[0]).reshape(-1)] for c, m in zip(codes, maps, strict=True)])
        )
    stack = np.stack(labels, -1)
    counts = (stack[:, :, None] == np.arange(3)).sum(1)
    assert found.report.values["Fleiss' kappa"] == pytest.approx(float(fleiss_kappa(counts)))
    peer = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")
    for a, b, pair in ((0, 1, "Anna, Ben"), (0, 2, "Anna, Chen"), (1, 2, "Ben, Chen")):
        expected = peer.cohen_kappa_score(stack[:, a], stack[:, b])
        assert found.report.values[f"Cohen's kappa {pair}"] == pytest.approx(expected)
    assert len(found.disagreement) == 5
    low, high = found.report.intervals["mean Dice"]
    assert low < found.report.values["mean Dice"] < high
    assert "Fleiss" in found._repr_html_()
    assert found.report.figures[0].mime == "image/png"


def test_one_set_of_annotations_is_divided_by_author(scan):
    parts = [
        dh.Annotations.from_geometries(shapely.box(x, 5, x + 20, 25), "tumour", author=name, parent=scan)
        for name, x in (("Anna", 5), ("Ben", 15))
    ]
    found = dh.compare_annotators(dh.Annotations.concat(parts))
    assert found.report.values["mean Dice"] == pytest.approx(0.5)
    assert "Cohen's kappa Anna, Ben" in found.report.values


@pytest.mark.parametrize("review", ["proposed", "rejected"])
def test_what_nobody_took_over_is_not_compared(scan, review, tmp_path):
    with dh.Document.open(scan, tmp_path / "field.geojson", author="Anna") as document:
        same, again = shapely.box(10, 10, 30, 30), shapely.box(10, 10, 30, 30, ccw=False)
        more, others = shapely.box(30, 30, 60, 60), shapely.box(5, 40, 20, 60)
        for author, shape in (("Anna", same), ("Ben", again), ("Ben", more), ("a model", others)):
            document.add(dh.Annotations.from_geometries(shape, "tumour", author=author, parent=scan))
        document.change(document.annotations.ids[2:], review=review)
        found = dh.compare_annotators(document.annotations).report
        assert found.values["mean Dice"] == 1
        assert [row["annotator"] for row in found.tables["Area drawn"]] == ["Anna", "Ben"]
        document.change(document.annotations.ids[2:3], review="accepted")
        assert dh.compare_annotators(document.annotations).report.values["mean Dice"] < 0.6


def test_large_scans_are_compared_at_a_coarser_spacing():
    scan = dh.Scan.from_array(np.broadcast_to(np.uint8(0), (5003, 9001)), "yx", spacing=0.25, unit="µm", pyramid=False)
    drawn = squares(scan, ("tumour", 1000, 1000, 4000, 4000))
    found = dh.compare_annotators({"Anna": drawn, "Ben": drawn})
    assert max(found.disagreement[0].shape) == 2048
    exact = dh.compare_annotators({"Anna": drawn, "Ben": drawn}, spacing=2.0)
    assert exact.disagreement[0].spacing == (2.0, 2.0)


def test_what_cannot_be_compared_is_refused(scan):
    drawn = squares(scan, ("tumour", 10, 10, 30, 30))
    other = dh.Scan.from_array(np.zeros((7, 11), np.uint8), "yx", name="another")
    with pytest.raises(BadValueError, match="expected two or more"):
        dh.compare_annotators({"Anna": drawn})
    with pytest.raises(BadValueError, match="unknown"):
        dh.compare_annotators(drawn)
    with pytest.raises(BadShapeError, match="different scans: field"):
        dh.compare_annotators({"Anna": drawn, "Ben": squares(other, ("tumour", 1, 1, 3, 3))})
    with pytest.raises(BadShapeError, match="different numbers of scans"):
        dh.compare_annotators({"Anna": [drawn, drawn], "Ben": drawn})
    with pytest.raises(BadShapeError, match="areas to judge of 2 scans"):
        dh.compare_annotators({"Anna": drawn, "Ben": drawn}, within=[drawn, drawn])
    with pytest.raises(BadValueError, match="name no scan"):
        dh.compare_annotators({"Anna": drawn.replace(parent=None), "Ben": drawn})
    with pytest.raises(BadValueError, match="nobody gave any shape a class"):
        dh.compare_annotators({n: dh.Annotations.from_geometries(shapely.box(0, 0, 2, 2), parent=scan) for n in "AB"})
