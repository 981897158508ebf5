"""`augment` against the pipelines in use, on tiles of a real slide, and from a slide's file to a batch.

Our contrast spreads about a fixed grey and our hue turns in YIQ: what is compared is the cost of the customary steps,
not their pixels. The stain case has one definition, scikit-image's, and there the results are compared too.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Bench, Peer

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch

TESTS = ["tests/kernels/test_augment.py"]
MEAN, STD, SIDE = (0.70, 0.55, 0.69), (0.2, 0.25, 0.18), 256
DARKEST = math.log(1e-6)
SHEAR, MOVE, SCALE, JITTER, HUE = 5, 0.1, (0.9, 1.1), 0.2, 0.05


def measure(bench: Bench) -> None:
    """Time stain jitter alone, the whole pipeline with and without it, and the way from a slide to a batch."""
    import torch

    warnings.filterwarnings("ignore")  # peers warn of their own deprecations
    torch.set_num_threads(bench.arguments.threads)
    images = tiles(32)
    measure_stain(bench, images)
    measure_pipeline(bench, images[:16])
    with tempfile.TemporaryDirectory() as folder:
        measure_slide(bench, Path(folder))


def tiles(count: int) -> torch.Tensor:
    """Return ``(count, 256, 256, 3)`` uint8 of tissue."""
    import torch

    import dhlab as dh

    slide = dh.sample("skin-slide")
    height, width = slide.levels[0].shape[:2]
    places = itertools.product(range(400, height - SIDE, SIDE), range(200, width - SIDE, SIDE))
    return torch.from_numpy(slide.read_many(list(itertools.islice(places, count)), (SIDE, SIDE)))


def measure_stain(bench: Bench, images: torch.Tensor) -> None:
    """Jitter haematoxylin, eosin and DAB, each sample its own way, and normalise."""
    import numpy as np
    import torch

    from dhlab.kernels import Plan, StainMap, augment

    batch = len(images)
    random = np.random.default_rng(1)
    strength = random.uniform(0.95, 1.05, (batch, 3)).astype(np.float32)
    shift = random.uniform(-0.02, 0.02, (batch, 3)).astype(np.float32)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    out = torch.empty(batch, 3, SIDE, SIDE)
    keys = torch.zeros(batch, dtype=torch.int64)
    unmix = torch.zeros(batch, 3, 4)
    unmix[..., :3] = torch.from_numpy(np.linalg.inv(stains).T) * (math.log(2) / DARKEST)
    mixing = torch.from_numpy(stains.T / (math.log(2) / DARKEST)).float()

    def ours() -> torch.Tensor:
        mix = torch.empty(batch, 3, 4)
        mix[..., :3] = mixing * torch.from_numpy(strength)[:, None]
        mix[..., 3] = torch.from_numpy(shift) @ mixing.T
        stain = StainMap(unmix, mix, torch.zeros(batch, 3))
        plan = Plan((SIDE, SIDE), torch.eye(3).repeat(batch, 1, 1), keys, stain=stain)
        return augment(images, plan, mean=MEAN, std=STD, out=out)

    def agree(mine: torch.Tensor, theirs: Any) -> None:
        np.testing.assert_allclose(mine.numpy(), np.asarray(theirs), atol=2e-4)

    jitter = {"strength": strength, "shift": shift, "stains": stains}
    bench.compare(
        f"stain jitter and normalise, {batch} × {SIDE}²",
        ours,
        [
            Peer("scikit-image", lambda: scikit_image(images.numpy(), **jitter), 25, "scikit-image", agree),
            Peer("torch eager", lambda: torch_eager(images, **jitter), 20, "torch", agree),
            Peer("OpenCV tables", lambda: opencv_tables(images.numpy(), **jitter), 4, "opencv-python-headless", agree),
            Peer("torch.compile, planar", lambda: torch_compiled(images, **jitter), 3, "torch", agree),
        ],
        work=batch * SIDE**2 / 1e6,
        unit="Mpx/s",
    )


def scikit_image(pictures: np.ndarray, *, strength: np.ndarray, shift: np.ndarray, stains: np.ndarray) -> Callable:
    """Return what the definition costs; it has the same stains built in."""
    import numpy as np
    from skimage.color import hed2rgb, rgb2hed

    def jitter(picture: np.ndarray, i: int) -> np.ndarray:
        light = hed2rgb(rgb2hed(picture) * strength[i] + shift[i])
        return ((light - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)

    return lambda: np.stack([jitter(picture, i) for i, picture in enumerate(pictures)])


def torch_eager(images: torch.Tensor, *, strength: np.ndarray, shift: np.ndarray, stains: np.ndarray) -> Callable:
    """Return the customary form: matrix products over the last axis."""
    import torch

    unmixing, mixing = torch.from_numpy(stains).inverse().float(), torch.from_numpy(stains).float()
    factor, term = (torch.from_numpy(values)[:, None, None] for values in (strength, shift))
    mean, std = torch.tensor(MEAN), torch.tensor(STD)

    def run() -> torch.Tensor:
        density = torch.log((images.float() / 255).clamp_min(1e-6)) / DARKEST
        amounts = (density @ unmixing).clamp_min(0) * factor + term
        light = torch.exp(amounts @ mixing * DARKEST).clamp(0, 1)
        return ((light - mean) / std).permute(0, 3, 1, 2).contiguous()

    return run


def torch_compiled(images: torch.Tensor, *, strength: np.ndarray, shift: np.ndarray, stains: np.ndarray) -> Callable:
    """Return a form written for the compiler: no matrix products, so that all of it becomes one loop."""
    import numpy as np
    import torch

    u, m = np.linalg.inv(stains).tolist(), stains.tolist()
    factor, term = (torch.from_numpy(values)[..., None, None] for values in (strength, shift))

    @torch.compile(fullgraph=True)
    def jitter(images: torch.Tensor, factor: torch.Tensor, term: torch.Tensor) -> torch.Tensor:
        d = [torch.log((images[..., c].float() * (1 / 255)).clamp_min(1e-6)) * (1 / DARKEST) for c in range(3)]
        amounts = [
            (d[0] * u[0][c] + d[1] * u[1][c] + d[2] * u[2][c]).clamp_min(0) * factor[:, c] + term[:, c]
            for c in range(3)
        ]
        light = [
            torch.exp((amounts[0] * m[0][c] + amounts[1] * m[1][c] + amounts[2] * m[2][c]) * DARKEST).clamp(0, 1)
            for c in range(3)
        ]
        return torch.stack([(light[c] - MEAN[c]) * (1 / STD[c]) for c in range(3)], 1)

    return lambda: jitter(images, factor, term)


def opencv_tables(pictures: np.ndarray, *, strength: np.ndarray, shift: np.ndarray, stains: np.ndarray) -> Callable:
    """Return OpenCV's fastest way: the logarithm by a table, matrices by `cv2.transform`."""
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    table = (np.log(np.maximum(np.arange(256) / 255, 1e-6)) / DARKEST).astype(np.float32)
    unmixing = np.linalg.inv(stains).T.astype(np.float32)
    out = np.empty((len(pictures), 3, SIDE, SIDE), np.float32)

    def run() -> np.ndarray:
        for i, picture in enumerate(pictures):
            amounts = np.maximum(cv2.transform(cv2.LUT(picture, table), unmixing), 0)
            mixing = (stains * strength[i][:, None]).T * DARKEST
            matrix = np.concatenate([mixing, (shift[i] @ stains * DARKEST)[:, None]], 1).astype(np.float32)
            light = np.minimum(cv2.exp(cv2.transform(amounts, matrix)), 1)
            for c in range(3):
                np.multiply(light[..., c] - MEAN[c], 1 / STD[c], out=out[i, c])
        return out

    return run


