"""`augment` against its reference in float64, and the reference against what defines each stage."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dhlab.errors import BadShapeError, BadValueError
from dhlab.kernels import Plan, augment, augment_reference
from dhlab.kernels.density import StainMap

MEAN, STD = (0.7, 0.55, 0.69), (0.2, 0.25, 0.18)


def pictures(batch: int = 2, height: int = 13, width: int = 17, channel_axis: int = -1) -> torch.Tensor:
    shape = (batch, height, width, 3) if channel_axis == -1 else (batch, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def labels(batch: int = 2, height: int = 13, width: int = 17, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    found = torch.randint(0, 99, (batch, height, width), generator=torch.Generator().manual_seed(1))
    return found.to(dtype)


def make_plan(batch: int = 2, size: tuple[int, int] = (13, 17), matrix: Any = None, **stages: Any) -> Plan:
    one = torch.eye(3) if matrix is None else torch.as_tensor(matrix, dtype=torch.float32)
    keys = torch.arange(batch, dtype=torch.int64) * 2**35 - 3
    for name, value in stages.items():
        if isinstance(value, float):
            stages[name] = torch.full((batch,), value)
    return Plan(size, one.expand(batch, 3, 3).contiguous(), keys, **stages)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"interpolation": "cubic"}, "expected one of nearest"),
        ({"border": "mirror"}, "expected one of constant"),
        ({"supersample": 9}, "1 to 8"),
        ({"size": (0, 4)}, "at least 1"),
        ({"geometry": "shear"}, "expected one of identity"),
        ({"matrix": torch.full((2, 3, 3), torch.nan)}, "matrix of the plan holds values that are not finite"),
        ({"colour": torch.full((2, 3, 4), torch.inf)}, "colour of the plan holds values that are not finite"),
        ({"gamma": torch.zeros(2)}, "gamma of the plan reaches from 0 to 0"),
        ({"salt": torch.tensor([0.0, 1.5])}, "expected 0 to 1"),
        ({"poisson": torch.tensor([0.0, 65.0])}, "expected 0 to 64"),
        ({"table": torch.full((2, 3, 256), 256.0)}, "expected 0 to 255"),
        ({"blur": torch.tensor([-1.0, 0.0])}, "expected 0 to 8"),
        ({"dropout": torch.tensor([[0.1, 0.5, 2.0]] * 2)}, "at least 1 pixel"),
    ],
)
def test_a_plan_refuses_values_without_meaning(wrong: dict[str, Any], message: str) -> None:
    arguments = {"size": (4, 5), "matrix": torch.eye(3).expand(2, 3, 3), "keys": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(BadValueError, match=message):
        Plan(**arguments | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"matrix": torch.zeros(2, 2, 3)},
        {"keys": torch.zeros(3, dtype=torch.int64)},
        {"keys": torch.zeros(2)},
        {"fill": torch.zeros(2, 4)},
        {"field": torch.zeros(2, 2, 1, 5)},
        {"cutouts": torch.zeros(2, 5, 4)},
        {"gamma": torch.ones(2, dtype=torch.float64)},
        {"stain": StainMap(torch.zeros(3, 3, 4), torch.zeros(3, 3, 4), torch.zeros(3, 3))},
    ],
)
def test_a_plan_refuses_other_shapes(wrong: dict[str, Any]) -> None:
    arguments = {"size": (4, 5), "matrix": torch.eye(3).expand(2, 3, 3), "keys": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(BadShapeError, match="expected"):
        Plan(**arguments | wrong)


def test_the_geometry_of_a_plan_is_found_out() -> None:
    turn = [[0, 1, 3], [-1, 0, 8], [0, 0, 1]]
    angle = math.cos(0.3), math.sin(0.3)
    rotation = [[angle[0], -angle[1], 1], [angle[1], angle[0], 2], [0, 0, 1]]
    assert make_plan().geometry == "identity"
    assert make_plan(matrix=turn).geometry == "whole"
    assert make_plan(matrix=[[1, 0, 0.5], [0, 1, 0], [0, 0, 1]]).geometry == "affine"
    assert make_plan(matrix=rotation).geometry == "affine"
    assert make_plan(matrix=[[1, 0, 0], [0, 1, 0], [0.01, 0, 1]]).geometry == "projective"


def test_a_plan_that_was_moved_is_the_same() -> None:
    stain = StainMap(
        torch.rand(2, 3, 4), torch.rand(2, 3, 4), torch.rand(2, 3), torch.rand(2, 3, 3), torch.rand(2, 3, 3)
    )
    plan = make_plan(stain=stain, gamma=2.0, poisson=3.0, cutouts=torch.ones(2, 1, 4, dtype=torch.int32))
    moved = plan.to("cpu")
    assert torch.equal(moved.pack(), plan._pack())
    assert torch.equal(moved._pack(), plan.pack())
    assert moved.geometry == plan.geometry
    assert moved.colour is None


@pytest.mark.parametrize(
    ("images", "masks", "options", "error"),
    [
        (pictures().float(), None, {}, BadShapeError),
        (pictures(3), None, {}, BadShapeError),
        (pictures()[..., :2], None, {}, BadShapeError),
        (pictures(channel_axis=1), None, {}, BadShapeError),
        (pictures(), labels(height=12), {}, BadShapeError),
        (pictures(), labels().float(), {}, BadShapeError),
        (pictures(), None, {"dtype": torch.int16}, BadValueError),
        (pictures(), None, {"dtype": torch.uint8, "mean": MEAN, "std": STD}, BadValueError),
        (pictures(), None, {"mean": MEAN}, BadValueError),
        (pictures(), None, {"mean": MEAN, "std": (0.1, 0.0, 0.1)}, BadValueError),
        (pictures(), None, {"out": torch.empty(2, 3, 13, 16)}, BadShapeError),
        (pictures(), None, {"out": torch.empty(2, 3, 13, 34)[..., ::2]}, BadShapeError),
        (pictures(), labels(), {"masks_out": torch.empty(2, 13, 17)}, BadShapeError),
    ],
)
def test_refuses_what_does_not_fit(images, masks, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="expected"):
        augment(images, make_plan(), masks, **options)


@pytest.mark.gpu
def test_refuses_a_plan_on_another_device() -> None:
    with pytest.raises(BadValueError, match=r"plan\.to"):
        augment(pictures().cuda(), make_plan())


def test_without_stages_pixels_stay_as_they_are() -> None:
    images, masks = pictures(), labels()
    result, moved = augment(images, make_plan(), masks, dtype=torch.uint8)
    assert torch.equal(result, images.movedim(-1, 1))
    assert torch.equal(moved, masks)
    assert torch.equal(augment_reference(images, make_plan(), dtype=torch.uint8), images.movedim(-1, 1))
