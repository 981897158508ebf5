"""`filter_bank` against scikit-image, SciPy, OpenCV and kornia on a grey tile of a real slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness import Bench, Peer

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch

TESTS = ["tests/kernels/test_filters.py"]
SIDE, SIGMAS = 1024, (0.7, 1.6, 3.5, 8.0)


def measure(bench: Bench) -> None:
    """Time all features at four scales of one plane, and those of them that scikit-image has."""
    import numpy as np
    import torch

    import dhlab as dh
    from dhlab.kernels import filter_bank

    slide = dh.sample("skin-slide")
    y, x = (size // 2 for size in slide.levels[0].shape[:2])
    image = torch.from_numpy(slide.read((y, x), (SIDE, SIDE))[..., 1].copy())
    tile = image[None, None]
    plane = image.numpy()
    out = torch.empty(1, 7 * len(SIGMAS), SIDE, SIDE)

    def agree(mine: torch.Tensor, theirs: Any) -> None:
        for ours, other in zip(mine[0].numpy(), theirs, strict=True):
            np.testing.assert_allclose(ours, np.asarray(other), rtol=1e-3, atol=1e-4 * np.abs(ours).max() + 1e-3)

    bench.compare(
        f"all features, {len(SIGMAS)} scales, {SIDE}²",
        lambda: filter_bank(tile, sigmas=SIGMAS, channel_axis=1, out=out),
        [
            Peer("OpenCV", lambda: opencv(plane), goal=1.5, package="opencv-python-headless", check=agree),
            Peer("SciPy", lambda: scipy(plane), package="scipy", check=agree),
            Peer("kornia", lambda: kornia(tile), package="kornia", check=agree),
        ],
        work=SIDE**2 / 1e6,
        unit="Mpx/s",
    )
    some = ("gaussian", "gradient", "hessian")
    out = torch.empty(1, 4 * len(SIGMAS), SIDE, SIDE)
    bench.compare(
        f"scikit-image's features, {len(SIGMAS)} scales, {SIDE}²",
        lambda: filter_bank(tile, sigmas=SIGMAS, features=some, channel_axis=1, out=out),
        [Peer("scikit-image", lambda: scikit_image(plane), goal=10, package="scikit-image")],
        work=SIDE**2 / 1e6,
        unit="Mpx/s",
    )


def weights_of(sigma: float) -> list[np.ndarray]:
    """Return the whole float32 weights of the value, slope and bend."""
    import numpy as np

    from dhlab.kernels.filters import derivative_weights

    half = derivative_weights(sigma, 4.0).numpy()
    return [np.concatenate([sign * half[:0:-1, i], half[:, i]]).astype(np.float32) for i, sign in enumerate((1, -1, 1))]


def bank(correlate: Callable[..., Any], eigenvalues: Callable[..., list[Any]], length: Callable[..., Any]) -> list[Any]:
    """Return all features of an image by a library's own functions; ``correlate(image, down, across)``."""
    found = []
    for sigma in SIGMAS:
        value, slope, bend = weights_of(sigma)
        smooth = weights_of(sigma / 2)[0]
        x, y = correlate(None, value, slope), correlate(None, slope, value)
        xx, xy, yy = correlate(None, value, bend), correlate(None, slope, slope), correlate(None, bend, value)
        products = (correlate(product, smooth, smooth) for product in (x * x, x * y, y * y))
        found += [correlate(None, value, value), length(x, y), xx + yy]
        found += [*eigenvalues(*products), *eigenvalues(xx, xy, yy)]
    return found


def opencv(plane: np.ndarray) -> Callable[[], list[Any]]:
    """Return the pipeline of separable filters."""
    import cv2
    import numpy as np

    cv2.setNumThreads(1)

    def eigenvalues(xx: np.ndarray, xy: np.ndarray, yy: np.ndarray) -> list[np.ndarray]:
        middle, half = cv2.addWeighted(xx, 0.5, yy, 0.5, 0), cv2.addWeighted(xx, 0.5, yy, -0.5, 0)
        spread = cv2.magnitude(half, xy)
        return [cv2.add(middle, spread), cv2.subtract(middle, spread)]

    def run() -> list[Any]:
        image = plane.astype(np.float32)

        def correlate(source: np.ndarray | None, down: np.ndarray, across: np.ndarray) -> np.ndarray:
            source = image if source is None else source
            return cv2.sepFilter2D(source, cv2.CV_32F, across, down, borderType=cv2.BORDER_REPLICATE)

        return bank(correlate, eigenvalues, cv2.magnitude)

    return run


def scipy(plane: np.ndarray) -> Callable[[], list[Any]]:
    """Return `correlate1d` along both axes."""
    import numpy as np
    from scipy.ndimage import correlate1d

    def eigenvalues(xx: np.ndarray, xy: np.ndarray, yy: np.ndarray) -> list[np.ndarray]:
        middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
        return [middle + spread, middle - spread]

    def run() -> list[Any]:
        image = plane.astype(np.float32)

        def correlate(source: np.ndarray | None, down: np.ndarray, across: np.ndarray) -> np.ndarray:
            source = image if source is None else source
            return correlate1d(correlate1d(source, down, axis=0, mode="nearest"), across, axis=1, mode="nearest")

        return bank(correlate, eigenvalues, np.hypot)

    return run


def kornia(tile: torch.Tensor) -> Callable[[], list[Any]]:
    """Return kornia's separable filter."""
    import torch
    from kornia.filters import filter2d_separable

    def eigenvalues(xx: torch.Tensor, xy: torch.Tensor, yy: torch.Tensor) -> list[torch.Tensor]:
        middle, spread = (xx + yy) / 2, torch.hypot((xx - yy) / 2, xy)
        return [middle + spread, middle - spread]

    def run() -> list[Any]:
        image = tile.float()

        def correlate(source: torch.Tensor | None, down: np.ndarray, across: np.ndarray) -> torch.Tensor:
            source = image if source is None else source
            rows = (torch.from_numpy(weights)[None] for weights in (across, down))
            return filter2d_separable(source, *rows, border_type="replicate")

        return [feature[0, 0] for feature in bank(correlate, eigenvalues, torch.hypot)]

    return run


def scikit_image(plane: np.ndarray) -> Callable[[], Any]:
    """Return scikit-image's own features: Gaussian, Sobel gradient, eigenvalues of the Hessian."""
    from skimage.feature import multiscale_basic_features

    options = {"sigma_min": SIGMAS[0], "sigma_max": SIGMAS[-1], "num_sigma": len(SIGMAS), "workers": 1}
    return lambda: multiscale_basic_features(plane, **options)
