"""The C kernels on ARM: cross-compiled, and run by QEMU where both are installed.

The functions that Python calls are the same; only `bind` is another: it sends operands to a program of the other
processor and brings them back.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from dhlab.kernels import (
    GatedAttention,
    Plan,
    _cpu,
    attention_pool,
    attention_pool_reference,
    augment,
    augment_reference,
    filter_bank,
    filter_bank_reference,
    normalize,
    normalize_reference,
    normalize_stain,
    separate_stains,
)

HERE = Path(__file__).parent
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason="needs Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user-static",
)
RUN = [EMULATOR, "-L", "/usr/aarch64-linux-gnu"]
MEAN, STD = (0.7, 0.54, 0.69), (0.23, 0.29, 0.21)


def build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_kernels", HERE.parents[1] / "binder" / "build_kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the library and the programs for ARM; a warning of the compiler is an error."""
    folder, script = tmp_path_factory.mktemp("neon"), build_script()
    script.FLAGS, script.SETS, script.LIBRARY = [*script.FLAGS, "-Werror"], {"base": []}, folder / "kernels.so"
    script.build(COMPILER)
    for name in ("call", "vectors"):
        source, target = HERE / "native" / f"{name}.c", folder / name
        include = ["-DDHLAB_SET=base", "-I", str(script.FOLDER)]
        subprocess.run([COMPILER, *script.FLAGS, *include, str(source), "-o", str(target), "-lm"], check=True)
    return folder


class Emulated:
    """Stand-ins for `pointer` and `bind` whose functions run in the emulator."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tensors, self.called = folder, {}, []

    def pointer(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        self.tensors[tensor.data_ptr()] = tensor
        return tensor.data_ptr()

    def bind(self, name: str, kinds: str, *, result: str = "") -> Callable[..., Any]:
        return lambda *arguments: self.call(f"{name}_base", kinds, result, arguments)

    def call(self, name: str, kinds: str, result: str, arguments: tuple[Any, ...]) -> Any:
        buffers: dict[int, int] = {}  # address to length
        wholes, reals = [], []
        for kind, value in zip(kinds, arguments, strict=True):
            if kind in "fd":
                reals.append(struct.pack("<f4x" if kind == "f" else "<d", value))
            elif kind == "p" and value is not None:
                start, length, offset = self.memory(value)
                buffers[start] = length
                wholes.append((list(buffers).index(start), offset))
            else:
                wholes.append((-1, int(value or 0)))
        request = struct.pack("<q", len(buffers))
        for start, length in buffers.items():
            request += struct.pack("<q", length) + ctypes.string_at(start, length)
        request += struct.pack("<qq", result in ("f", "d"), len(wholes))
        request += b"".join(struct.pack("<qq", *whole) for whole in wholes) + b"".join(reals).ljust(64, b"\0")
        command = [*RUN, str(self.folder / "call"), str(self.folder / "kernels.so"), name]
        done = subprocess.run(command, input=request, capture_output=True)
        assert done.returncode == 0, (name, done.returncode, done.stderr)
        self.called.append(name)
        at = 8
        for start, length in buffers.items():
            ctypes.memmove(start, done.stdout[at : at + length], length)
            at += length
        kind = {"f": "<f", "d": "<d"}.get(result, "<q")
        return struct.unpack_from(kind, done.stdout)[0] if result else None

    def memory(self, value: Any) -> tuple[int, int, int]:
        """Return where the memory around an operand starts, its length, and the operand's place in it."""
        if isinstance(value, ctypes.Array):
            return ctypes.addressof(value), ctypes.sizeof(value), 0
        storage = self.tensors[value].untyped_storage()
        return storage.data_ptr(), storage.nbytes(), value - storage.data_ptr()


@pytest.fixture
def neon(folder: Path, monkeypatch: pytest.MonkeyPatch, nan_poisoned_empty: None) -> Iterator[Emulated]:
    """Let every C form run in the emulator, and see that it did."""
    emulated = Emulated(folder)
    for name, module in list(sys.modules.items()):
        if name.startswith("dhlab.kernels._cpu") and hasattr(module, "pointer"):
            monkeypatch.setattr(module, "bind", emulated.bind)
            monkeypatch.setattr(module, "pointer", emulated.pointer)
    monkeypatch.setattr(_cpu, "is_built", lambda: True)
    monkeypatch.setenv("DHLAB_KERNELS", "cpu")
    yield emulated
    assert emulated.called


