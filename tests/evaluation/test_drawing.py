"""Pictures are drawn for hostile shapes and names, look the same in any style, and fit the page."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from dhlab.datasets import Dataset
from dhlab.evaluation import drawing
from dhlab.report import Figure


def pixels(figure: Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figure.image)).convert("RGB"))


def check(figure: Figure) -> None:
    """Dark on white, twice as many pixels as are shown, and no wider than a page."""
    picture = pixels(figure)
    assert 50 <= figure.width <= 760
    assert picture.shape[1] == pytest.approx(2 * figure.width, abs=2)
    edges = (picture[:4], picture[-4:], picture[:, :4], picture[:, -4:])
    assert all((edge == 255).all() for edge in edges), "a white margin: nothing is cut off"
    assert picture.min() < 100
    assert figure.caption.endswith(".")


@pytest.mark.parametrize("count", [1, 2, 3, 9, 13, 41])
def test_confusion_of_few_and_many_classes(count):
    rng = np.random.default_rng(0)
    names = [f"class ${k}$ _^{{ with a long name of its own" for k in range(count)]
    total = rng.integers(0, 10_000_000, (count, count))
    total[0] = 0
    check(drawing.draw_confusion(total + np.eye(count, dtype=int), names))


def test_curves_of_none_one_and_several():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 63)
    one = ("malignant", truth, rng.random(63))
    (figure,) = drawing.draw_curves([one], threshold=0.5)
    check(figure)
    for threshold in (-1.0, 2.0):
        check(drawing.draw_curves([one], threshold=threshold)[0])
    check(drawing.draw_curves([one] * 8)[0])
    assert drawing.draw_curves([one] * 9) == []
    assert drawing.draw_curves([]) == []
    assert drawing.draw_curves([("absent", np.zeros(5), np.ones(5))]) == []


def test_reliability_with_empty_bins():
    count = np.zeros(15, np.int64)
    count[14] = 3
    confidence, right = np.full(15, np.nan), np.full(15, np.nan)
    confidence[14], right[14] = 0.97, 1 / 3
    check(drawing.draw_reliability(count, confidence, right, noun="sample"))
    check(drawing.draw_reliability(count, confidence, right, noun="label", labels=True))


@pytest.mark.parametrize("count", [1, 2, 997])
def test_agreement_of_one_and_of_equal_numbers(count):
    truth = np.full(count, 7.0)
    check(drawing.draw_agreement(truth, truth, "age"))
    check(drawing.draw_agreement(truth, truth + np.arange(count), "age $years$"))


@pytest.mark.parametrize(("axes", "shape"), [("yxc", (63, 7, 3)), ("zyx", (5, 17, 31)), ("cyx", (2, 1, 40))])
def test_gallery_of_any_window(axes, shape):
    space = tuple(n for n, a in zip(shape, axes, strict=True) if a != "c")
    rng = np.random.default_rng(2)
    images = rng.integers(0, 255, (3, *shape)).astype(np.uint8)
    masks = rng.integers(-1, 2, (3, *space))
    dense = Dataset.from_arrays(images, masks, classes=("a", "b"), task="segmentation", axes=axes)
    worst = [(i, f"{i} % right", masks[i].clip(0)) for i in range(3)]
    (figure,) = drawing.draw_gallery(dense, worst, "Worst.")
    check(figure)
    whole = Dataset.from_arrays(images, [0, 1, 0], classes=("a", "b"), task="classification", axes=axes)
    check(drawing.draw_gallery(whole, [(1, "b\ntaken for a (0.90)", None)], "Worst.")[0])
    assert drawing.draw_gallery(whole, [], "Worst.") == []


def test_signals_have_no_gallery():
    data = Dataset.from_arrays(np.zeros((2, 3, 63)), [0, 1], classes=("a", "b"), task="classification", axes="ct")
    assert drawing.draw_gallery(data, [(0, "a", None)], "Worst.") == []


def test_a_user_s_style_changes_nothing():
    total = np.array([[3, 1], [2, 5]])
    plain = drawing.draw_confusion(total, ("a", "b")).image
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 3, "savefig.dpi": 17}):
        before = dict(matplotlib.rcParams)
        assert drawing.draw_confusion(total, ("a", "b")).image == plain
        assert dict(matplotlib.rcParams) == before


def test_long_names_are_cut():
    assert drawing.shorten("short") == "short"
    assert drawing.shorten("x" * 30) == "x" * 23 + "…"
