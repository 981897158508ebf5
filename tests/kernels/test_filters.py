"""`filter_bank` against float64, against SciPy, and against what its features mean."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch

from dhlab.errors import BadShapeError, BadValueError, UnknownNameError
from dhlab.kernels import _cpu, filter_bank, filter_bank_reference, filter_names
from dhlab.kernels.filters import FEATURES, derivative_weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIGMAS = (0.3, 0.7, 1.6)
SHAPES = [(1, 1), (1, 63), (37, 1), (13, 29), (5, 67)]
# Half a unit in the last place of the result's type: 2^-25 (which a few roundings of sums hide), 2^-12, 2^-9.
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def stored(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, shape, generator=generator)
    return (values if dtype == torch.uint8 else values / 255).to(dtype).to(DEVICE)


def limits(sigmas: tuple[float, ...], features: tuple[str, ...], peak: float) -> torch.Tensor:
    """Return the error allowed to each feature of a plane, ``(F, 1, 1)``.

    A feature is at most its weights' absolute sum times the greatest value. Each of the two passes rounds products,
    weights and a sum of up to 97 terms to 2^-24: up to 0.7e-6 of that bound was seen, 1e-6 is allowed. The structure
    tensor is the square of a gradient, so twice its relative error.
    """
    found = []
    for sigma in sigmas:
        slope, bend = (2 * derivative_weights(sigma, 4.0).abs().sum(0)[1:]).tolist()
        bound = {
            "gaussian": peak,
            "gradient": peak * slope,
            "laplacian": 2 * peak * bend,
            "structure": 2 * (peak * slope) ** 2,
            "hessian": 2 * peak * (bend + slope * slope),
        }
        found += [1e-6 * bound[name] for name in features for _ in range(FEATURES[name])]
    return torch.tensor(found, dtype=torch.float64).view(-1, 1, 1)


def check(result: torch.Tensor, planes: torch.Tensor, sigmas: tuple[float, ...], features: tuple[str, ...]) -> None:
    """Compare with the reference in float64, ``planes`` being ``(B, C, H, W)``."""
    expected = filter_bank_reference(planes.cpu().double(), sigmas=sigmas, features=features)
    assert result.shape == expected.shape
    peak = float(planes.abs().max())
    allowed = limits(sigmas, features, peak).repeat(planes.shape[1], 1, 1) + ROUNDING[result.dtype] * expected.abs()
    excess = (result.cpu().double() - expected).abs() - allowed
    assert (excess <= 0).all(), excess.amax((0, 2, 3))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_equals_float64(form: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    images = stored((2, 2, *shape), dtype)
    result = filter_bank(images, sigmas=SIGMAS, channel_axis=1)
    check(result, images, SIGMAS, tuple(FEATURES))


@pytest.mark.parametrize("to", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_types_and_layouts_of_the_result(form: str, to: torch.dtype, layout: torch.memory_format) -> None:
    if form == "triton" and DEVICE == "cpu" and to == torch.bfloat16:
        pytest.skip("Triton's interpreter has no bfloat16")
    images = stored((2, 9, 21, 3))
    result = filter_bank(images, sigmas=(1.6,), dtype=to, memory_format=layout)
    assert result.dtype == to
    assert result.is_contiguous(memory_format=layout)
    check(result, images.movedim(-1, 1), (1.6,), tuple(FEATURES))


@pytest.mark.parametrize("name", FEATURES)
def test_each_feature_alone(form: str, name: str) -> None:
    images = stored((1, 1, 11, 19))
    check(filter_bank(images, sigmas=(1.0,), features=(name,), channel_axis=1), images, (1.0,), (name,))


def test_features_come_in_the_order_asked_for(form: str) -> None:
    features = ("hessian", "gaussian", "structure")
    images = stored((1, 2, 11, 19))
    check(filter_bank(images, sigmas=(0.7, 1.0), features=features, channel_axis=1), images, (0.7, 1.0), features)


@pytest.mark.parametrize("instructions", _cpu.SETS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_planes_cut_into_tiles_and_bands(
    instructions: str, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wider than a tile of the C form, and every result the same on one thread and on three."""
    if not _cpu.is_built() or _cpu.SETS.index(instructions) > _cpu.SETS.index(_cpu.instruction_set()):
        pytest.skip(f"no C form for {instructions}")
    monkeypatch.setattr(_cpu, "instruction_set", lambda: instructions)
    monkeypatch.setenv("DHLAB_KERNELS", "cpu")
    images = stored((1, 1, 263, 1301)).cpu()
    results = []
    for threads in (1, 3):
        monkeypatch.setattr("dhlab.kernels._cpu.filters.threads_for", lambda _, n=threads: n)
        results.append(filter_bank(images, sigmas=(1.6, 5.0), channel_axis=1, memory_format=layout))
    assert torch.equal(*results)
    check(results[0], images, (1.6, 5.0), tuple(FEATURES))


