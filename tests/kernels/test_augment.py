"""`augment` against its reference in float64, and the reference against what defines each stage."""

from __future__ import annotations

import dataclasses
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


# float32 against float64: positions are equal; a few roundings of 6e-8, the polynomials of lg2 and ex2 (5e-7, times an
# exponent of up to 20 in stain). Noise adds the approximation of the normal distribution (3e-6 of it).
TOLERANCE = 2e-5
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
BORDERS = ("constant", "replicate", "reflect", "reflect101", "wrap")


def draw(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return low + (high - low) * torch.rand(shape, generator=generator)


def affine(batch: int) -> torch.Tensor:
    """A matrix for each sample: turned, scaled, sheared, partly beyond the source."""
    matrix = torch.eye(3).repeat(batch, 1, 1)
    for i in range(batch):
        cos, sin = math.cos(1 + i), math.sin(1 + i)
        matrix[i, :2] = torch.tensor([[1.2 * cos, -sin, 8.3 + i], [sin, 0.9 * cos, 2.1]])
    return matrix


def projective(batch: int) -> torch.Tensor:
    matrix = affine(batch)
    matrix[:, 2, :2] = torch.tensor([0.011, -0.02])
    return matrix


def turned(batch: int, size: int = 17) -> torch.Tensor:
    matrix = torch.tensor([[0.0, 1, -2], [-1, 0, size - 3], [0, 0, 1]])
    return matrix.repeat(batch, 1, 1)


def shifted(batch: int) -> torch.Tensor:
    """Whole pixels: a crop that leaves the source, the same upside down, left and right swapped, and both."""
    matrix = torch.eye(3).repeat(batch, 1, 1)
    for i in range(batch):
        down, right = (1.0, -1.0)[i // 2 % 2], (1.0, -1.0)[i % 2]
        matrix[i, :2] = torch.tensor([[down, 0, 2 if down > 0 else 11], [0, right, 4 if right > 0 else 15]])
    return matrix


def stain_map(batch: int, around: bool = False, **options: float) -> StainMap:
    """Haematoxylin, eosin and DAB, each with another strength; with matrices `around`, something like Reinhard."""
    stains = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    scale = math.log2(1e-6)
    unmix, mix = torch.zeros(batch, 3, 4), torch.zeros(batch, 3, 4)
    unmix[..., :3] = torch.linalg.inv(stains).T / scale * draw(batch, 3, 1, low=0.8, high=1.2)
    unmix[..., 3] = draw(batch, 3, low=-0.02, high=0.02)
    mix[..., :3] = stains.T * scale
    floor = torch.zeros(batch, 3)
    if not around:
        return StainMap(unmix, mix, floor, **options)
    before = torch.eye(3) * 0.8 + 0.05 + draw(batch, 3, 3, high=0.05)
    return StainMap(unmix, mix, torch.full((batch, 3), -torch.inf), before, torch.linalg.inv(before), **options)


def stages(batch: int) -> dict[str, dict[str, Any]]:
    """Each stage alone, and with it what changes its meaning."""
    fill = draw(batch, 3, high=255.0)
    boxes = torch.tensor([[3, 4, 10, 12], [8, -5, 9, 60], [5, 5, 5, 9], [-9, 0, -1, 5]], dtype=torch.int32)
    found: dict[str, dict[str, Any]] = {
        "table": {"table": draw(batch, 3, 256, high=255.0)},
        "stain": {"stain": stain_map(batch)},
        "stain around": {"stain": stain_map(batch, around=True, offset=1 / 255, least=1e-3)},
        "colour": {"colour": torch.eye(3, 4) + draw(batch, 3, 4, low=-0.3, high=0.3)},
        "gamma": {"gamma": draw(batch, low=0.4, high=2.5)},
        "dropout": {"dropout": torch.tensor([[0.3, 4.0, 2.5]] * batch), "fill": fill},
        "dropout per channel": {"dropout": torch.tensor([[0.5, 1.0, 7.0]] * batch), "dropout_per_channel": True},
        "cutouts": {"cutouts": boxes.repeat(batch, 1, 1), "fill": fill},
        "blur": {"blur": draw(batch, low=0.3, high=2.0)},
        "wide blur": {"blur": torch.linspace(8, 0, batch)},
        "sharpen": {"sharpen": draw(batch, high=2.0)},
        "sharpen wide": {"sharpen": torch.linspace(0, 2, batch), "blur": torch.full((batch,), 2.0)},
    }
    noise = {"gaussian": 0.1, "laplace": 0.1, "poisson": 30.0, "salt": 0.2, "pepper": 0.2}
    for name, most in noise.items():
        found[name] = {name: torch.linspace(0, most, batch)}
        found[f"{name} per channel"] = {name: torch.linspace(most, 0, batch), "noise_per_channel": True}
    found["all"] = {name: value for part in list(found.values())[::-1] for name, value in part.items()}
    return found


STAGES = stages(3)


def deviation(result: torch.Tensor, expected: torch.Tensor) -> float:
    return (result.double() - expected.double()).abs().max().item()


def skip_in_interpreter(form: str, device: str, spared: bool) -> None:
    """Triton's interpreter takes a second where the others take a millisecond: it need not run every combination."""
    if form == "triton" and device == "cpu" and spared:
        pytest.skip("one such case is enough in Triton's interpreter")


def on(device: str, plan: Plan) -> Plan:
    return plan if device == "cpu" else plan.to(device)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("shift", [False, True])
def test_every_stage_equals_float64(form: str, device: str, stage: str, shift: bool) -> None:
    skip_in_interpreter(form, device, shift)
    matrix = turned(3) if shift else None
    images, plan = pictures(3), make_plan(3, matrix=matrix, **STAGES[stage])
    result = augment(images.to(device), on(device, plan), mean=MEAN, std=STD)
    expected = augment_reference(images, plan, mean=MEAN, std=STD, dtype=torch.float64)
    assert deviation(result.cpu(), expected) < TOLERANCE / min(STD)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("make", [affine, projective, turned, shifted])
def test_every_geometry_equals_float64(form: str, device: str, interpolation: str, border: str, make) -> None:
    skip_in_interpreter(form, device, make in (turned, shifted) or (interpolation == "bicubic" and make is affine))
    images, masks = pictures(3), labels(3)
    plan = make_plan(
        3, (19, 14), make(3), interpolation=interpolation, border=border, mask_fill=77, fill=draw(3, 3, high=255.0)
    )
    result, moved = augment(images.to(device), on(device, plan), masks.to(device))
    expected, expected_masks = augment_reference(images, plan, masks, dtype=torch.float64)
    assert deviation(result.cpu(), expected) < TOLERANCE
    assert torch.equal(moved.cpu(), expected_masks)


@pytest.mark.parametrize("options", [{"field": True}, {"supersample": 3}, {"supersample": 2, "field": True}])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_displacement_and_finer_sampling(form: str, device: str, options: dict[str, Any], interpolation: str) -> None:
    skip_in_interpreter(form, device, interpolation == "bicubic" and "supersample" in options)
    if "field" in options:
        options = {**options, "field": draw(2, 2, 4, 5, low=-5, high=5)}
    images, masks = pictures(), labels()
    plan = make_plan(2, (11, 23), affine(2), interpolation=interpolation, border="reflect", **options)
    result, moved = augment(images.to(device), on(device, plan), masks.to(device))
    expected, expected_masks = augment_reference(images, plan, masks, dtype=torch.float64)
    assert deviation(result.cpu(), expected) < TOLERANCE
    assert torch.equal(moved.cpu(), expected_masks)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 3), (1, 63), (67, 1), (5, 331)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_sizes_of_source_and_result(form: str, device: str, size: tuple[int, int], interpolation: str) -> None:
    skip_in_interpreter(form, device, interpolation == "bicubic" and size[0] > 1)
    images, masks = pictures(1, *size), labels(1, *size)
    for matrix, target in ((None, size), (affine(1), (7, 5)), (affine(1), (1, 1))):
        plan = make_plan(
            1, target, matrix, interpolation=interpolation, border="reflect101", colour=torch.eye(3, 4)[None]
        )
        result, moved = augment(images.to(device), on(device, plan), masks.to(device))
        expected, expected_masks = augment_reference(images, plan, masks, dtype=torch.float64)
        assert deviation(result.cpu(), expected) < TOLERANCE
        assert torch.equal(moved.cpu(), expected_masks)


@pytest.mark.parametrize("layout", ["last", "first", "window", "every other"])
@pytest.mark.parametrize("make", [affine, turned, None])
def test_images_of_any_strides(form: str, device: str, layout: str, make) -> None:
    images = pictures(2, 13, 17).to(device)
    if layout == "window":
        images = pictures(2, 20, 30).to(device)[:, 3:16, 5:22]
    elif layout == "every other":
        images = torch.randint(0, 256, (2, 26, 34, 4), dtype=torch.uint8).to(device)[:, ::2, ::2, :3]
    plan = make_plan(matrix=None if make is None else make(2), stain=stain_map(2))
    expected = augment_reference(images.cpu(), plan, dtype=torch.float64)
    axis = 1 if layout == "first" else -1
    images = images.movedim(-1, 1).contiguous() if layout == "first" else images
    assert deviation(augment(images, on(device, plan), channel_axis=axis).cpu(), expected) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_masks_of_any_integer_type_and_planes(form: str, device: str, dtype: torch.dtype) -> None:
    masks = torch.stack([labels(dtype=dtype), labels(dtype=dtype).flip(1)], 3).to(device).movedim(3, 1)  # strided
    plan = make_plan(matrix=affine(2), mask_fill=1)
    _, moved = augment(pictures().to(device), on(device, plan), masks)
    assert moved.dtype == dtype
    assert torch.equal(moved.cpu(), augment_reference(pictures(), plan, masks.cpu())[1])


# One rounding to the type: relative 2^-11 and 2^-8 of values up to 3.6; in uint8 a half may fall either way.
ROUNDING = {torch.float32: TOLERANCE / min(STD), torch.float16: 3e-3, torch.bfloat16: 2e-2, torch.uint8: 1}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("make", [affine, None])
def test_types_and_layouts_of_the_result(form: str, device: str, dtype: torch.dtype, memory_format, make) -> None:
    if form == "triton" and device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter has no bfloat16")
    images, plan = pictures(2, 13, 35), make_plan(2, (13, 35), None if make is None else make(2), stain=stain_map(2))
    normalised = {} if dtype == torch.uint8 else {"mean": MEAN, "std": STD}
    options = {"dtype": dtype, "memory_format": memory_format, **normalised}
    result = augment(images.to(device), on(device, plan), **options)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=memory_format)
    kind = torch.uint8 if dtype == torch.uint8 else torch.float64
    expected = augment_reference(images, plan, dtype=kind, **normalised)
    assert deviation(result.cpu(), expected) <= ROUNDING[dtype]
    assert (result.cpu().double() - expected.double()).abs().mean() < ROUNDING[dtype] / 100 or dtype != torch.uint8
    out = torch.empty_like(result)
    assert augment(images.to(device), on(device, plan), out=out, **options).data_ptr() == out.data_ptr()
    assert torch.equal(out, result)


