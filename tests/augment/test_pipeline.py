"""Pipelines: the same sample comes out the same in any batch, order is kept, and passes are few."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dhlab.augment as da
from dhlab.augment import (
    Affine,
    AutoContrast,
    Brightness,
    CenterCrop,
    CoarseDropout,
    ColourJitter,
    Compose,
    Contrast,
    Cutout,
    Elastic,
    Equalize,
    Flip,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    Greyscale,
    GridDistortion,
    Invert,
    Mirror,
    Normalize,
    OneOf,
    OpticalDistortion,
    Perspective,
    PoissonNoise,
    Posterize,
    QuarterTurns,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    Rotate,
    SaltAndPepper,
    Scale,
    Sharpen,
    Solarize,
    StainJitter,
    StainTarget,
    ToFloat32,
    Translate,
    Transpose,
    from_dict,
)
from dhlab.errors import BadShapeError, BadValueError, UnknownNameError
from dhlab.kernels import Stains, macenko_fit, normalize_stain
from dhlab.phantoms import paint_slide

HE = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
OTHER = ((0.55, 0.76, 0.35), (0.10, 0.95, 0.25))
STEPS = (
    Affine((-30, 30), (-0.1, 0.1), (0.9, 1.1), (-5, 5), (-5, 5)),
    AutoContrast(),
    Brightness(),
    CoarseDropout(),
    ColourJitter(),
    Contrast(about="mean"),
    Cutout(7, 2),
    Elastic(p=0.5),
    Equalize(),
    Flip(),
    Gamma(),
    GaussianBlur(p=0.5),
    GaussianNoise(p=0.5),
    Greyscale(),
    GridDistortion((3, 5)),
    Invert(),
    Mirror(),
    OneOf((Rotate(), Compose((Gamma(), Perspective())), SaltAndPepper(per_channel=True)), p=0.8),
    OpticalDistortion(p=0.5),
    PoissonNoise(),
    Posterize(),
    QuarterTurns(),
    RandomErasing(),
    Scale(),
    Sharpen(p=0.5),
    Solarize(),
    StainJitter(),
    StainTarget(HE, (OTHER, HE), p=0.5),
    Translate(),
)


def paint(count: int, shape: tuple[int, int] = (40, 40)) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [paint_slide(shape, rng=i, spacing=2.0, whole=True) for i in range(count)]
    images, masks = (np.stack([p[n] for p in pairs]) for n in (0, 1))
    return torch.from_numpy(images), torch.from_numpy(masks.astype(np.int64))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=5), st.integers(0, 2**63 - 1), st.integers(0, 9))
def test_a_batch_may_be_split_anyhow(steps, seed, epoch):
    """Noise, bent geometry, choices, steps that look at pictures, several passes: all by sample alone."""
    images, masks = paint(4)
    pipeline = Compose(tuple(steps))
    indices = np.array([7, 2**40, 0, 3])
    whole, moved = pipeline(images, masks, seed=seed, epoch=epoch, indices=indices)
    for part in ([2], [3, 1]):
        some, these = pipeline(images[part], masks[part], seed=seed, epoch=epoch, indices=indices[part])
        assert torch.equal(some, whole[part])
        assert torch.equal(these, moved[part])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=2, max_size=5), st.integers(0, 99))
def test_pipelines_go_through_json(steps, seed):
    pipeline = Compose(tuple(steps))
    again = from_dict(json.loads(json.dumps(pipeline.to_dict())))
    assert again == pipeline
    assert repr(again) == repr(pipeline)


def test_seed_epoch_and_sample_count():
    images, _ = paint(1)
    pipeline = Compose([Rotate(), StainJitter()])
    seen = {
        pipeline(images, seed=s, epoch=e, indices=[i]).numpy().tobytes()
        for s, e, i in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 2**40)]
    }
    assert len(seen) == 5


def test_draws_of_a_step_are_its_own():
    """A step added at the end changes nothing before it."""
    images, _ = paint(3)
    short, long = (Compose(s).draw(images)[0] for s in ([Rotate()], [Rotate(), Gamma()]))
    assert torch.equal(short.matrix, long.matrix)


@pytest.mark.parametrize(
    ("steps", "passes"),
    [
        (
            [
                Mirror(),
                Rotate(),
                Elastic(),
                StainJitter(),
                ColourJitter(),
                GaussianNoise(),
                GaussianBlur(),
            ],
            1,
        ),
        ([ColourJitter(), Flip(), QuarterTurns()], 1),
        ([ColourJitter(), Rotate()], 2),
        ([Rotate(), Elastic()], 1),
        ([Rotate(border="constant"), Elastic()], 2),
        ([Rotate(interpolation="nearest"), Scale()], 2),
        ([Resize(30), Rotate()], 1),
        ([Gamma(), Brightness()], 2),
        ([Brightness(), Contrast(), Greyscale()], 1),
        ([Cutout(5), Cutout(7)], 1),
        ([Cutout(5), Cutout(7, fill=255)], 2),
        ([Cutout(5), Mirror()], 2),
        ([GaussianNoise(), GaussianNoise()], 2),
        ([Mirror(), Equalize()], 1),
        ([Rotate(), Equalize()], 2),
        ([Brightness(), Contrast(about="mean")], 1),
        ([Gamma(), OneOf([Gamma(), GaussianBlur()])], 1),
        ([OneOf([GaussianBlur(), Brightness()]), Sharpen()], 2),
        ([OneOf([GaussianBlur(), Sharpen()])], 1),
        ([Rotate(), Normalize(0.5, 0.2), CenterCrop(20)], 1),
        ([GaussianNoise(per_channel=True), PoissonNoise()], 2),
    ],
)
def test_passes(steps, passes):
    pipeline = Compose(steps)
    images, _ = paint(2)
    assert pipeline.passes == passes == len(pipeline.draw(images))


def test_order_is_kept_across_passes():
    images, _ = paint(3)
    one, two = Gamma((2.0, 2.0)), Brightness((0.5, 0.5))
    forth, back = Compose([one, two])(images), Compose([two, one])(images)
    assert torch.equal(forth, Compose([two])(Compose([one])(images)))
    # One pass does not round in between; squaring at most doubles half a level.
    assert (back.int() - Compose([one])(Compose([two])(images)).int()).abs().max() <= 1
    assert not torch.equal(forth, back)


def test_geometry_composes_in_order():
    images, masks = paint(2, (30, 44))
    steps = [Transpose(1.0), Flip(1.0), QuarterTurns((1,)), CenterCrop((20, 24)), Mirror(1.0)]
    composed, moved = Compose(steps)(images, masks)
    singly, mask = images, masks
    for step in steps:
        turn = Compose([step])
        singly, mask = turn(singly, mask)
    assert torch.equal(composed, singly)
    assert torch.equal(moved, mask)


def test_bending_composes_with_what_comes_before_and_after():
    """A composed map shows what one after the other shows, but for the sampling in between."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3)).astype(np.uint8))
    images = torch.nn.functional.interpolate(images.permute(0, 3, 1, 2).float(), (96, 96), mode="bicubic")
    images = images.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    steps = [
        Rotate((20, 20), border="reflect101"),
        Elastic((20, 20), (6, 6)),
        OpticalDistortion((0.1, 0.1)),
        Mirror(1.0),
    ]
    numbers = {"seed": 4, "indices": [0, 1]}
    together = Compose(steps)
    plan = together.draw(images, **numbers)[0]
    assert together.passes == 1
    singly = images
    empty = Compose(())
    for number in range(len(steps)):
        # A step keeps its number, and so its draws, if the others are there and do nothing.
        alone = [s if n == number else Compose(()) for n, s in enumerate(steps)]
        singly = Compose(alone)(singly, **numbers)
    difference = (together(images, **numbers).float() - singly.float()).abs()[:, 12:-12, 12:-12]
    assert plan.field is not None
    assert empty.passes == 1
    assert difference.mean() < 2
    assert difference.max() < 30


