"""Every form of a kernel in turn, for tests that ask for the fixture `form`."""

from __future__ import annotations

import pytest
import torch

from dhlab.kernels import _cpu
from dhlab.kernels._cpu import SETS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def device() -> str:
    """Return where tests put their tensors: the GPU if there is one."""
    return DEVICE


@pytest.fixture(params=["torch", *(f"cpu-{name}" for name in SETS), "triton"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, nan_poisoned_empty: None) -> str:
    """Run the test once with each form of the kernel that can run here; fresh memory is poisoned."""
    name, _, instructions = request.param.partition("-")
    if name == "cpu":
        if DEVICE != "cpu":
            pytest.skip("the C form is for tensors on the CPU")
        if SETS.index(instructions) > SETS.index(_cpu.instruction_set()):
            pytest.skip(f"this processor has no {instructions}")
        monkeypatch.setattr(_cpu, "instruction_set", lambda: instructions)
    monkeypatch.setenv("DHLAB_KERNELS", name)
    return name
