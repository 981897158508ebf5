"""Objects against scikit-image, on nuclei and on hostile label maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import measure

from dhlab.errors import BadShapeError, BadValueError
from dhlab.kernels import connected_components, measure_objects, measure_objects_reference

SHAPES = [(1, 1), (1, 63), (63, 1), (127, 131)]


def blobs(shape: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 1, *shape, generator=generator)
    return torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2, count_include_pad=False)[0, 0] > 0.52


def image_for(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    values = torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(1))
    return values.to(dtype).movedim(-1, 0)  # interleaved, as pictures are stored


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int16])
def test_equals_scikit_image(form: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    labels, count = connected_components(blobs(shape))
    image = image_for(shape, dtype)
    found = measure_objects(labels, image)
    names = ("area", "centroid", "bbox", "intensity_mean")
    table = measure.regionprops_table(labels.numpy(), image.movedim(0, -1).numpy(), properties=names)
    assert len(found) == count == len(table["area"])
    for part, name in (
        (found.area, "area"),
        (found.centroid, "centroid"),
        (found.box, "bbox"),
        (found.mean, "intensity_mean"),
    ):
        columns = [values for key, values in table.items() if key == name or key.startswith(f"{name}-")]
        # scikit-image sums float32 in float32.
        rows = part.numpy().reshape(count, len(columns))
        np.testing.assert_allclose(rows, np.stack(columns, axis=1), rtol=1e-6)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_components_are_those_of_scikit_image(connectivity: int, shape: tuple[int, int]) -> None:
    mask = blobs(shape)
    labels, count = connected_components(mask, connectivity=connectivity)
    expected = measure.label(mask.numpy(), connectivity=connectivity // 4)
    assert count == expected.max()
    pairs = set(zip(labels.numpy().ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert labels.dtype == torch.int32


def test_any_labels(form: str) -> None:
    """Labels that no pixel has, touching and torn objects, negative numbers, strided labels without an image."""
    labels = torch.zeros(40, 90, dtype=torch.int32)
    labels[3:9, 2:30], labels[3:9, 30:50], labels[20:, 5:7], labels[5, 80], labels[0, 0] = 1, 4, 1, 6, -7
    for given in (labels, labels.T, labels[:, ::2], labels.long()):
        found, expected = measure_objects(given), measure_objects_reference(given)
        for name in ("area", "centroid", "box", "mean"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), equal_nan=True)
    found = measure_objects(labels)
    assert found.area.tolist() == [6 * 28 + 20 * 2, 0, 0, 6 * 20, 0, 1]
    assert found.box[[0, 1, 5]].tolist() == [[3, 2, 40, 30], [0, 0, 0, 0], [5, 80, 6, 81]]
    assert found.centroid[1].isnan().all()
    assert found.mean.shape == (6, 0)


def test_nothing_to_measure(form: str) -> None:
    for shape in ((0, 5), (7, 5)):
        labels, count = connected_components(torch.zeros(shape, dtype=torch.bool))
        assert (count, len(measure_objects(labels, torch.zeros(2, *shape)))) == (0, 0)


def test_refuses() -> None:
    labels = torch.zeros(4, 5, dtype=torch.int32)
    for error, match, call in (
        (BadShapeError, "expected \\(H, W\\)", lambda: connected_components(labels[None].bool())),
        (BadValueError, "bool or uint8", lambda: connected_components(labels)),
        (BadValueError, "connectivity 6", lambda: connected_components(labels.bool(), connectivity=6)),
        (BadShapeError, "\\(C, H, W\\)", lambda: measure_objects(labels, torch.zeros(4, 5))),
        (BadShapeError, "\\(C, H, W\\)", lambda: measure_objects(labels, torch.zeros(4, 5, 3))),
        (BadValueError, "int32", lambda: measure_objects(labels.float())),
    ):
        with pytest.raises(error, match=match):
            call()
