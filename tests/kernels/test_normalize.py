"""`normalize` against float64, and its Triton form against its reference (in the interpreter without a GPU)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from dhlab.errors import BadShapeError, BadValueError
from dhlab.kernels import normalize, normalize_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MEAN, STD = (0.7, 0.54, 0.69, 0.1, 0.5), (0.23, 0.29, 0.21, 1.0, 0.01)
SHAPES = [(1,), (63,), (1, 1), (1, 63), (37, 1), (63, 65), (1, 1025), (5, 7, 11)]
# One rounding to the result's type; float32 also pays for a product and a sum with a shift of up to 54.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def stored(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    low, high = (-1024, 3072) if dtype in (torch.int16, torch.float32) else (0, 256)
    return torch.randint(low, high, shape, generator=generator).to(dtype).to(DEVICE)


def expected(images: torch.Tensor, axis: int, value_range: tuple[float, float]) -> np.ndarray:
    """Return the definition, in float64 NumPy."""
    low, high = value_range
    array = np.moveaxis(images.cpu().numpy().astype(np.float64), axis, -1)
    channels = array.shape[-1]
    return np.moveaxis(((array - low) / (high - low) - MEAN[:channels]) / STD[:channels], -1, 1)


@pytest.mark.parametrize("space", SHAPES)
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("axis", [-1, 1])
def test_equals_float64(form: str, space: tuple[int, ...], channels: int, axis: int) -> None:
    images = stored((2, *space, channels) if axis == -1 else (2, channels, *space), torch.uint8)
    result = normalize(images, mean=MEAN[:channels], std=STD[:channels], channel_axis=axis)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.cpu().numpy(), expected(images, axis, (0, 255)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
@pytest.mark.parametrize("to", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_and_computed_types(form: str, dtype: torch.dtype, to: torch.dtype) -> None:
    if form == "triton" and DEVICE == "cpu" and to == torch.bfloat16:
        pytest.skip("Triton's interpreter has no bfloat16")
    images, value_range = stored((3, 17, 19, 3), dtype), (-1024.0, 3071.0)
    result = normalize(images, mean=MEAN[:3], std=STD[:3], value_range=value_range, dtype=to)
    assert result.dtype == to
    limit = TOLERANCE[to]
    np.testing.assert_allclose(
        result.float().cpu().numpy(), expected(images, -1, value_range), rtol=limit, atol=limit * 5
    )


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_writes_into_out(form: str, axis: int, layout: torch.memory_format) -> None:
    images = stored((2, 13, 29, 3) if axis == -1 else (2, 3, 13, 29), torch.uint8)
    out = torch.full((2, 3, 13, 29), torch.nan, device=DEVICE).to(memory_format=layout)
    result = normalize(images, mean=MEAN[:3], std=STD[:3], channel_axis=axis, out=out)
    assert result.data_ptr() == out.data_ptr()
    np.testing.assert_allclose(out.cpu().numpy(), expected(images, axis, (0, 255)), rtol=1e-5, atol=1e-5)


def test_interleaved_pixels_come_out_channels_last(form: str) -> None:
    result = normalize(stored((2, 8, 9, 3), torch.uint8), mean=MEAN[:3], std=STD[:3])
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_strided_input(form: str) -> None:
    images = stored((2, 20, 30, 4), torch.uint8)[:, ::2, 3:, 1:]
    result = normalize(images, mean=MEAN[:3], std=STD[:3])
    np.testing.assert_allclose(result.cpu().numpy(), expected(images, -1, (0, 255)), rtol=1e-5, atol=1e-5)


def test_empty_batch(form: str) -> None:
    assert normalize(stored((0, 4, 5, 3), torch.uint8), mean=MEAN[:3], std=STD[:3]).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("shape", [(2, 3), (2, 5, 7, 4), (2, 3, 5, 7)])
def test_refuses_what_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadShapeError, match="expected"):
        normalize(torch.zeros(shape, dtype=torch.uint8), mean=MEAN[:3], std=STD[:3])


def test_refuses_a_sparse_out() -> None:
    out = torch.empty(2, 3, 4, 10)[..., ::2]
    with pytest.raises(BadShapeError, match="dense"):
        normalize(torch.zeros((2, 4, 5, 3), dtype=torch.uint8), mean=MEAN[:3], std=STD[:3], out=out)


def test_gradients_reach_float_images(form: str) -> None:
    images = stored((1, 4, 5, 3), torch.float32).requires_grad_()
    normalize(images, mean=MEAN[:3], std=STD[:3]).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad[0, 0, 0].cpu(), torch.tensor([1 / (255 * s) for s in STD[:3]]))


def test_export_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    class Net(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return normalize(images, mean=MEAN[:3], std=STD[:3])

    monkeypatch.setenv("DHLAB_KERNELS", "triton")
    images = stored((2, 8, 9, 3), torch.uint8).cpu()
    graph = torch.export.export(Net(), (images,))
    torch.testing.assert_close(
        graph.module()(images), normalize_reference(images.movedim(-1, 1), mean=MEAN[:3], std=STD[:3])
    )


def run_with(environment: str) -> subprocess.CompletedProcess[str]:
    program = f"""
import os, sys
os.environ.pop("TRITON_INTERPRET", None)
os.environ["DHLAB_KERNELS"] = {environment!r}
import torch, dhlab
x = torch.zeros((1, 4, 5, 3), dtype=torch.uint8)
dhlab.kernels.normalize(x, mean=(0.5,) * 3, std=(0.5,) * 3)
print("triton" in sys.modules)
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_the_cpu_needs_no_triton() -> None:
    done = run_with("auto")
    assert done.stdout.strip() == "False", done.stderr


def test_triton_on_the_cpu_is_refused() -> None:
    done = run_with("triton")
    assert BadValueError.__name__ in done.stderr
    assert "expected a GPU" in done.stderr


@pytest.mark.gpu
def test_more_than_two_thousand_million_pixels() -> None:
    """Offsets beyond int32."""
    images = torch.zeros((3, 27_000, 27_000, 1), dtype=torch.uint8, device="cuda")
    images[-1, -1, -1] = 255
    result = normalize(images, mean=(0.0,), std=(1.0,), dtype=torch.float16)
    assert result[-1, -1, -1, -1].item() == 1
    assert result.float().sum().item() == 1