def test_writes_masks_into_memory_of_the_caller(form: str, device: str) -> None:
    masks, plan = labels().to(device), on(device, make_plan(matrix=affine(2)))
    out = torch.full_like(masks, -1)
    _, moved = augment(pictures().to(device), plan, masks, masks_out=out)
    assert moved.data_ptr() == out.data_ptr()
    assert torch.equal(out, augment(pictures().to(device), plan, masks)[1])


def test_empty_batch(form: str, device: str) -> None:
    result, moved = augment(pictures(0).to(device), on(device, make_plan(0)), labels(0).to(device))
    assert result.shape == (0, 3, 13, 17)
    assert moved.shape == (0, 13, 17)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_sample_does_not_depend_on_its_batch(form: str, device: str, threads: int, monkeypatch) -> None:
    """The same bits alone, in a batch, and on any number of threads."""
    skip_in_interpreter(form, device, threads > 1)
    monkeypatch.setattr("dhlab.kernels._cpu.augment.threads_for", lambda _: threads)
    size = (9, 11) if form == "triton" and device == "cpu" else (40, 50)
    images, masks = pictures(3, *size).to(device), labels(3, *size).to(device)
    plan = make_plan(3, size, affine(3), **STAGES["all"])
    together = augment(images, on(device, plan), masks)
    for i in range(3):
        alone = augment(images[i : i + 1], on(device, row_of(plan, i)), masks[i : i + 1])
        assert torch.equal(alone[0], together[0][i : i + 1])
        assert torch.equal(alone[1], together[1][i : i + 1])


