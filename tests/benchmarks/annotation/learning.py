"""Live learning beside scikit-image's trainable segmentation: the features, a correction, the whole slide."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from harness import Bench, Peer

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

TESTS = ["tests/learner", "tests/kernels/test_filters.py"]
SIDE, SIGMAS = 1024, (0.7, 1.6, 3.5, 8.0)
CORRECTIONS, CORRECTED_MS = 9, 1000
TILE = 512


def measure(bench: Bench) -> None:
    """Time features of a view in colour, a correction until the view is coloured anew, and the map of a slide."""
    import dhlab as dh

    slide = dh.sample("skin-slide")
    measure_features(bench, slide)
    measure_correction(bench, slide)
    measure_application(bench, slide)


def measure_features(bench: Bench, slide: Any) -> None:
    """Time all features of a view in colour."""
    import torch

    from dhlab.kernels import filter_bank

    y, x = (size // 2 - SIDE // 2 for size in slide.shape)
    image = slide.read((y, x), (SIDE, SIDE)).copy()
    tile, megapixels = torch.from_numpy(image)[None], SIDE**2 / 1e6
    out = torch.empty(1, 3 * 7 * len(SIGMAS), SIDE, SIDE)
    bench.compare(
        f"ilastik's features, {len(SIGMAS)} scales, RGB {SIDE}²",
        lambda: filter_bank(tile, sigmas=SIGMAS, out=out),
        [Peer("SciPy and scikit-image", lambda: ilastik(image), goal=10, package="scikit-image")],
        work=megapixels,
        unit="Mpx/s",
    )
    some = ("gaussian", "gradient", "hessian")
    fewer = torch.empty(1, 3 * 4 * len(SIGMAS), SIDE, SIDE)
    bench.compare(
        f"scikit-image's features, {len(SIGMAS)} scales, RGB {SIDE}²",
        lambda: filter_bank(tile, sigmas=SIGMAS, features=some, out=fewer),
        [Peer("scikit-image", lambda: basic(image, bench.arguments.threads), goal=10, package="scikit-image")],
        work=megapixels,
        unit="Mpx/s",
    )


def basic(image: np.ndarray, workers: int) -> Callable[[], Any]:
    """Return scikit-image's own features: Gaussian, Sobel gradient, eigenvalues of the Hessian."""
    from skimage.feature import multiscale_basic_features

    options = {"sigma_min": SIGMAS[0], "sigma_max": SIGMAS[-1], "num_sigma": len(SIGMAS), "workers": workers}
    return lambda: multiscale_basic_features(image, channel_axis=-1, **options)


def ilastik(image: np.ndarray) -> Callable[[], Any]:
    """Return ilastik's seven features of every channel as SciPy and scikit-image have them."""
    import numpy as np
    from scipy import ndimage
    from skimage.feature import hessian_matrix, hessian_matrix_eigvals, structure_tensor, structure_tensor_eigenvalues

    def run() -> list[np.ndarray]:
        found = []
        for channel in range(image.shape[2]):
            plane = image[..., channel].astype(np.float32)
            for sigma in SIGMAS:
                found += [
                    ndimage.gaussian_filter(plane, sigma),
                    ndimage.gaussian_gradient_magnitude(plane, sigma),
                    ndimage.gaussian_laplace(plane, sigma),
                    *structure_tensor_eigenvalues(structure_tensor(ndimage.gaussian_filter(plane, sigma), sigma / 2)),
                    *hessian_matrix_eigvals(hessian_matrix(plane, sigma, use_gaussian_derivatives=False)),
                ]
        return found

    return run


def measure_correction(bench: Bench, slide: Any) -> None:
    """Time from a stroke in the document until all tiles of the view show what was learned of it."""
    import tempfile
    from pathlib import Path

    import dhlab as dh
    from dhlab.view.viewer import Viewer

    strokes = draw(slide)
    first, more = strokes[: -2 * CORRECTIONS], strokes[-2 * CORRECTIONS :]
    times = []
    with tempfile.TemporaryDirectory() as folder, dh.Document.open(slide, Path(folder) / "slide.geojson") as document:
        document.add(first)
        viewer = Viewer(slide, document)
        viewer.learn(1)
        learning = viewer._learning
        assert learning is not None
        learning.wait()
        see(viewer)
        for number in range(CORRECTIONS):
            before = viewer.layer(viewer.learning["layer"]).revision
            begin = time.perf_counter()
            document.add(more[2 * number : 2 * number + 2])
            while viewer.layer(viewer.learning["layer"]).revision == before:
                time.sleep(0.002)
            see(viewer)
            times.append((time.perf_counter() - begin) * 1e3)
        viewer.close()
    for percent, value in ((50, statistics.median(times)), (90, statistics.quantiles(times, n=10)[-1])):
        limit = f"limit: {CORRECTED_MS} ms"
        case = f"correction to updated layer, view of {SIDE}², p{percent}"
        bench.record(case, value, CORRECTED_MS, peer_name=limit, unit="ms", goal=1.0)
    measure_learning(bench, slide, strokes)


