"""Surface distances against MONAI, SciPy's distance transform and worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dhlab import metrics
from dhlab.errors import BadShapeError, BadValueError


def blobs(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=shape), 2)
    return field > 0, field + gaussian_filter(rng.normal(size=shape), 2) / 3 > 0


@pytest.mark.parametrize(
    ("shape", "spacing"), [((63,), (0.5,)), ((31, 47), ()), ((31, 47), (0.25, 0.5)), ((11, 13, 17), (3.0, 0.7, 0.7))]
)
def test_agrees_with_distance_transforms(shape, spacing):
    from scipy.ndimage import binary_erosion, distance_transform_edt

    masks = blobs(shape, 0)
    edges = [mask & ~binary_erosion(mask) for mask in masks]
    step = spacing or 1.0
    ways = [
        distance_transform_edt(~edges[1], sampling=step)[edges[0]],
        distance_transform_edt(~edges[0], sampling=step)[edges[1]],
    ]
    for ours, theirs in zip(metrics.surface_distances(*masks, spacing=spacing), ways, strict=True):
        assert ours == pytest.approx(theirs)
    both = np.concatenate(ways)
    assert metrics.average_surface_distance(*masks, spacing=spacing) == pytest.approx(both.mean())
    farthest = max(np.percentile(way, 95) for way in ways)
    assert metrics.hausdorff95(*masks, spacing=spacing) == pytest.approx(farthest)
    assert metrics.hausdorff95(*masks[::-1], spacing=spacing) == pytest.approx(farthest)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI calls its own old form
@pytest.mark.parametrize(("shape", "spacing"), [((31, 47), (0.25, 0.5)), ((11, 13, 17), (3.0, 0.7, 0.7))])
def test_agrees_with_monai(shape, spacing):
    monai = pytest.importorskip("monai.metrics", reason="MONAI is the oracle here")
    torch = pytest.importorskip("torch")
    masks = blobs(shape, 1)
    truth, prediction = (torch.from_numpy(mask)[None, None].float() for mask in masks)
    theirs = monai.compute_hausdorff_distance(
        prediction, truth, include_background=True, percentile=95, spacing=spacing
    )
    assert metrics.hausdorff95(*masks, spacing=spacing) == pytest.approx(theirs.item(), rel=1e-5)
    theirs = monai.compute_average_surface_distance(
        prediction, truth, include_background=True, symmetric=True, spacing=spacing
    )
    assert metrics.average_surface_distance(*masks, spacing=spacing) == pytest.approx(theirs.item(), rel=1e-5)


def test_worked_examples():
    truth, prediction = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    truth[5:15, 5:15], prediction[5:15, 8:18] = True, True
    assert metrics.hausdorff95(truth, prediction) == 3
    assert metrics.hausdorff95(truth, prediction, spacing=(10, 0.5)) == pytest.approx(1.5)
    assert metrics.hausdorff95(truth, truth) == metrics.average_surface_distance(truth, truth) == 0
    one, other = np.zeros((1, 63), bool), np.zeros((1, 63), bool)
    one[0, 0], other[0, 62] = True, True
    assert metrics.hausdorff95(one, other, spacing=(1, 0.5)) == 31
    assert metrics.average_surface_distance(one, other, spacing=(1, 0.5)) == 31


def test_empty_masks_are_defined():
    nothing, something = np.zeros((5, 7), bool), np.eye(5, 7, dtype=bool)
    for figure in (metrics.hausdorff95, metrics.average_surface_distance):
        assert math.isnan(figure(nothing, nothing))
        assert figure(nothing, something) == figure(something, nothing) == math.inf


def test_refuses_what_does_not_fit():
    with pytest.raises(BadShapeError, match="expected the same"):
        metrics.hausdorff95(np.zeros((3, 3)), np.zeros((3, 4)))
    with pytest.raises(BadShapeError, match="2 axes"):
        metrics.hausdorff95(np.ones((3, 3)), np.ones((3, 3)), spacing=(1.0,))
    with pytest.raises(BadValueError, match="positive"):
        metrics.hausdorff95(np.ones((3, 3)), np.ones((3, 3)), spacing=(1.0, 0.0))