def row_of(plan: Plan, i: int) -> Plan:
    """Return the plan of one sample."""

    def cut(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value[i : i + 1]
        if isinstance(value, StainMap):
            return StainMap(**{f.name: cut(getattr(value, f.name)) for f in dataclasses.fields(value)})
        return value

    return Plan(**{f.name: cut(getattr(plan, f.name)) for f in dataclasses.fields(plan)})


FLIPS = {
    "left and right": torch.tensor([[1.0, 0, 0], [0, -1, 12], [0, 0, 1]]),
    "up and down": torch.tensor([[-1.0, 0, 12], [0, 1, 0], [0, 0, 1]]),
    "transposed": torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]),
}


@pytest.mark.parametrize("name", FLIPS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_flip_twice_changes_nothing(form: str, device: str, name: str, interpolation: str) -> None:
    images, masks = pictures(2, 13, 13).to(device), labels(2, 13, 13).to(device)
    plan = on(device, make_plan(2, (13, 13), FLIPS[name], interpolation=interpolation))
    once, moved = augment(images, plan, masks, dtype=torch.uint8)
    twice, again = augment(once, plan, moved, dtype=torch.uint8, channel_axis=1)
    assert not torch.equal(once, images.movedim(-1, 1))
    assert torch.equal(twice, images.movedim(-1, 1))
    assert torch.equal(again, masks)


def test_four_quarter_turns_change_nothing(form: str, device: str) -> None:
    images, masks = pictures(2, 16, 16).to(device), labels(2, 16, 16).to(device)
    plan = on(device, make_plan(2, (16, 16), [[0, 1, 0], [-1, 0, 15], [0, 0, 1]]))
    result, moved = images.movedim(-1, 1), masks
    for turn in range(4):
        result, moved = augment(result, plan, moved, dtype=torch.uint8, channel_axis=1)
        assert torch.equal(result.cpu(), images.movedim(-1, 1).cpu().rot90(turn + 1, (2, 3)))
    assert torch.equal(moved, masks)


def test_neutral_values_spare_a_sample(form: str, device: str) -> None:
    """Bits stay as they are in a sample whose rows are neutral, whatever happens to its neighbours."""
    colour = torch.stack([torch.eye(3, 4), torch.eye(3, 4) * 0.5])
    two = {name: torch.tensor([0.0, 0.2]) for name in ("gaussian", "laplace", "poisson", "salt", "pepper", "sharpen")}
    plan = make_plan(
        gamma=torch.tensor([1.0, 2.0]),
        blur=torch.tensor([0.0, 1.0]),
        dropout=torch.tensor([[0.0, 0, 0], [0.5, 2, 2]]),
        cutouts=torch.tensor([[[0, 0, 0, 0]], [[0, 0, 5, 5]]], dtype=torch.int32),
        table=torch.arange(256.0).expand(2, 3, 256).contiguous(),
        colour=colour,
        **two,
    )
    result = augment(pictures().to(device), on(device, plan), dtype=torch.uint8).cpu()
    assert torch.equal(result[0], pictures()[0].movedim(-1, 0))
    assert not torch.equal(result[1], pictures()[1].movedim(-1, 0))


def test_noise_has_the_distribution_it_is_named_after(form: str, device: str) -> None:
    side = 64 if form == "triton" and device == "cpu" else 256
    images = torch.full((1, side, side, 3), 128, dtype=torch.uint8, device=device)
    draws = {}
    for name, strength in (("gaussian", 0.05), ("laplace", 0.05), ("poisson", 12.0)):
        plan = make_plan(1, (side, side), noise_per_channel=True, **{name: strength})
        draws[name] = (augment(images, on(device, plan)).cpu().double() - 128 / 255).flatten()
    error = 4 / math.sqrt(3 * side**2)  # four standard errors of a mean of unit variance
    for name in ("gaussian", "laplace"):
        assert abs(draws[name].mean() / 0.05) < error
        assert abs(draws[name].std() / 0.05 - 1) < 3 * error
    kurtosis = {name: (v**4).mean() / (v**2).mean() ** 2 for name, v in draws.items()}
    assert abs(kurtosis["gaussian"] - 3) < 15 * error
    assert abs(kurtosis["laplace"] - 6) < 80 * error
    counts = (draws["poisson"] * 255).round()
    assert abs(counts.abs().mean() / 12 - 1) < error
    assert abs(counts.abs().var() / 12 - 1) < 3 * error
    assert abs((counts > 0).double().mean() - 0.5) < error


def test_channels_share_noise_unless_told_otherwise(form: str, device: str) -> None:
    images = torch.full((1, 9, 70, 3), 128, dtype=torch.uint8, device=device)
    for name in ("gaussian", "laplace", "poisson", "salt", "pepper"):
        shared = augment(images, on(device, make_plan(1, (9, 70), **{name: 0.3})))
        apart = augment(images, on(device, make_plan(1, (9, 70), **{name: 0.3}, noise_per_channel=True)))
        assert torch.equal(shared[:, 0], shared[:, 1])
        assert torch.equal(apart[:, 0], shared[:, 0])
        assert not torch.equal(apart[:, 0], apart[:, 1])


@pytest.mark.filterwarnings("ignore:.*encountered in divide")  # by NumPy, in which Triton's interpreter computes
def test_positions_that_are_no_numbers_lie_far_outside(form: str, device: str) -> None:
    matrix = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, -5]])  # a column at infinity, and one of 0 / 0
    plan = make_plan(matrix=matrix, fill=torch.full((2, 3), 255.0))
    result = augment(pictures().to(device), on(device, plan))
    assert torch.isfinite(result).all()
    assert deviation(result.cpu(), augment_reference(pictures(), plan, dtype=torch.float64)) < TOLERANCE