def test_strided_images_are_read_where_they_lie(form: str) -> None:
    images = stored((2, 20, 34, 4))[:, ::2, 3:, 1:]
    check(filter_bank(images, sigmas=(0.7,)), images.movedim(-1, 1), (0.7,), tuple(FEATURES))


def test_other_stored_types(form: str) -> None:
    images = stored((1, 1, 8, 12)).to(torch.int16) * 8
    result = filter_bank(images, sigmas=(0.7,), channel_axis=1)
    check(result, images.float(), (0.7,), tuple(FEATURES))


def test_writes_into_out(form: str) -> None:
    images = stored((1, 9, 21, 3))
    whole = torch.full((1, 25, 9, 21), torch.nan, device=DEVICE)
    out = whole[:, 2:23]
    assert filter_bank(images, sigmas=(0.7,), out=out) is out
    check(out, images.movedim(-1, 1), (0.7,), tuple(FEATURES))
    assert whole[:, :2].isnan().all()
    assert whole[:, 23:].isnan().all()


def test_luminance(form: str) -> None:
    images = stored((2, 9, 21, 3))
    red, green, blue = images.float().movedim(-1, 1).split(1, 1)
    grey = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    check(filter_bank(images, sigmas=(0.7,), luminance=True), grey, (0.7,), tuple(FEATURES))


@pytest.mark.parametrize("shape", [(0, 4, 5, 3), (2, 0, 5, 3), (2, 4, 5, 0)])
def test_nothing_to_filter(form: str, shape: tuple[int, ...]) -> None:
    assert filter_bank(stored(shape), sigmas=(0.7, 1.6)).shape == (shape[0], 14 * shape[3], *shape[1:3])


def test_a_flat_image_has_no_derivatives(form: str) -> None:
    result = filter_bank(
        torch.full((1, 1, 9, 40), 255, dtype=torch.uint8, device=DEVICE), sigmas=(0.3, 2.0), channel_axis=1
    )
    result = result.cpu().view(2, 7, 9, 40)
    torch.testing.assert_close(result[:, 0], torch.full((2, 9, 40), 255.0))
    assert (result[:, 1:].abs() <= limits((0.3, 2.0), tuple(FEATURES), 255).view(2, 7, 1, 1)[:, 1:]).all()


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_polynomials_give_their_derivatives(sigma: float) -> None:
    """A ramp its slope, a paraboloid its curvatures, away from the border."""
    y, x = torch.meshgrid(*[torch.arange(-30.0, 31.0, dtype=torch.float64)] * 2, indexing="ij")
    surface = (1.5 * x**2 + 2 * x * y - 0.5 * y**2 + 3 * x - 4 * y)[None, None]
    found = filter_bank_reference(surface, sigmas=(sigma,))[0, :, 30, 30]
    assert found[1].item() == pytest.approx(5)
    assert found[2].item() == pytest.approx(2)
    assert found[5:].tolist() == pytest.approx(np.linalg.eigvalsh([[3, 2], [2, -1]])[::-1])


def test_turning_the_image_turns_the_features(form: str) -> None:
    images = stored((1, 1, 15, 33))
    turned = filter_bank(images.rot90(1, (2, 3)), sigmas=(1.6,), channel_axis=1).rot90(-1, (2, 3))
    check(turned, images, (1.6,), tuple(FEATURES))