def measure_learning(bench: Bench, slide: Any, strokes: Any) -> None:
    """Time learning the strokes and scoring the view, features known, beside a random forest on as many."""
    from dhlab.learner import Learner
    from dhlab.learner.strokes import Frame, choose_strokes, sample_pixels

    learner = Learner(slide, strokes, spacing=0.5)
    window = slide.read((SIDE // 2, SIDE // 2), (SIDE, SIDE))
    part = (slice(None), slice(SIDE // 2, SIDE // 2 + SIDE), slice(SIDE // 2, SIDE // 2 + SIDE))

    def ours() -> Any:
        learner._known = None
        learner.update()
        return learner.heat.levels[0][part]

    def forest() -> Callable[[], Any]:
        import numpy as np
        from skimage.feature import multiscale_basic_features
        from sklearn.ensemble import RandomForestClassifier

        features = multiscale_basic_features(window, channel_axis=-1, sigma_min=0.5, sigma_max=16)
        known = choose_strokes(strokes)
        pixels = [sample_pixels(stroke.geometry, Frame(slide.shape, (1.0, 1.0)), width=5.0) for stroke in known]
        rows = np.concatenate(pixels) - SIDE // 2
        inside = ((rows >= 0) & (rows < SIDE)).all(1)
        y, x = rows[inside].T
        labels = np.repeat([stroke.class_name for stroke in known], list(map(len, pixels)))[inside]
        flat = features.reshape(-1, features.shape[-1])

        def run() -> Any:
            trees = RandomForestClassifier(100, n_jobs=bench.arguments.threads, random_state=0)
            return trees.fit(features[y, x], labels).predict(flat)

        return run

    bench.compare(
        f"learning and scoring a view of {SIDE}²",
        ours,
        [Peer("random forest, as in scikit-image", forest, package="scikit-learn")],
        unit="ms",
    )


def draw(slide: Any) -> Any:
    """Return short strokes in the tutorial's polygons, one class after the other."""
    import shapely

    import dhlab as dh
    from dhlab.samples import tutorial_annotations

    polygons = tutorial_annotations()
    names = ("epidermis", "dermis", "keratin", "background")
    each = [polygons.of_class(name).geometries[:8] for name in names]
    lines, classes = [], []
    for number in range(8):
        for name, shapes in zip(names, each, strict=True):
            if number < len(shapes):
                at = shapely.point_on_surface(shapes[number])
                lines.append(shapely.LineString([(at.x - 20, at.y - 4), (at.x, at.y + 4), (at.x + 20, at.y - 4)]))
                classes.append(name)
    return dh.Annotations.from_geometries(lines, classes, parent=slide)


def see(viewer: Any) -> None:
    """Make the tiles of the view as a browser asks for them: several at once."""
    from concurrent.futures import ThreadPoolExecutor

    source = viewer.layer(viewer.learning["layer"]).tiles
    places = [(row, column) for row in range(SIDE // TILE) for column in range(SIDE // TILE)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda place: source.encode(0, *place), places))


def measure_application(bench: Bench, slide: Any) -> None:
    """Time mapping a whole slide, in tiles of 512², beside scikit-image's features and forest tile by tile."""
    from dhlab.learner import Learner

    learner = Learner(slide, draw(slide), spacing=0.5)
    learner.update()
    tiles = slide.shape[0] * slide.shape[1] / TILE**2
    window = slide.read((SIDE, SIDE // 2), (TILE, TILE))

    def forest() -> Callable[[], Any]:
        import numpy as np
        from skimage.feature import multiscale_basic_features
        from sklearn.ensemble import RandomForestClassifier

        def describe() -> np.ndarray:
            features = multiscale_basic_features(window, channel_axis=-1, sigma_min=0.5, sigma_max=16)
            return features.reshape(-1, features.shape[-1])

        rows = describe()[:: TILE**2 // 4000]
        trees = RandomForestClassifier(100, n_jobs=bench.arguments.threads, random_state=0)
        # Brighter or darker than most: a question as easy as strokes ask.
        trees.fit(rows, rows[:, 0] > np.median(rows[:, 0]))
        # One tile stands for all: the work does not depend on what is in it.
        return lambda: [trees.predict(describe()) for _ in range(4)]

    seconds = bench.compare("four tiles", lambda: None, [Peer("forest", forest)], unit="s").get("forest")
    bench.rows.pop()
    begin = time.perf_counter()
    learner.apply(progress=False)
    rate = tiles / (time.perf_counter() - begin)
    bench.record(
        f"whole slide, tiles of {TILE}²",
        rate,
        None if seconds is None else 4 / seconds,
        peer_name="scikit-image's features and forest",
        unit="tiles/s",
        package="scikit-image",
    )