def test_choice_takes_one_in_its_share():
    images = torch.full((600, 2, 2, 3), 100, dtype=torch.uint8)
    pipeline = Compose(
        [OneOf([Brightness((2, 2)), Brightness((0, 0)), Compose([Invert(1.0)])], p=0.6, weights=(1, 2, 3))]
    )
    found = pipeline(images, seed=5)[:, 0, 0, 0]
    counts = {value: int((found == value).sum()) for value in (200, 0, 155, 100)}
    assert sum(counts.values()) == 600
    # Four standard deviations of a binomial share of 600.
    for value, share in ((200, 0.1), (0, 0.2), (155, 0.3), (100, 0.4)):
        assert abs(counts[value] / 600 - share) < 4 * (share * (1 - share) / 600) ** 0.5


def test_spared_samples_stay():
    images, masks = paint(40)
    for step in STEPS:
        if isinstance(step, OneOf | QuarterTurns):
            continue
        never = Compose([Compose([step], p=0.0)])
        result, moved = never(images[:3], masks[:3])
        assert (result.int() - images[:3].int()).abs().max() <= 0, step
        assert torch.equal(moved, masks[:3])


def test_whatever_axis_the_channels_are_on():
    images, _ = paint(2, (24, 30))
    pipeline = Compose([Rotate(), ColourJitter(about="mean"), Equalize()])
    first = images.permute(0, 3, 1, 2)
    assert torch.equal(pipeline(first).permute(0, 2, 3, 1), pipeline(images))
    assert torch.equal(pipeline(first.contiguous()).permute(0, 2, 3, 1), pipeline(images))