def test_equals_scipy(form: str) -> None:
    """With weights that reach far, SciPy's need no normalising and are ours."""
    images, sigma = stored((1, 1, 41, 53)), 1.6
    found = filter_bank(images, sigmas=(sigma,), truncate=8.0, channel_axis=1)[0].cpu().double().numpy()
    plane = images[0, 0].cpu().numpy().astype(np.float64)

    def derivative(*order: int) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(plane, sigma, order=order, mode="nearest", truncate=8.0)

    def eigenvalues(xx: np.ndarray, xy: np.ndarray, yy: np.ndarray) -> np.ndarray:
        return np.moveaxis(np.linalg.eigvalsh(np.moveaxis(np.array([[xx, xy], [xy, yy]]), (0, 1), (2, 3))), -1, 0)[::-1]

    x, y = derivative(0, 1), derivative(1, 0)
    products = (
        scipy.ndimage.gaussian_filter(p, sigma / 2, mode="nearest", truncate=8.0) for p in (x * x, x * y, y * y)
    )
    expected = [
        derivative(0, 0),
        scipy.ndimage.gaussian_gradient_magnitude(plane, sigma, mode="nearest", truncate=8.0),
        scipy.ndimage.gaussian_laplace(plane, sigma, mode="nearest", truncate=8.0),
        *eigenvalues(*products),
        *eigenvalues(derivative(0, 2), derivative(1, 1), derivative(2, 0)),
    ]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_names_follow_the_features() -> None:
    names = filter_names(("red", "blue"), sigmas=(0.7, 8), features=("hessian", "gaussian"))
    assert names[:4] == ["red hessian 1 0.7", "red hessian 2 0.7", "red gaussian 0.7", "red hessian 1 8"]
    assert len(names) == filter_bank(stored((1, 4, 4, 2)), sigmas=(0.7, 8), features=("hessian", "gaussian")).shape[1]


def test_rows_for_scikit_learn_are_a_view() -> None:
    result = filter_bank(stored((2, 6, 7, 3)), memory_format=torch.channels_last)
    rows = result.movedim(1, -1).reshape(-1, result.shape[1])
    assert rows.data_ptr() == result.data_ptr()
    assert rows.shape == (2 * 6 * 7, len(filter_names()))


def test_gradients_reach_float_images(form: str) -> None:
    images = stored((1, 1, 6, 8), torch.float32).requires_grad_()
    filter_bank(images, sigmas=(0.7,), features=("gaussian",), channel_axis=1).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad.sum().cpu(), torch.tensor(48.0))


def test_torch_sees_one_operator() -> None:
    arguments = (
        stored((2, 3, 6, 8)),
        [0.7, 1.6],
        ["gaussian", "hessian"],
        4.0,
        torch.empty(2, 18, 6, 8, device=DEVICE),
    )
    torch.library.opcheck(torch.ops.dhlab.filter_bank.default, arguments)
    compiled = torch.compile(lambda x: filter_bank(x, sigmas=(0.7,)) * 2, fullgraph=True, backend="aot_eager")
    images = stored((1, 5, 7, 3))
    torch.testing.assert_close(compiled(images), filter_bank(images, sigmas=(0.7,)) * 2)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (BadShapeError, "channels on axis 2", {"channel_axis": 2}),
        (BadShapeError, "out is", {"out": torch.empty(1, 3, 4, 5)}),
        (BadShapeError, "luminance of 2", {"luminance": True}),
        (BadValueError, "sigmas", {"sigmas": ()}),
        (BadValueError, "sigmas", {"sigmas": (1.0, float("nan"))}),
        (BadValueError, "sigmas", {"sigmas": (0.01,)}),
        (BadValueError, "truncate", {"truncate": 0.0}),
        (BadValueError, "each once", {"features": ("gaussian", "gaussian")}),
        (UnknownNameError, "Did you mean 'gaussian'", {"features": ("gauss",)}),
    ],
)
def test_refuses_what_it_cannot_do(error: type[Exception], match: str, options: dict) -> None:
    with pytest.raises(error, match=match):
        filter_bank(torch.zeros((1, 4, 5, 2), dtype=torch.uint8), **options)


def test_refuses_a_single_image() -> None:
    with pytest.raises(BadShapeError, match="expected"):
        filter_bank(torch.zeros((4, 5, 3), dtype=torch.uint8))


@pytest.mark.gpu
def test_more_than_two_thousand_million_values() -> None:
    """Offsets beyond int32, on the way in and out."""
    images = torch.zeros((3, 1, 27_000, 27_000), dtype=torch.uint8, device="cuda")
    images[-1, -1, -1, -1] = 255
    result = filter_bank(images, sigmas=(0.7,), features=("gaussian",), channel_axis=1, dtype=torch.float16)
    expected = filter_bank_reference(images[-1:, :, -9:, -9:].double(), sigmas=(0.7,), features=("gaussian",))
    torch.testing.assert_close(result[-1:, :, -5:, -5:].double(), expected[:, :, -5:, -5:], rtol=1e-3, atol=1e-3)