def test_affine_maps_equal_torchvision() -> None:
    """The same rotation by another library, away from the border, where both only interpolate."""
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    smooth = torch.nn.functional.interpolate(pictures(1, 8, 8).movedim(-1, 1).float(), (64, 64), mode="bicubic")
    images = smooth.clamp(0, 255).byte()
    angle = math.radians(20)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    matrix = torch.eye(3)
    matrix[:2, :2] = turn
    matrix[:2, 2] = 31.5 - turn @ torch.tensor([31.5, 31.5])
    result = augment(images, make_plan(1, (64, 64), matrix), channel_axis=1)
    bilinear = functional.InterpolationMode.BILINEAR
    theirs = functional.affine(images.float() / 255, -20, [0, 0], 1, [0, 0], interpolation=bilinear)
    assert deviation(result[..., 16:48, 16:48], theirs[..., 16:48, 16:48]) < 1e-4


@pytest.mark.parametrize(
    ("border", "theirs"),
    [
        ("constant", "grid-constant"),
        ("replicate", "nearest"),
        ("reflect", "reflect"),
        ("reflect101", "mirror"),
        ("wrap", "grid-wrap"),
    ],
)
def test_borders_equal_scipy(border: str, theirs: str) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    images, matrix = pictures(1), affine(1)
    result = augment(images, make_plan(1, (30, 30), matrix, border=border, fill=torch.full((1, 3), 40.0)))
    for channel in range(3):
        plane = ndimage.affine_transform(
            images[0, ..., channel].double().numpy(),
            matrix[0].double().numpy(),
            output_shape=(30, 30),
            order=1,
            mode=theirs,
            cval=40.0,
        )
        assert deviation(result[0, channel], torch.from_numpy(plane) / 255) < TOLERANCE


