"""Labelling and measuring nuclei: a mosaic of real masks, 2048², beside the libraries that people take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Bench, Peer

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

TESTS = ["tests/kernels/test_objects.py"]
SIDE = 2048


def measure(bench: Bench) -> None:
    """Time 8-connected labelling, then area, centroid, box and mean intensity of three channels."""
    import numpy as np

    from dhlab.kernels import connected_components, measure_objects

    mask, image = nuclei()
    labels, count = connected_components(mask)
    print(f"{count:,} objects on {float(mask.float().mean()):.0%} of {SIDE}²")
    rate = {"work": SIDE**2 / 1e6, "unit": "Mpx/s"}
    picture, numbers = image.movedim(0, -1).numpy(), labels.numpy()

    def scikit_labels() -> Callable[[], Any]:
        from skimage.measure import label

        return lambda: label(mask.numpy(), connectivity=2)

    def scipy_labels() -> Callable[[], Any]:
        from scipy.ndimage import label

        return lambda: label(mask.numpy(), np.ones((3, 3)))[0]

    def cc3d_labels() -> Callable[[], Any]:
        import cc3d

        return lambda: cc3d.connected_components(mask.numpy(), connectivity=8)

    def scikit_table() -> Callable[[], Any]:
        from skimage.measure import regionprops_table

        return lambda: regionprops_table(numbers, picture, properties=("area", "centroid", "bbox", "intensity_mean"))

    def scipy_table() -> Callable[[], Any]:
        from scipy import ndimage

        index, ones = np.arange(1, count + 1), np.ones((SIDE, SIDE), np.uint8)

        def run() -> dict[str, Any]:
            means = [ndimage.mean(picture[..., channel], numbers, index) for channel in range(3)]
            return {
                "area": ndimage.sum_labels(ones, numbers, index),
                "centroid": ndimage.center_of_mass(ones, numbers, index),
                "box": ndimage.find_objects(numbers),
                "intensity_mean-0": means[0],
                "means": means,
            }

        return run

    def counted_table() -> Callable[[], Any]:
        from scipy.ndimage import find_objects

        def run() -> dict[str, Any]:
            places = np.flatnonzero(numbers)
            of, (rows, columns) = numbers.ravel()[places] - 1, np.divmod(places, SIDE)
            area, pixels = np.bincount(of), picture.reshape(-1, 3)[places]
            means = [np.bincount(of, pixels[:, channel]) / area for channel in range(3)]
            centroid = np.bincount(of, rows) / area, np.bincount(of, columns) / area
            box = find_objects(numbers)
            return {"area": area, "centroid": centroid, "box": box, "intensity_mean-0": means[0], "means": means}

        return run

    def cc3d_table() -> Callable[[], Any]:
        import cc3d

        return lambda: cc3d.statistics(numbers.astype(np.uint32), no_slice_conversion=True)

    def same_count(mine: Any, theirs: Any) -> None:
        assert mine[1] == theirs.max()

    def same_table(mine: Any, theirs: Any) -> None:
        np.testing.assert_array_equal(mine.area, theirs["area"])
        np.testing.assert_allclose(mine.mean[:, 0], theirs["intensity_mean-0"])

    bench.compare(
        f"label {count:,} nuclei in {SIDE}² (ours is OpenCV)",
        lambda: connected_components(mask),
        [
            Peer("scikit-image", scikit_labels, package="scikit-image", check=same_count),
            Peer("scipy", scipy_labels, package="scipy", check=same_count),
            Peer("cc3d", cc3d_labels, package="connected-components-3d", check=same_count),
        ],
        **rate,
    )
    bench.compare(
        f"measure {count:,} nuclei in {SIDE}², 3 channels",
        lambda: measure_objects(labels, image),
        [
            Peer("scikit-image", scikit_table, goal=1.5, package="scikit-image", check=same_table),
            Peer("scipy", scipy_table, goal=1.5, package="scipy", check=same_table),
            Peer("numpy bincount", counted_table, goal=1.5, package="numpy", check=same_table),
            Peer("cc3d, without intensities", cc3d_table, goal=1.5, package="connected-components-3d"),
        ],
        **rate,
    )


def nuclei() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a mask ``(H, W)`` and its picture ``(3, H, W)``: real ones side by side, or drawn ones where none are."""
    import cv2
    import numpy as np
    import torch

    folder = Path(__file__).resolve().parents[4] / "shared" / "data" / "histo-breast-tnbc-nuclei"
    mask, picture = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE, 3), np.uint8)
    paths = sorted((folder / "masks").glob("*.jpg"))
    if not paths:
        random = np.random.default_rng(0)
        picture[:] = random.integers(0, 256, picture.shape, dtype=np.uint8)
        for row, column in random.integers(0, SIDE, (2000, 2)).tolist():
            cv2.circle(mask, (column, row), 8, 1, -1)
    for place, path in enumerate(paths * 16):
        row, column = divmod(place, 4)
        if row == 4:
            break
        at = np.s_[512 * row : 512 * (row + 1), 512 * column : 512 * (column + 1)]
        mask[at] = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[:512, :512] > 127
        picture[at] = cv2.imread(str(folder / "images" / path.name))[:512, :512]
    return torch.from_numpy(mask), torch.from_numpy(picture).movedim(-1, 0)
