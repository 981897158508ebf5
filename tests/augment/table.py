"""Every augmentation of ECVL and every common one of torchvision beside dhlab's, run with the same fixed values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch

import dhlab.augment as da
from dhlab.augment import Compose, parse_augmentations
from dhlab.phantoms import paint_slide

README = Path(__file__).parents[2] / "dhlab" / "augment" / "README.md"
BATCH = 4
Pictures = np.ndarray


@dataclass(frozen=True)
class Row:
    """One line: what it is there, what it is here, and how far both are apart when run."""

    theirs: str
    ours: str
    run: Callable[[], float]
    bound: float
    unit: str = "grey levels"
    note: str = ""


@cache
def pictures(height: int = 96, width: int = 80) -> Pictures:
    return np.stack([paint_slide((height, width), rng=i, spacing=1.0, whole=True)[0] for i in range(BATCH)])


def apply(*steps: da.Transform, images: Pictures | None = None, seed: int = 3) -> Pictures:
    source = pictures() if images is None else images
    found = Compose(steps)(torch.from_numpy(source), seed=seed)
    return found.numpy() if found.dtype == torch.uint8 else found.permute(0, 2, 3, 1).numpy()


def apply_text(text: str, seed: int = 3) -> Pictures:
    found = parse_augmentations(text)(torch.from_numpy(pictures()), seed=seed)
    return found.numpy() if found.dtype == torch.uint8 else found.permute(0, 2, 3, 1).numpy()


def each(function: Callable[[Pictures], Pictures]) -> Pictures:
    return np.stack([function(p) for p in pictures()])


def apart(ours: Pictures, theirs: Pictures, *, margin: int = 0) -> float:
    """Return the largest difference, `margin` pixels at each edge left out."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    inner = slice(margin, -margin or None)
    return float(np.abs(ours[:, inner, inner].astype(float) - theirs[:, inner, inner].astype(float)).max())