def test_bicubic_equals_torch() -> None:
    """Enlarging by half as much again, away from the border."""
    images = pictures(1, 20, 24)
    matrix = torch.tensor([[2 / 3, 0, -1 / 6], [0, 2 / 3, -1 / 6], [0, 0, 1]])
    result = augment(images, make_plan(1, (30, 36), matrix, interpolation="bicubic", border="replicate"))
    theirs = torch.nn.functional.interpolate(images.movedim(-1, 1).float() / 255, (30, 36), mode="bicubic")
    assert deviation(result, theirs.clamp(0, 1)) < TOLERANCE


def test_nearest_masks_equal_torch() -> None:
    masks = labels(1, 12, 20)
    matrix = torch.tensor([[0.5, 0, -0.25], [0, 2.0, 0.5], [0, 0, 1]])
    _, moved = augment(pictures(1, 12, 20), make_plan(1, (24, 10), matrix), masks)
    theirs = torch.nn.functional.interpolate(masks[:, None].float(), (24, 10), mode="nearest-exact")[:, 0]
    assert torch.equal(moved, theirs.long())


def test_blur_equals_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    images = pictures(1, 40, 31)
    result = augment(images, make_plan(1, (40, 31), blur=2.5))
    for channel in range(3):
        plane = ndimage.gaussian_filter(images[0, ..., channel].double().numpy(), 2.5, mode="mirror", radius=8)
        assert deviation(result[0, channel], torch.from_numpy(plane) / 255) < TOLERANCE


