"""What every test shares: the form in which kernels run, thread counts, poisoned memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# One share of the cores for each of pytest-xdist's workers, set before torch or a decoder reads it.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
THREADS = max(1, CORES // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
os.environ.setdefault("DHLAB_THREADS", str(THREADS))
os.environ.setdefault("MPLBACKEND", "agg")


def has_gpu() -> bool:
    """Return whether torch can use a GPU; torch is imported only where the machine has a driver."""
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
        return False
    import torch

    return torch.cuda.is_available()


GPU = has_gpu()
if not GPU:
    # Triton reads this when a kernel is decorated, so it stands before any import of the kernels.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where there is none."""
    if not GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture
def nan_poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh tensors with NaN (or the largest integer): an element that a kernel leaves unwritten shows."""
    import torch
    import torch._dynamo  # it remembers functions by identity when it is imported, and not the poisoned ones

    def poison(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype is torch.bool:
            return tensor.fill_(True)
        floating = tensor.dtype.is_floating_point or tensor.dtype.is_complex
        return tensor.fill_(float("nan") if floating else torch.iinfo(tensor.dtype).max)

    def poisoned(make):
        return lambda *args, **kwargs: poison(make(*args, **kwargs))

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.fixture(scope="session")
def skin_slide() -> Path:
    """Return the real slide that the set-up provides, CMU-1-Small-Region.svs."""
    from dhlab.errors import NotFoundError
    from dhlab.samples import sample_path

    try:
        return sample_path("skin-slide")
    except NotFoundError as error:
        pytest.skip(str(error))