def our_pipeline(stain: bool) -> Any:
    """Return the steps that every peer below is given."""
    from dhlab.augment import Affine, ColourJitter, Compose, Flip, Mirror, StainJitter

    steps = [StainJitter((-0.05, 0.05), (-0.02, 0.02), cut=True)] if stain else []
    # The peers fill with black what the map brings in from beyond the border.
    affine = Affine((-180, 180), (-MOVE, MOVE), SCALE, shear_x=(-SHEAR, SHEAR), border="constant")
    factors = (1 - JITTER, 1 + JITTER)
    return Compose([Flip(), Mirror(), affine, *steps, ColourJitter(factors, factors, factors, (-HUE, HUE))])


def augmenter(stain: bool, out: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return ours: parameters drawn anew for every batch, one pass into memory that is reused."""
    from dhlab.kernels import augment

    pipeline, epochs = our_pipeline(stain), itertools.count()

    def run(images: torch.Tensor) -> torch.Tensor:
        (plan,) = pipeline.draw(images, seed=0, epoch=next(epochs))
        return augment(images, plan, mean=MEAN, std=STD, out=out)

    return run


def measure_pipeline(bench: Bench, images: torch.Tensor) -> None:
    """Flips, affine map, colour jitter and normalisation, each sample its own, with stain jitter and without."""
    import torch

    out = torch.empty(len(images), 3, SIDE, SIDE)
    goals = {True: (20, 15, 20), False: (30, 7, None)}
    for stain, name in ((True, "whole pipeline"), (False, "pipeline without stain")):
        ours = augmenter(stain, out)
        bench.compare(
            f"{name}, {len(images)} × {SIDE}²",
            lambda ours=ours: ours(images),
            [
                Peer(
                    "torchvision v2" + " + HED" * stain,
                    lambda stain=stain: loop(torchvision_pipeline(stain), images.movedim(-1, 1)),
                    goals[stain][0],
                    "torchvision",
                    plausible,
                ),
                Peer(
                    "albumentations" + " + HEStain" * stain,
                    lambda stain=stain: loop(albumentations_pipeline(stain), images.numpy()),
                    goals[stain][1],
                    "albumentations",
                    plausible,
                ),
                Peer(
                    "kornia" + " + HED" * stain,
                    lambda stain=stain: kornia(images, stain),
                    goals[stain][2],
                    "kornia",
                    plausible,
                ),
            ],
            work=len(images) * SIDE**2 / 1e6,
            unit="Mpx/s",
        )


def plausible(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    """Random numbers differ: demand the same kind of batch with colours of the same order."""
    assert mine.shape == theirs.shape
    assert theirs.dtype == mine.dtype
    assert (mine.mean((0, 2, 3)) - theirs.mean((0, 2, 3))).abs().max() < 1.5


def loop(transform: Callable[[Any], torch.Tensor], pictures: Any) -> Callable[[], torch.Tensor]:
    """Return one call per picture and a stack, as in a loader."""
    import torch

    return lambda: torch.stack([transform(picture) for picture in pictures])


def hed_jitter(images: torch.Tensor) -> torch.Tensor:
    """Jitter stains of ``(…, 3, H, W)`` uint8 as most repositories do."""
    import torch

    mixing = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    light = images.movedim(-3, -1).float() / 255
    amounts = (torch.log(light.clamp_min(1e-6)) / DARKEST @ mixing.inverse()).clamp_min(0)
    shape = (*light.shape[:-3], 1, 1, 3)
    amounts = amounts * (1 + (torch.rand(shape) * 2 - 1) * 0.05) + (torch.rand(shape) * 2 - 1) * 0.02
    light = (torch.exp(amounts @ mixing * DARKEST).clamp(0, 1) * 255).round().to(torch.uint8)
    return light.movedim(-1, -3)


def torchvision_pipeline(stain: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the steps for one ``(3, H, W)`` picture."""
    import torch
    from torchvision.transforms import v2

    bilinear = v2.InterpolationMode.BILINEAR
    return v2.Compose(
        [
            *([v2.Lambda(hed_jitter)] if stain else []),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomAffine(180, translate=(MOVE, MOVE), scale=SCALE, shear=SHEAR, interpolation=bilinear),
            v2.ColorJitter(JITTER, JITTER, JITTER, HUE),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def albumentations_pipeline(stain: bool) -> Callable[[np.ndarray], torch.Tensor]:
    """Return the steps for one ``(H, W, 3)`` picture."""
    import albumentations as A
    import cv2
    import torch

    cv2.setNumThreads(1)
    steps = A.Compose(
        [
            *([A.HEStain(method="preset", preset="ruifrok", p=1)] if stain else []),
            A.HorizontalFlip(),
            A.VerticalFlip(),
            A.Affine(rotate=(-180, 180), translate_percent=MOVE, scale=SCALE, shear=SHEAR, p=1),
            A.ColorJitter(JITTER, JITTER, JITTER, HUE, p=1),
            A.Normalize(MEAN, STD),
        ]
    )
    return lambda picture: torch.from_numpy(steps(image=picture)["image"].transpose(2, 0, 1))


def kornia(images: torch.Tensor, stain: bool) -> Callable[[], torch.Tensor]:
    """Return the steps for the whole batch at once."""
    import kornia.augmentation as K
    import torch

    steps = torch.nn.Sequential(
        K.RandomHorizontalFlip(),
        K.RandomVerticalFlip(),
        K.RandomAffine(180, translate=(MOVE, MOVE), scale=SCALE, shear=SHEAR, p=1.0),
        K.ColorJitter(JITTER, JITTER, JITTER, HUE, p=1.0),
        K.Normalize(MEAN, STD),
    )

    def run() -> torch.Tensor:
        planes = images.permute(0, 3, 1, 2).contiguous()
        return steps((hed_jitter(planes) if stain else planes).float().div_(255))

    return run


def measure_slide(bench: Bench, folder: Path) -> None:
    """From the file of a slide to augmented batches of 16 tiles, every tile once before any comes again."""
    import numpy as np
    import torch
    from bench_read import write_slide

    import dhlab as dh

    side, batch = 4096, 16
    path = write_slide(folder / "slide.svs", side)
    corners = [(y, x) for y in range(0, side, SIDE) for x in range(0, side, SIDE)]
    order = np.random.default_rng(3).permutation(corners).tolist()
    scan, out = dh.open(path), torch.empty(batch, 3, SIDE, SIDE)
    run, buffer = augmenter(True, out), np.empty((batch, SIDE, SIDE, 3), np.uint8)
    pixels, places = torch.from_numpy(buffer), itertools.cycle(parts(order, batch))

    def ours() -> torch.Tensor:
        scan.read_many(next(places), (SIDE, SIDE), out=buffer)
        return run(pixels)

    def with_openslide(transform: Callable[[np.ndarray], torch.Tensor]) -> Callable[[], torch.Tensor]:
        import openslide

        slide, mine = openslide.OpenSlide(path), itertools.cycle(parts(order, batch))

        def read(place: list[int]) -> np.ndarray:
            return np.asarray(slide.read_region((place[1], place[0]), 0, (SIDE, SIDE)).convert("RGB"))

        return lambda: torch.stack([transform(read(place)) for place in next(mine)])

    def torchvision() -> Callable[[], torch.Tensor]:
        steps = torchvision_pipeline(True)
        return with_openslide(lambda picture: steps(torch.from_numpy(picture).movedim(-1, 0)))

    bench.compare(
        "from SVS to augmented batch",
        ours,
        [
            Peer("OpenSlide, torchvision v2 + HED", torchvision, 12, "torchvision", plausible),
            Peer(
                "OpenSlide, albumentations + HEStain",
                lambda: with_openslide(albumentations_pipeline(True)),
                9,
                "albumentations",
                plausible,
            ),
        ],
        work=batch,
        unit="tiles/s",
    )


def parts(places: list[list[int]], size: int) -> list[list[list[int]]]:
    """Return consecutive lists of `size` places."""
    return [places[i : i + size] for i in range(0, len(places), size)]