def test_hed_jitter_of_nothing_equals_scikit_image() -> None:
    """Unmixed and mixed again as scikit-image does, negative amounts cut off."""
    color = pytest.importorskip("skimage.color")
    images = pictures(1, 32, 32)
    scale = math.log2(1e-6)
    unmix, mix = torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)
    unmix[0, :, :3] = torch.from_numpy(color.hed_from_rgb.T.copy()) / scale
    mix[0, :, :3] = torch.from_numpy(color.rgb_from_hed.T.copy()) * scale
    result = augment(images, make_plan(1, (32, 32), stain=StainMap(unmix, mix, torch.zeros(1, 3))))
    theirs = color.hed2rgb(color.rgb2hed(images[0].numpy()))
    assert deviation(result[0], torch.from_numpy(theirs).movedim(-1, 0)) < TOLERANCE


def test_torch_sees_one_operator_for_images_and_one_for_masks() -> None:
    from dhlab.kernels.augment import _arguments

    plan = make_plan(matrix=affine(2), stain=stain_map(2))
    ending = torch.tensor([1.0, 1, 1, 0, 0, 0])
    arguments = (pictures().movedim(-1, 1), *_arguments(plan), ending, torch.empty(2, 3, 13, 17))
    torch.library.opcheck(torch.ops.dhlab.augment.default, arguments)
    masks = (labels()[:, None], plan.pack(), None, "wrap", "affine", 0, torch.empty(2, 1, 13, 17, dtype=torch.int64))
    torch.library.opcheck(torch.ops.dhlab.augment_masks.default, masks)


def test_compiled_graphs_do_not_break_on_it() -> None:
    plan = make_plan(matrix=affine(2), stain=stain_map(2), gamma=1.5)
    images, masks = pictures(), labels()

    def run(images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result, moved = augment(images, plan, masks, mean=MEAN, std=STD)
        return result * 2, moved

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(images, masks)
    plain = run(images, masks)
    torch.testing.assert_close(compiled[0], plain[0])
    assert torch.equal(compiled[1], plain[1])


@pytest.mark.gpu
def test_no_launch_waits_for_the_device() -> None:
    """Recorded as a CUDA graph, which refuses whatever synchronises."""
    images, masks = pictures(4, 64, 64).cuda(), labels(4, 64, 64).cuda()
    plan = make_plan(4, (64, 64), affine(4), **stages(4)["all"]).to("cuda")
    out, masks_out = torch.empty(4, 3, 64, 64, device="cuda"), torch.empty_like(masks)
    eager = augment(images, plan, masks, mean=MEAN, std=STD)[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        augment(images, plan, masks, mean=MEAN, std=STD, out=out, masks_out=masks_out)
    out.zero_()
    graph.replay()
    assert torch.equal(out, eager)


@pytest.mark.gpu
def test_more_than_two_thousand_million_elements() -> None:
    """Offsets beyond int32 in source, result and mask."""
    side = 27_000
    images = torch.zeros((1, side, side, 3), dtype=torch.uint8, device="cuda")
    images[0, -1, -1] = 255
    masks = images[..., 0].contiguous()
    for matrix in (torch.eye(3), torch.tensor([[-1.0, 0, side - 1], [0, -1, side - 1], [0, 0, 1]])):
        plan = make_plan(1, (side, side), matrix).to("cuda")
        result, moved = augment(images, plan, masks, dtype=torch.uint8)
        corner = -1 if matrix[0, 0] > 0 else 0
        assert result[0, :, corner, corner].tolist() == [255] * 3
        assert moved[0, corner, corner].item() == 255
        assert result.count_nonzero().item() == 3