def torchvision(function: Callable[[torch.Tensor], torch.Tensor]) -> Pictures:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(torch.from_numpy(pictures()).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


def saturated(values: Pictures) -> Pictures:
    return np.clip(np.trunc(values), 0, 255).astype(np.uint8)


def spread_apart(step: str | da.Transform, draw: Callable[[np.random.Generator, tuple[int, ...]], Pictures]) -> float:
    """Return how far mean and standard deviation of added noise are apart, in grey levels."""
    grey = np.full((BATCH, 128, 128, 3), 128, np.uint8)
    pipeline = parse_augmentations(step) if isinstance(step, str) else Compose(step)
    ours = pipeline(torch.from_numpy(grey), seed=1).numpy().astype(float) - 128
    theirs = draw(np.random.default_rng(0), grey.shape)
    return max(abs(ours.mean() - theirs.mean()), abs(ours.std() - theirs.std()))


def share_apart(step: str | da.Transform, value: int, share: float, *, side: int = 128) -> float:
    """Return how far the share of pixels of a value is from what it should be, in percent."""
    grey = np.full((64, side, side, 3), 128, np.uint8)
    pipeline = parse_augmentations(step) if isinstance(step, str) else Compose(step)
    ours = pipeline(torch.from_numpy(grey), seed=1).numpy()
    return 100 * abs(float((ours == value).all(-1).mean()) - share)


def remapped(pipeline: Compose, border: int) -> Pictures:
    """Sample with OpenCV where the plan says."""
    plan = pipeline.draw(torch.from_numpy(pictures()), seed=3)[0]
    height, width = plan.size
    field = np.zeros((BATCH, 2, 2, 2), np.float32) if plan.field is None else plan.field.numpy()
    found = []
    for matrix, nodes, picture in zip(plan.matrix.numpy(), field, pictures(), strict=True):
        y, x = np.mgrid[:height, :width].astype(np.float64)
        at = np.tensordot(matrix.astype(np.float64), np.stack([y, x, np.ones_like(y)]), 1)
        bent = [bilinear(n, height, width) for n in nodes]
        maps = [(at[i] / at[2] + bent[i]).astype(np.float32) for i in (1, 0)]
        found.append(cv2.remap(picture, *maps, cv2.INTER_LINEAR, borderMode=border))
    return np.stack(found)


def bilinear(nodes: Pictures, height: int, width: int) -> Pictures:
    from scipy.interpolate import RegularGridInterpolator

    axes = [np.linspace(0, n - 1, g) for n, g in zip((height, width), nodes.shape, strict=True)]
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    return RegularGridInterpolator(axes, nodes)(grid)


# ECVL (1.0.3). Its functions are those of OpenCV, or a few lines of arithmetic that are repeated here.


def rotate_ecvl() -> float:
    text = "AugRotate angle=[17,17] center=(30,40) scale=1.1"
    turn = cv2.getRotationMatrix2D((30, 40), -17, 1.1)
    return apart(apply_text(text), each(lambda p: cv2.warpAffine(p, turn, (80, 96), flags=cv2.INTER_LINEAR)))


def resize_ecvl(text: str, size: tuple[int, int], flag: int, margin: int = 0) -> float:
    return apart(apply_text(text), each(lambda p: cv2.resize(p, size, interpolation=flag)), margin=margin)


def blur_ecvl() -> float:
    # The window of ECVL for a standard deviation of 1.5: 7 pixels, edges replicated, cut to whole levels.
    size = int(((1.5 - 0.8) / 0.3 + 1) / 0.5 + 1)
    size += size % 2 == 0
    weights = np.exp(-((np.arange(size) - (size - 1) // 2) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()

    def along(picture: Pictures, axis: int) -> Pictures:
        shape = (len(weights), 1) if axis == 0 else (1, len(weights))
        return cv2.filter2D(picture.astype(float), -1, weights.reshape(shape), borderType=cv2.BORDER_REPLICATE)

    blurred = saturated(each(lambda p: along(along(p, 1), 0)))
    return apart(apply_text("AugGaussianBlur sigma=[1.5,1.5]"), blurred, margin=5)


def gamma_ecvl() -> float:
    return apart(apply_text("AugGammaContrast gamma=[0.7,0.7]"), saturated((pictures() / 255.0) ** 0.7 * 255))


def laplace_ecvl() -> float:
    return spread_apart(
        "AugAdditiveLaplaceNoise std_dev=[9,9]",
        lambda rng, shape: np.clip(np.round(rng.exponential(9, shape) - rng.exponential(9, shape)), -128, 127),
    )


def poisson_ecvl() -> float:
    # Without sign ECVL's noise brightens by its mean; with one, as in imgaug, whose method it is, it does not.
    return spread_apart(
        "AugAdditivePoissonNoise lambda=[7,7]",
        lambda rng, shape: rng.poisson(7, shape) * rng.choice((-1, 1), shape),
    )


def optical_ecvl() -> float:
    height, width = pictures().shape[1:3]
    camera = np.array([[width, 0, width / 2], [0, height, height / 2], [0, 0, 1]], np.float32)
    lens = np.array([0.3, 0.3, 0, 0, 0], np.float32)
    maps = cv2.initUndistortRectifyMap(camera, lens, None, None, (width, height), cv2.CV_32FC1)
    theirs = each(lambda p: cv2.remap(p, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))
    # ECVL's middle lies half a pixel further than that of the pixels.
    return apart(apply_text("AugOpticalDistortion distort_limit=[0.3,0.3] shift_limit=[0.5,0.5]"), theirs)


def grid_ecvl() -> float:
    text = 'AugGridDistortion num_steps=[4,4] distort_limit=[-0.2,0.2] border_type="reflect101"'
    return apart(apply_text(text), remapped(parse_augmentations(text), cv2.BORDER_REFLECT_101))


def elastic_ecvl() -> float:
    text = "AugElasticTransform alpha=[40,40] sigma=[4,4]"
    return apart(apply_text(text), remapped(parse_augmentations(text), cv2.BORDER_REFLECT_101))


def elastic_spread() -> float:
    """Return how far the spread of displacements is from ECVL's recipe, in percent."""
    plan = parse_augmentations("AugElasticTransform alpha=[40,40] sigma=[4,4]").draw(
        np.zeros((64, 96, 96, 3), np.uint8), seed=1
    )[0]
    assert plan.field is not None
    rng = np.random.default_rng(0)
    noise = rng.uniform(-1, 1, (64, 96, 96)).astype(np.float32)
    theirs = [40 * cv2.GaussianBlur(n, (17, 17), 4)[12:-12, 12:-12] for n in noise]
    return 100 * abs(float(plan.field[:, :, 3:-3, 3:-3].std()) / float(np.std(theirs)) - 1)


def normalize_ecvl() -> float:
    text = """SequentialAugmentationContainer
        AugToFloat32 divisor=255
        AugNormalize mean=(0.6,0.5,0.6) std=(0.2,0.25,0.2)
    end"""
    return apart(apply_text(text), (pictures() / 255 - (0.6, 0.5, 0.6)) / (0.2, 0.25, 0.2))


def scale_to_ecvl() -> float:
    low, high = (f(pictures().reshape(BATCH, -1), 1)[:, None, None, None] for f in (np.min, np.max))
    factor = (200 - 20) / (high.astype(float) - low)
    return apart(apply_text("AugScaleTo new_min=20 new_max=200"), saturated(pictures() * factor + 200 - factor * high))


def scale_from_to_ecvl() -> float:
    theirs = saturated((pictures() - 10.0) * (180 / 230) + 20)
    return apart(apply_text("AugScaleFromTo old_min=10 old_max=240 new_min=20 new_max=200"), theirs)


def crop_apart(text: str) -> float:
    """Return 0 if each result is a part of its picture."""
    result = apply_text(text)
    height, width = result.shape[1:3]
    for part, picture in zip(result, pictures(), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(picture, (height, width), axis=(0, 1)).transpose(
            0, 1, 3, 4, 2
        )
        if not (windows == part).all((2, 3, 4)).any():
            return 255.0
    return 0.0


ECVL = [
    Row("AugRotate", "Rotate", rotate_ecvl, 2, note="OpenCV 4 weights in steps of 1/32"),
    Row(
        "AugResizeDim",
        "Resize(size)",
        lambda: resize_ecvl("AugResizeDim dims=(100,64)", (100, 64), cv2.INTER_LINEAR),
        1,
    ),
    Row(
        'AugResizeDim interp="cubic"',
        'Resize(size, interpolation="bicubic")',
        lambda: resize_ecvl('AugResizeDim dims=(100,64) interp="cubic"', (100, 64), cv2.INTER_CUBIC),
        1,
    ),
    Row(
        'AugResizeDim interp="area"',
        "Resize(size, antialias=True)",
        lambda: resize_ecvl('AugResizeDim dims=(40,48) interp="area"', (40, 48), cv2.INTER_AREA),
        1,
        note="whole factors; others are averaged at evenly spread places",
    ),
    Row(
        "AugResizeScale",
        "Resize(scale=…)",
        lambda: resize_ecvl("AugResizeScale scale=(1.5,1.25)", (120, 120), cv2.INTER_LINEAR),
        1,
    ),
    Row("AugFlip", "Flip", lambda: apart(apply_text("AugFlip p=1"), each(lambda p: cv2.flip(p, 0))), 0),
    Row("AugMirror", "Mirror", lambda: apart(apply_text("AugMirror p=1"), each(lambda p: cv2.flip(p, 1))), 0),
    Row("AugTranspose", "Transpose", lambda: apart(apply_text("AugTranspose p=1"), each(cv2.transpose)), 0),
    Row(
        "AugGaussianBlur",
        "GaussianBlur",
        blur_ecvl,
        4,
        note="away from edges; ECVL cuts off fractions, and its window at the second decimal",
    ),
    Row("AugAdditiveLaplaceNoise", "LaplaceNoise", laplace_ecvl, 0.2, note="mean and spread"),
    Row("AugAdditivePoissonNoise", "PoissonNoise", poisson_ecvl, 0.2, note="mean and spread; with a random sign"),
    Row("AugGammaContrast", "Gamma", gamma_ecvl, 1, note="ECVL cuts off fractions"),
    Row(
        "AugBrightness",
        "Brightness(shift=…)",
        lambda: apart(apply_text("AugBrightness beta=[30,30]"), saturated(pictures() + 30.0)),
        0,
    ),
    Row(
        "AugCoarseDropout",
        "CoarseDropout",
        lambda: share_apart("AugCoarseDropout p=[0.2,0.2] drop_size=[0.1,0.1] per_channel=0", 0, 0.2),
        1,
        "% of pixels",
    ),
    Row("AugGridDistortion", "GridDistortion", grid_ecvl, 2, note="sampled by OpenCV at the same places"),
    Row("AugElasticTransform", "Elastic", elastic_ecvl, 2, note="sampled by OpenCV at the same places"),
    Row("AugElasticTransform", "Elastic", elastic_spread, 5, "%", note="spread of displacements"),
    Row("AugOpticalDistortion", "OpticalDistortion", optical_ecvl, 2),
    Row("AugSalt", "Salt", lambda: share_apart("AugSalt p=[0.1,0.1] per_channel=0", 255, 0.1), 0.2, "% of pixels"),
    Row("AugPepper", "Pepper", lambda: share_apart("AugPepper p=[0.1,0.1] per_channel=0", 0, 0.1), 0.2, "% of pixels"),
    Row(
        "AugSaltAndPepper",
        "SaltAndPepper",
        lambda: share_apart("AugSaltAndPepper p=[0.1,0.1] per_channel=0", 255, 0.05),
        0.2,
        "% of pixels",
    ),
    Row("AugNormalize", "Normalize", normalize_ecvl, 1e-5, "of a standard deviation"),
    Row(
        "AugCenterCrop",
        "CenterCrop",
        lambda: apart(apply_text("AugCenterCrop size=(50,61)"), pictures()[:, 17:78, 15:65]),
        0,
    ),
    Row("AugRandomCrop", "RandomCrop", lambda: crop_apart("AugRandomCrop size=(50,61)"), 0),
    Row(
        "AugToFloat32",
        "ToFloat32",
        lambda: apart(apply_text("AugToFloat32 divisor=3"), pictures() / 3),
        1e-4,
    ),
    Row("AugDivBy255", "DivBy255", lambda: apart(apply_text("AugDivBy255"), pictures() / 255), 1e-6, "of 1"),
    Row("AugScaleTo", "ScaleTo", scale_to_ecvl, 1, note="ECVL cuts off fractions"),
    Row("AugScaleFromTo", "ScaleFromTo", scale_from_to_ecvl, 1, note="ECVL cuts off fractions"),
    Row(
        "SequentialAugmentationContainer",
        "Compose",
        lambda: apart(
            apply_text("SequentialAugmentationContainer\nAugFlip p=1\nAugMirror p=1\nend"), pictures()[:, ::-1, ::-1]
        ),
        0,
    ),
    Row(
        "OneOfAugmentationContainer",
        "OneOf",
        lambda: share_apart(
            "OneOfAugmentationContainer p=1\nAugBrightness beta=[127,127]\nAugBrightness beta=[-128,-128]\nend",
            255,
            0.5,
        ),
        15,
        "% of 64 samples",
    ),
]

# torchvision (transforms.v2).


def functional() -> object:
    from torchvision.transforms.v2 import functional as found

    return found


def affine_torchvision() -> float:
    f = functional()
    ours = apply(da.Affine((-20, -20), (0.125, 0.125), (0.9, 0.9), (5, 5), (8, 8), border="constant"))
    return apart(
        ours,
        torchvision(
            lambda x: f.affine(
                x,
                20,
                [10, 12],
                0.9,
                [8, 5],
                interpolation=f.InterpolationMode.BILINEAR,
            )
        ),
        margin=0,
    )


def perspective_torchvision() -> float:
    f = functional()
    pipeline = Compose([da.Perspective(0.4, p=1.0)])
    matrices = pipeline.draw(torch.from_numpy(pictures()), seed=3)[0].matrix.double()
    corners = [[0, 0], [79, 0], [79, 95], [0, 95]]
    starts = [[x + 0.5, y + 0.5] for x, y in corners]
    theirs = []
    for matrix, picture in zip(matrices, pictures(), strict=True):
        back = torch.linalg.inv(matrix)
        moved = [back @ torch.tensor([y, x, 1.0], dtype=torch.float64) for x, y in corners]
        # torchvision counts from the corner of a pixel when it samples, so its points move by half a pixel.
        ends = [[float(m[1] / m[2]) + 0.5, float(m[0] / m[2]) + 0.5] for m in moved]
        tensor = torch.from_numpy(picture).permute(2, 0, 1)
        theirs.append(f.perspective(tensor, starts, ends, interpolation=f.InterpolationMode.BILINEAR).permute(1, 2, 0))
    # torchvision blends its mask of what lies inside, so a line of pixels along the edge of the picture differs.
    inside = [np.asarray((t > 0).all(-1)) for t in theirs]
    eroded = np.stack([cv2.erode(m.astype(np.uint8), np.ones((7, 7))) for m in inside])[..., None]
    return apart(apply(da.Perspective(0.4, p=1.0)) * eroded, np.stack([t.numpy() for t in theirs]) * eroded)


def elastic_torchvision() -> float:
    return apart(
        apply(da.Elastic((30, 30), (4, 4))), remapped(Compose([da.Elastic((30, 30), (4, 4))]), cv2.BORDER_REFLECT_101)
    )


def jitter_torchvision() -> float:
    f = functional()
    ours = apply(da.ColourJitter((0.9, 0.9), (0.9, 0.9), (1.2, 1.2), (0, 0), about="mean"))
    return apart(
        ours, torchvision(lambda x: f.adjust_saturation(f.adjust_contrast(f.adjust_brightness(x, 0.9), 0.9), 1.2))
    )


def hue_torchvision() -> float:
    """Return how far grey levels are apart: the turns themselves are of different kinds."""
    ours, weights = apply(da.Hue((0.02, 0.02))), np.array([0.299, 0.587, 0.114])
    return float(np.abs((ours - pictures().astype(float)) @ weights).max())


def resized_crop_torchvision() -> float:
    f = functional()
    step = da.RandomResizedCrop((64, 64), (0.3, 0.3), (1.0, 1.0), antialias=False)
    plan = Compose([step]).draw(torch.from_numpy(pictures()), seed=3)[0]
    side = round(math.sqrt(0.3 * 96 * 80))
    theirs = []
    for matrix, picture in zip(plan.matrix.numpy(), pictures(), strict=True):
        top, left = (round(float(matrix[i, 2] - (side / 64 - 1) / 2)) for i in (0, 1))
        tensor = torch.from_numpy(picture).permute(2, 0, 1)
        theirs.append(f.resized_crop(tensor, top, left, side, side, [64, 64], antialias=False).permute(1, 2, 0).numpy())
    return apart(apply(step), np.stack(theirs), margin=1)


def erasing_torchvision() -> float:
    ours = apply(da.RandomErasing((0.1, 0.1), (1.0, 1.0), p=1.0))
    kept = (ours == pictures()).all(-1) | (ours == 0).all(-1)
    return 255.0 if not kept.all() else 100 * abs(float((ours == 0).all(-1).mean()) - 0.1)


def normalize_torchvision() -> float:
    f = functional()
    mean, std = [0.6, 0.5, 0.6], [0.2, 0.25, 0.2]
    theirs = torchvision(lambda x: f.normalize(f.to_dtype(x, torch.float32, scale=True), mean, std))
    return apart(apply(da.Normalize(tuple(mean), tuple(std))), theirs)


def noise_torchvision() -> float:
    return spread_apart(da.GaussianNoise((0.05, 0.05)), lambda rng, shape: np.round(rng.normal(0, 0.05 * 255, shape)))


def stretched(step: da.Transform, function: str, *arguments: float, **options: object) -> float:
    return apart(apply(step), torchvision(lambda x: getattr(functional(), function)(x, *arguments, **options)))


def smooth() -> dict[str, object]:
    return {"interpolation": functional().InterpolationMode.BILINEAR}


TORCHVISION = [
    Row("RandomHorizontalFlip", "Mirror", lambda: stretched(da.Mirror(1.0), "hflip"), 0),
    Row("RandomVerticalFlip", "Flip", lambda: stretched(da.Flip(1.0), "vflip"), 0),
    Row(
        "RandomRotation",
        "Rotate",
        lambda: stretched(da.Rotate((25, 25), border="constant"), "rotate", 25, **smooth()),
        1,
        note='border="constant"',
    ),
    Row(
        "RandomAffine",
        "Affine",
        affine_torchvision,
        1,
        note='border="constant"; torchvision moves by whole pixels and turns clockwise',
    ),
    Row("RandomPerspective", "Perspective", perspective_torchvision, 2, note="inside the picture"),
    Row("ElasticTransform", "Elastic", elastic_torchvision, 2, note="sampled by OpenCV at the same places"),
    Row(
        "Resize",
        "Resize",
        lambda: apart(
            apply(da.Resize((64, 100), antialias=False)),
            torchvision(lambda x: functional().resize(x, [64, 100], antialias=False)),
        ),
        1,
    ),
    Row(
        "Resize(antialias=True)",
        "Resize(antialias=True)",
        lambda: apart(
            apply(da.Resize((32, 40))), torchvision(lambda x: functional().resize(x, [32, 40], antialias=True))
        ),
        40,
        note="torchvision weights by a triangle twice as wide",
    ),
    Row("CenterCrop", "CenterCrop", lambda: apart(apply(da.CenterCrop(50)), pictures()[:, 23:73, 15:65]), 0),
    Row("RandomCrop", "RandomCrop", lambda: crop_apart("AugRandomCrop size=(50,61)"), 0),
    Row("RandomResizedCrop", "RandomResizedCrop", resized_crop_torchvision, 1, note="but for a pixel along the edge"),
    Row("Pad", 'CenterCrop(larger, border="constant")', lambda: pad_torchvision(), 0),
    Row(
        "ColorJitter",
        'ColourJitter(about="mean")',
        jitter_torchvision,
        3,
        note="torchvision rounds and clips three times",
    ),
    Row(
        "adjust_brightness",
        "Brightness",
        lambda: stretched(da.Brightness((1.2, 1.2)), "adjust_brightness", 1.2),
        1,
    ),
    Row(
        "adjust_contrast",
        'Contrast(about="mean")',
        lambda: stretched(da.Contrast((1.3, 1.3), "mean"), "adjust_contrast", 1.3),
        2,
        note="torchvision rounds its mean of greys",
    ),
    Row("adjust_saturation", "Saturation", lambda: stretched(da.Saturation((1.4, 1.4)), "adjust_saturation", 1.4), 2),
    Row(
        "adjust_hue",
        "Hue",
        hue_torchvision,
        2,
        note="change of grey: Hue turns in YIQ and keeps it, torchvision in HSV",
    ),
    Row(
        "RandomGrayscale",
        "Greyscale",
        lambda: stretched(da.Greyscale(1.0), "rgb_to_grayscale", num_output_channels=3),
        1,
    ),
    Row("adjust_gamma", "Gamma", lambda: stretched(da.Gamma((0.7, 0.7)), "adjust_gamma", 0.7), 1),
    Row("RandomInvert", "Invert", lambda: stretched(da.Invert(1.0), "invert"), 0),
    Row("RandomSolarize", "Solarize", lambda: stretched(da.Solarize((150, 150), p=1.0), "solarize", threshold=150), 0),
    Row("RandomPosterize", "Posterize", lambda: stretched(da.Posterize(3, p=1.0), "posterize", bits=3), 0),
    Row("RandomAutocontrast", "AutoContrast", lambda: stretched(da.AutoContrast(1.0), "autocontrast"), 1),
    Row("RandomEqualize", "Equalize", lambda: stretched(da.Equalize(1.0), "equalize"), 0),
    Row(
        "GaussianBlur",
        "GaussianBlur",
        lambda: stretched(da.GaussianBlur((1.5, 1.5)), "gaussian_blur", kernel_size=[11, 11], sigma=[1.5, 1.5]),
        1,
    ),
    Row(
        "RandomAdjustSharpness",
        "Sharpen",
        lambda: stretched(da.Sharpen((0.5, 0.5)), "adjust_sharpness", sharpness_factor=1.5),
        60,
        note="torchvision blurs with a window of 3, here a Gaussian of standard deviation 1",
    ),
    Row("GaussianNoise", "GaussianNoise", noise_torchvision, 0.3, note="mean and spread"),
    Row("RandomErasing", "RandomErasing", erasing_torchvision, 1, "% of pixels"),
    Row(
        "RandomChannelPermutation",
        "ChannelShuffle",
        lambda: apart(np.sort(apply(da.ChannelShuffle(p=1.0)), -1), np.sort(pictures(), -1)),
        0,
    ),
    Row(
        "ToDtype(float32, scale=True)", "DivBy255", lambda: apart(apply(da.DivBy255()), pictures() / 255), 1e-6, "of 1"
    ),
    Row("Normalize", "Normalize", normalize_torchvision, 1e-5, "of a standard deviation"),
    Row(
        "RandomChoice",
        "OneOf",
        lambda: share_apart(da.OneOf((da.Brightness((0, 0)), da.Brightness((1, 1))), weights=(3, 1)), 0, 0.75),
        15,
        "% of 64 samples",
    ),
    Row(
        "RandomApply",
        "Compose(p=…)",
        lambda: share_apart(Compose((da.Brightness((0, 0)),), p=0.75), 0, 0.75),
        15,
        "% of 64 samples",
    ),
]


def pad_torchvision() -> float:
    theirs = torchvision(lambda x: functional().pad(x, [10, 2], fill=0))
    return apart(apply(da.CenterCrop((100, 100), border="constant")), theirs)


def hed_scikit() -> float:
    from skimage.color import hed2rgb, rgb2hed

    ours = apply(da.StainJitter((0.1, 0.1), (0.01, 0.01), cut=True))
    theirs = np.stack([hed2rgb(rgb2hed(p) * 1.1 + 0.01) for p in pictures()]) * 255
    return apart(ours, theirs)


STAIN = [Row("scikit-image `hed2rgb(rgb2hed(x) · a + b)`", "StainJitter(cut=True)", hed_scikit, 1)]
SECTIONS = {
    "ECVL 1.0.3": ECVL,
    "torchvision 0.28, transforms.v2": TORCHVISION,
    "Stain": STAIN,
}
HEAD = """# Augmentations beside those of ECVL and torchvision

Written by `python tests/augment/write_table.py`, which runs each line: both on the same pictures with the same fixed
values. The difference is the largest over all pixels; 255 grey levels are black to white. A text in ECVL's language is
read by `parse_augmentations`, and masks never blend.

Not here: whatever joins samples (MixUp, CutMix), draws a policy (AutoAugment, RandAugment, TrivialAugmentWide, AugMix)
or compresses (JPEG).
"""


def text() -> str:
    """Return the table as Markdown."""
    parts = [HEAD]
    for title, rows in SECTIONS.items():
        parts.append(f"## {title}\n\n| there | `dhlab.augment` | differs by at most | |\n| --- | --- | --- | --- |")
        for row in rows:
            there = row.theirs if "`" in row.theirs else f"`{row.theirs}`"
            differs = f"{row.bound:g} {row.unit}" if row.bound else "nothing"
            parts.append(f"| {there} | `{row.ours}` | {differs} | {row.note} |")
        parts.append("")
    return "\n".join(parts).rstrip("\n") + "\n"
