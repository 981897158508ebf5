"""Stains against torchstain, stainx, scikit-image and plain PyTorch, on real haematoxylin and eosin if at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import Bench, Peer

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import torch

TESTS = ["tests/kernels/test_stain.py"]
BATCHES = ((256, 16), (512, 4), (1024, 1))


def measure(bench: Bench) -> None:
    """Time fit and application per tile, to the same reference, bytes to bytes."""
    import torch

    torch.set_num_threads(bench.arguments.threads)
    reference = tiles(512, 1, seed=1)[0]
    for side, count in BATCHES:
        images = tiles(side, count, seed=0)
        _measure_macenko(bench, images, reference)
        _measure_reinhard(bench, images, reference)
    images = tiles(512, 4, seed=0)
    _measure_vahadane(bench, images[:1])
    _measure_separation(bench, images)


def tiles(side: int, count: int, *, seed: int) -> torch.Tensor:
    """Return ``(count, side, side, 3)`` bytes from the skin slide, or from two stains and noise where it is absent."""
    import numpy as np
    import torch

    import dhlab

    draw = np.random.default_rng(seed)
    try:
        scan = dhlab.sample("skin-slide")
    except dhlab.DHLabError:
        amounts = draw.gamma(1.0, 0.7, (count, side, side, 2))
        density = amounts @ dhlab.kernels.Stains.preset("macenko").matrix[0].double().numpy()
        return torch.from_numpy((240 * np.exp(-density)).astype(np.uint8))
    corners = [(int(draw.integers(900, 2900 - side)), int(draw.integers(800, 1900 - side))) for _ in range(count)]
    return torch.from_numpy(np.stack([scan.read(corner, (side, side)) for corner in corners]))


def _case(method: str, images: torch.Tensor) -> str:
    return f"{method} {len(images)} × {images.shape[1]}²"


def _agree(most: int, mean: float) -> Callable[[torch.Tensor, Any], None]:
    import torch

    def check(mine: torch.Tensor, theirs: Any) -> None:
        gap = (mine.int() - torch.stack([torch.as_tensor(t) for t in theirs]).int()).abs()
        assert gap.max() <= most, gap.max()
        assert gap.double().mean() <= mean, gap.double().mean()

    return check


def _measure_macenko(bench: Bench, images: torch.Tensor, reference: torch.Tensor) -> None:
    import torch

    from dhlab.kernels import macenko_fit, normalize_stain

    aim, out = macenko_fit(reference[None]), torch.empty_like(images)

    def torchstain_torch() -> Callable[[], Any]:
        import torchstain

        normalizer = torchstain.normalizers.MacenkoNormalizer(backend="torch")
        normalizer.fit(reference.movedim(-1, 0))
        planar = images.movedim(-1, 1).contiguous()
        return lambda: [normalizer.normalize(image, stains=False)[0] for image in planar]

    def torchstain_numpy() -> Callable[[], Any]:
        import torchstain

        normalizer = torchstain.normalizers.MacenkoNormalizer(backend="numpy")
        normalizer.fit(reference.numpy())
        arrays = images.numpy()
        return lambda: [normalizer.normalize(image, stains=False)[0] for image in arrays]

    def stainx() -> Callable[[], Any]:
        import stainx

        normalizer = stainx.Macenko(device="cpu", backend="torch", precision="stable")
        normalizer.fit(reference.movedim(-1, 0)[None])
        planar = images.movedim(-1, 1).contiguous()
        return lambda: normalizer.transform(planar)

    bench.compare(
        _case("Macenko", images),
        lambda: normalize_stain(images, aim, out=out),
        [
            Peer("torchstain torch", torchstain_torch, goal=25, package="torchstain", check=_agree(2, 0.02)),
            # Interpolated percentiles: a different definition.
            Peer("torchstain numpy", torchstain_numpy, goal=25, package="torchstain", check=_agree(6, 1.0)),
            Peer("stainx torch", stainx, goal=25, package="stainx"),
        ],
        work=images.numel() / 3e6,
        unit="Mpx/s",
    )


def _measure_reinhard(bench: Bench, images: torch.Tensor, reference: torch.Tensor) -> None:
    import torch

    from dhlab.kernels import normalize_stain, reinhard_fit

    aim, out = reinhard_fit(reference[None]), torch.empty_like(images)

    def stainx() -> Callable[[], Any]:
        import stainx

        normalizer = stainx.Reinhard(device="cpu", backend="torch")
        normalizer.fit(reference.movedim(-1, 0)[None])
        planar = images.movedim(-1, 1).contiguous()
        return lambda: normalizer.transform(planar)

    def torchstain() -> Callable[[], Any]:
        import torchstain

        normalizer = torchstain.normalizers.ReinhardNormalizer(backend="torch")
        normalizer.fit(reference.movedim(-1, 0))
        planar = images.movedim(-1, 1).contiguous()
        return lambda: [normalizer.normalize(image) for image in planar]

    bench.compare(
        _case("Reinhard", images),
        lambda: normalize_stain(images, aim, method="reinhard", out=out),
        [
            Peer("stainx torch", stainx, goal=10, package="stainx"),
            Peer("torchstain torch", torchstain, package="torchstain"),
        ],
        work=images.numel() / 3e6,
        unit="Mpx/s",
    )


def _measure_vahadane(bench: Bench, images: torch.Tensor) -> None:
    import torch

    from dhlab.kernels import Stains, vahadane_fit

    def plain() -> Callable[[], torch.Tensor]:
        return lambda: _learn_dictionary(images, Stains.preset("macenko").matrix[0])

    def agree(mine: Stains, theirs: torch.Tensor) -> None:
        torch.testing.assert_close(mine.matrix[0], theirs, rtol=0, atol=2e-3)

    bench.compare(
        _case("Vahadane, dictionary", images),
        lambda: vahadane_fit(images),
        [Peer("plain torch", plain, goal=20, package="torch", check=agree)],
        work=images.numel() / 3e6,
        unit="Mpx/s",
    )


def _learn_dictionary(images: torch.Tensor, stains: torch.Tensor) -> torch.Tensor:
    """Return the dictionary that amounts by iterated shrinkage lead to, as the usual packages find it."""
    import torch

    density = -torch.log((images.reshape(-1, 3).float() + 1) / 240)
    density = density[(density >= 0.15).all(-1)]
    stains = stains / stains.norm(dim=1, keepdim=True)
    amounts = torch.zeros(len(density), 2)
    for _ in range(100):
        products = stains @ stains.T
        step = 1 / float(torch.linalg.eigvalsh(products)[-1])
        aim = density @ stains.T - 0.1
        for _ in range(10):
            amounts = (amounts - step * (amounts @ products - aim)).clamp_min(0)
        before, squares, cross = stains, amounts.T @ amounts, amounts.T @ density
        for k in range(2):
            row = ((cross[k] - squares[0, 1] * stains[1 - k]) / squares[k, k]).clamp_min(0)
            stains = torch.where(torch.arange(2).view(2, 1) == k, row / row.norm(), stains)
        if float((stains - before).abs().max()) < 1e-5:
            break
    return stains if stains[0, 0] > stains[1, 0] else stains.flip(0)


def _measure_separation(bench: Bench, images: torch.Tensor) -> None:
    import math

    import numpy as np
    import torch

    from dhlab.kernels import combine_stains, separate_stains

    out = torch.empty(len(images), 3, *images.shape[1:3]).movedim(1, -1)
    amounts = separate_stains(images)
    light = torch.empty_like(out)

    def separating() -> Callable[[], Any]:
        from skimage.color import rgb2hed

        arrays = images.numpy()
        return lambda: rgb2hed(arrays)

    def combining() -> Callable[[], Any]:
        from skimage.color import hed2rgb

        arrays = (amounts / math.log(1e6)).contiguous().numpy()
        return lambda: hed2rgb(arrays)

    def agree(scale: float) -> Callable[[torch.Tensor, Any], None]:
        return lambda mine, theirs: np.testing.assert_allclose(mine.numpy(), theirs * scale, atol=5e-5)

    rate = {"work": images.numel() / 3e6, "unit": "Mpx/s"}
    peer = Peer("scikit-image", separating, goal=4, package="scikit-image", check=agree(math.log(1e6)))
    bench.compare(_case("separate", images), lambda: separate_stains(images, out=out), [peer], **rate)
    peer = Peer("scikit-image", combining, goal=4, package="scikit-image", check=agree(1))
    bench.compare(_case("combine", images), lambda: combine_stains(amounts, out=light), [peer], **rate)
