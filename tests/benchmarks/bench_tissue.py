"""Tissue on an overview of 2048 × 2048 px: ours beside the recipe of CLAM in OpenCV and its scikit-image form.

Agreement with a phantom's truth comes first: a fast mask that is wrong is worth nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from harness import Bench, Peer, main

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SIDE, SPACING, PIECE = 2048, 4.0, 400
GOAL_MS = 12.0
CLAM_GOAL, SKIMAGE_GOAL = 7.0, 100.0
OPEN_GOAL_MS = 60.0


def dice(mask: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    """Return the overlap of a mask with the truth."""
    found = mask > 0
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def clam(image: NDArray[np.uint8], threads: int) -> Callable[[], NDArray[np.uint8]]:
    """CLAM: saturation, median of 7 × 7, Otsu, closing of 4 × 4 (Lu et al., 2021)."""
    import cv2

    cv2.setNumThreads(threads)

    def run() -> NDArray[np.uint8]:
        saturation = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[:, :, 1]
        smooth = cv2.medianBlur(saturation, 7)
        _, mask = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        closed: NDArray[np.uint8] = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((4, 4), np.uint8))
        return closed

    return run


def scikit(image: NDArray[np.uint8]) -> Callable[[], NDArray[np.bool_]]:
    """Return the same recipe as written with scikit-image."""
    from skimage.color import rgb2hsv
    from skimage.filters import threshold_otsu
    from skimage.filters.rank import median
    from skimage.morphology import closing, footprint_rectangle

    def run() -> NDArray[np.bool_]:
        saturation = (rgb2hsv(image)[..., 1] * 255).astype(np.uint8)
        smooth = median(saturation, footprint_rectangle((7, 7)))
        closed: NDArray[np.bool_] = closing(smooth > threshold_otsu(smooth), footprint_rectangle((4, 4)))
        return closed

    return run


def measure(bench: Bench) -> None:
    """Time the mask alone on five kinds of slide, then the whole way from file to mask."""
    import cv2

    from dhlab import env, phantoms
    from dhlab.io import open as open_scan
    from dhlab.tissue import find_tissue, tissue_mask

    threads = bench.arguments.threads
    cv2.setNumThreads(threads)
    image, labels = phantoms.paint_slide((SIDE, SIDE), rng=3, spacing=SPACING)
    cases: dict[str, tuple[NDArray[np.uint8], NDArray[np.bool_]]] = {
        "H&E": (image, labels != phantoms.BACKGROUND),
        "pen marks": (phantoms.draw_pen(image, rng=1), labels != phantoms.BACKGROUND),
        "black rim": (phantoms.draw_rim(image), labels != phantoms.BACKGROUND),
    }
    for name, stain in (("pale", "pale"), ("IHC", "ihc")):
        picture, truth = phantoms.paint_slide((SIDE, SIDE), rng=3, spacing=SPACING, stain=stain)
        # Fat without dye is as bright as glass: not to be seen by anyone.
        cases[name] = (picture, ~np.isin(truth, (phantoms.BACKGROUND, phantoms.ADIPOSE)))
    picture = np.clip(np.random.default_rng(0).normal(243, 2, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
    for name, (picture_, truth_) in cases.items():
        ours = dice(tissue_mask(picture_, min_area=PIECE, max_hole=PIECE), truth_)
        assert ours > 0.85, f"{name}: Dice {ours:.3f} with the truth"
        theirs = dice(clam(picture_, threads)(), truth_)
        bench.record(f"Dice with truth, {name}", ours, theirs, peer_name="CLAM (OpenCV)", unit="Dice", better="more")
    kept, theirs = float((tissue_mask(picture) == 0).mean()), float((clam(picture, threads)() == 0).mean())
    bench.record(
        "share of an empty slide left empty", kept, theirs, peer_name="CLAM (OpenCV)", unit="share", better="more"
    )
    for name in ("H&E", "pen marks"):
        picture_, _ = cases[name]
        bench.compare(
            f"mask of {SIDE}² px, {name}",
            lambda p=picture_: tissue_mask(p, min_area=PIECE, max_hole=PIECE),
            [
                Peer(
                    "CLAM (OpenCV)",
                    lambda p=picture_: clam(p, threads),
                    goal=CLAM_GOAL,
                    package="opencv-python-headless",
                ),
                Peer("scikit-image", lambda p=picture_: scikit(p), goal=SKIMAGE_GOAL, package="scikit-image"),
            ],
        )
        best = min(row["ours"] for row in bench.rows if row["case"] == f"mask of {SIDE}² px, {name}")
        bench.record(f"mask of {SIDE}² px, {name}", best, GOAL_MS, peer_name="limit: 12 ms", unit="ms", goal=1.0)
    folder = env.data_folder()
    path = folder / "wsi-cmu1-small-region" / "CMU-1-Small-Region.svs" if folder else None
    if path is None or not path.is_file():
        print("  the real slide is not here (DHLAB_DATA): file to mask left out")
        return
    times = bench.compare("open the real slide, mask", lambda: find_tissue(open_scan(path)))
    bench.record(
        "open the real slide, mask",
        1e3 * times["dhlab"],
        OPEN_GOAL_MS,
        peer_name="limit: 60 ms",
        unit="ms",
        goal=1.0,
    )


if __name__ == "__main__":
    main("tissue", measure, tests=["tests/test_tissue.py"])