def test_ending_in_floats():
    images, _ = paint(2)
    found = Compose([Mirror(1.0), Normalize((0.5, 0.6, 0.7), 0.2)])(images)
    wanted = (images.flip(2).permute(0, 3, 1, 2).double() / 255 - torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)) / 0.2
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), wanted, atol=1e-5)
    half = Compose([ToFloat32(255)])(images, dtype=torch.float16)
    assert half.dtype == torch.float16
    with pytest.raises(BadValueError, match="no step makes floats"):
        Compose([Mirror()])(images, dtype=torch.float16)
    black = Compose([Normalize(0.5, 0.25), Rotate((45, 45), border="constant")])(images)
    assert black[:, :, 0, 0].abs().max() < 0.02  # 0 of the result, the mean of what goes in


def test_stain_target_carries_stains_over():
    amounts = np.random.default_rng(0).uniform(0, 0.8, (1, 20, 20, 2))
    source, wanted = (np.exp(-amounts @ np.array(s)) for s in (HE, OTHER))
    images = torch.from_numpy(np.rint(source * 255).astype(np.uint8))
    found = Compose([StainTarget(HE, (OTHER,))])(images).numpy()
    # Rounding to whole levels before and after.
    assert np.abs(found - wanted * 255).max() < 3


def test_stain_target_from_fits_is_macenkos_normalisation():
    images, _ = paint(1, (96, 96))
    source, target = macenko_fit(images), Stains.preset("macenko")
    found = Compose([StainTarget.fitted(source, target)])(images)
    wanted = normalize_stain(images, target, method="macenko")
    # Macenko's code adds a grey level before the logarithm and cuts off the fraction afterwards.
    assert (found.int() - wanted.int()).abs().max() <= 4
    failed = macenko_fit(torch.full((1, 32, 32, 3), 255, dtype=torch.uint8))
    with pytest.raises(BadValueError, match="none that failed"):
        StainTarget.fitted(failed, target)


def test_empty_batches_and_tiny_pictures():
    pipeline = Compose([Affine(), StainJitter(), GaussianBlur()])
    assert pipeline(torch.zeros(0, 8, 8, 3, dtype=torch.uint8)).shape == (0, 8, 8, 3)
    for size in ((1, 1), (1, 63), (63, 1)):
        for step in STEPS:
            assert Compose([step])(torch.zeros(2, *size, 3, dtype=torch.uint8)).shape == (2, *size, 3)