def test_vectors_equal_plain_loops(folder: Path) -> None:
    done = subprocess.run([*RUN, str(folder / "vectors")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("name", "exact"), [("logarithm", torch.log2), ("power", torch.exp2)])
def test_approximations_keep_their_bounds(neon: Emulated, name: str, exact: Callable[..., torch.Tensor]) -> None:
    values = torch.linspace(0.01, 100, 1 << 16)
    out = torch.full_like(values, torch.nan)
    neon.bind(name, "ppl")(neon.pointer(values), neon.pointer(out), values.numel())
    expected = exact(values.double())
    assert ((out - expected).abs() <= 5e-7 * expected.abs()).all()


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalize(neon: Emulated, axis: int, dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (2, 3, 13, 67), dtype=torch.uint8)
    out = torch.full((2, 3, 13, 67), torch.nan, dtype=dtype)
    expected = normalize_reference(images, mean=MEAN, std=STD)
    stored = images if axis == 1 else images.movedim(1, -1).contiguous()
    normalize(stored, mean=MEAN, std=STD, channel_axis=axis, dtype=dtype, out=out)
    # One rounding to the result's type, of values up to 2.
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=2 * max(1e-6, torch.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_filter_bank(neon: Emulated, dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (1, 2, 70, 45), dtype=torch.uint8).to(dtype)
    result = filter_bank(images, sigmas=(0.7, 3.5), channel_axis=1)
    expected = filter_bank_reference(images.double(), sigmas=(0.7, 3.5))
    # Twice what test_filters.py derives from the weights; the greatest values here are some 1e4.
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_augment(neon: Emulated, dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (2, 23, 31, 3), dtype=torch.uint8)
    matrix = torch.tensor([[0.9, -0.3, 2.0], [0.3, 0.9, -1.0], [0.0, 0.0, 1.0]]).expand(2, 3, 3).contiguous()
    stages = {"gamma": torch.tensor([0.8, 1.3]), "blur": torch.tensor([1.2, 0.6])}
    plan = Plan((19, 37), matrix, torch.tensor([5, -7]), **stages)
    options = {} if dtype == torch.uint8 else {"mean": MEAN, "std": STD}
    result = augment(images, plan, dtype=dtype, **options)
    expected = augment_reference(images, plan, dtype=dtype, **options)
    # A grey level, or what it is after division by a standard deviation of 0.21.
    limit = 1 if dtype == torch.uint8 else 1 / 255 / 0.21
    assert (result.double() - expected.double()).abs().max() <= limit


def test_stains(neon: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    stains = torch.tensor([[0.60, 0.70, 0.38], [0.20, 0.90, 0.40]])
    density = torch.rand(2, 37, 41, 2, generator=generator) @ stains
    images = (240 * torch.exp(-density)).to(torch.uint8)
    results = []
    for form in ("cpu", "torch"):
        monkeypatch.setenv("DHLAB_KERNELS", form)
        results.append((separate_stains(images), normalize_stain(images)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    # Grey levels are cut off, not rounded: one may fall on either side.
    assert (results[0][1].int() - results[1][1].int()).abs().max() <= 1


@pytest.mark.parametrize(("precision", "limit"), [("float32", 2e-5), ("bfloat16", 6e-2)])
def test_attention_pool(neon: Emulated, precision: str, limit: float) -> None:
    """Values and gradients, to the bounds of test_attention.py."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(*size) for size in ((32, 17), (32, 17), (17, 2), (13, 32))]
        instances = torch.randn(67, 13).requires_grad_()
    tensors = [tensor.detach() for layer in layers for tensor in (layer.weight, layer.bias)]
    borders, net = torch.tensor([0, 5, 67]), GatedAttention(*tensors)
    exact = GatedAttention(*(tensor.double() for tensor in tensors))
    found = attention_pool(instances, borders, attention=net, precision=precision)
    twin = instances.detach().double().requires_grad_()
    expected, _ = attention_pool_reference(twin, borders, attention=exact)
    found.square().sum().backward()
    expected.square().sum().backward()
    for mine, theirs in ((found, expected), (instances.grad, twin.grad)):
        assert (mine.double() - theirs).abs().max() <= limit * theirs.abs().max().clamp_min(1)