@pytest.mark.parametrize(
    ("make", "kind", "says"),
    [
        (lambda: Rotate((5, 1)), BadValueError, "degrees of Rotate"),
        (lambda: Rotate("far"), BadValueError, "number or a range"),
        (lambda: Rotate(interpolation="linear"), UnknownNameError, "bilinear"),
        (lambda: Rotate(border="mirror"), UnknownNameError, "border"),
        (lambda: Rotate(fill=300), BadValueError, "0..255"),
        (lambda: Rotate(fill=255), BadValueError, "border='constant'"),
        (lambda: Mirror(1.5), BadValueError, "up to 1"),
        (lambda: Gamma((0, 1)), BadValueError, "gamma"),
        (lambda: Gamma(float("nan")), BadValueError, "gamma"),
        (lambda: GaussianBlur((0, 9)), BadValueError, "up to 8"),
        (lambda: Contrast(about="median"), BadValueError, "mean"),
        (lambda: Resize(), BadValueError, "one of them"),
        (lambda: Resize(0), BadValueError, "size of Resize"),
        (lambda: Compose([Normalize(0.5, 0.0)]), BadValueError, "std above 0"),
        (lambda: Compose([Normalize(0.5, 0.2), Gamma()]), BadValueError, "before"),
        (lambda: Compose([OneOf([Normalize(0.5, 0.2), Gamma()])]), BadValueError, "chance"),
        (lambda: Compose(["flip"]), BadValueError, "transforms of dhlab.augment"),
        (lambda: OneOf([]), BadValueError, "no steps"),
        (lambda: OneOf([Flip()], weights=(1, 2)), BadValueError, "weights"),
        (lambda: StainTarget(HE, ()), BadValueError, "targets"),
        (lambda: StainTarget((HE[0], HE[0]), (HE,)), BadValueError, "twice"),
        (lambda: from_dict({"transform": "Rotatee"}), UnknownNameError, "Rotate"),
        (lambda: from_dict({"transform": "Rotate", "degree": 3}), UnknownNameError, "degrees"),
        (lambda: from_dict([]), BadValueError, "describes no transform"),
    ],
)
def test_refuses_ranges_that_make_no_sense(make, kind, says):
    with pytest.raises(kind, match=says):
        make()


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([Transpose()], "for some samples only"),
        ([RandomCrop(50)], "too small"),
        ([OneOf([CenterCrop(10), CenterCrop(12)])], "one size"),
        ([OneOf([RandomResizedCrop(16), RandomResizedCrop(16, interpolation="bicubic")])], "make them alike"),
        ([CenterCrop(10, p=0.5)], "for some samples only"),
    ],
)
def test_refuses_sizes_left_to_chance(steps, says):
    images, _ = paint(2, (40, 30))
    with pytest.raises(BadShapeError, match=says):
        Compose(steps)(images)


def test_refuses_what_is_no_batch_of_rgb():
    images, masks = paint(2)
    pipeline = Compose([Mirror()])
    for bad in (images.float(), images[..., :2], images[0]):
        with pytest.raises(BadShapeError):
            pipeline(bad)
    with pytest.raises(BadShapeError, match="an index for each"):
        pipeline(images, indices=[1])
    with pytest.raises(BadShapeError, match="masks"):
        pipeline(images, masks[:, :20])


@pytest.mark.gpu
def test_the_same_on_a_gpu():
    images, masks = paint(4)
    for step in STEPS:
        pipeline = Compose([Mirror(), step])
        here, moved = pipeline(images, masks, seed=3)
        there, these = pipeline(images.cuda(), masks.cuda(), seed=3)
        # A rounding apart; noise, which is the same by its counters, may round apart once more.
        assert (here.int() - there.cpu().int()).abs().max() <= 2, step
        assert torch.equal(these.cpu(), moved)


def test_shows_itself():
    pipeline = Compose([OneOf([Rotate((-5, 5)), Elastic()], p=0.5), StainJitter()])
    assert repr(pipeline) == "Compose([OneOf([Rotate(degrees=(-5.0, 5.0)), Elastic()], p=0.5), StainJitter()])"
    table = pipeline._repr_html_()
    assert table.count("<tr>") == 6
    assert "degrees (-5.0, 5.0)" in table
    sheet = pipeline.preview(paint(1)[0][0].numpy(), 5)
    assert sheet.size == (3 * 42 - 2, 2 * 42 - 2)


def test_every_transform_is_tried_here():
    tried = {type(step).__name__ for step in STEPS}
    others = {"CenterCrop", "ChannelShuffle", "Compose", "DivBy255", "Hue", "LaplaceNoise", "Normalize", "Pepper"}
    others |= {"PoissonNoise", "RandomCrop", "RandomResizedCrop", "Resize", "Salt", "SaltAndPepper", "Saturation"}
    others |= {"Perspective", "Rotate", "ScaleFromTo", "ScaleTo", "ToFloat32", "Transform", "Transpose"}
    names = {name for name in da.__all__ if isinstance(getattr(da, name), type)}
    assert names == tried | others


def test_stains_that_do_not_change_leave_every_colour_as_it_is():
    """Also colours that haematoxylin, eosin and DAB cannot mix, such as those of skin and of immunofluorescence."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, 18 * 18, 18, 3)
    same, cut = (np.asarray(Compose([StainJitter(0.0, 0.0, cut=cut)])(colours)) for cut in (False, True))
    np.testing.assert_array_equal(same, colours)
    assert np.abs(cut.astype(int) - colours).max() > 50
