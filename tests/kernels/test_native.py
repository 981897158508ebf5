"""The C library: it is the one that the sources make, its approximations keep their bounds, and nobody needs it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dhlab.errors import BadValueError, MissingDependencyError
from dhlab.kernels import _cpu, normalize, normalize_reference
from dhlab.kernels._cpu import SETS

ROOT = Path(__file__).parents[2]
MEAN = STD = (0.5, 0.4, 0.3)


def build_script():
    spec = importlib.util.spec_from_file_location("build_kernels", ROOT / "binder" / "build_kernels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=SETS)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if SETS.index(request.param) > SETS.index(_cpu.instruction_set()):
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setattr(_cpu, "instruction_set", lambda: request.param)
    return request.param


def test_the_library_is_what_the_sources_make() -> None:
    import ctypes

    assert _cpu.is_built(), "run: python binder/build_kernels.py"
    digest = _cpu._load().dhlab_digest
    digest.restype = ctypes.c_char_p
    assert digest().decode() == build_script().digest_sources(), "run: python binder/build_kernels.py"


def run(name: str, values: torch.Tensor) -> torch.Tensor:
    out = torch.full_like(values, torch.nan)
    _cpu.bind(name, "ppl")(values.data_ptr(), out.data_ptr(), values.numel())
    return out.double()


def test_the_logarithm_keeps_its_bound(instructions: str) -> None:
    """Every float32 near 1 from 0.5 to 2 in a stride of 112, and 3e-38 to 1e38 logarithmically."""
    near = torch.arange(0x3F000000, 0x40000000, 7 * 16, dtype=torch.int32).view(torch.float32)
    far = torch.logspace(-37.5, 38, 1 << 16, dtype=torch.float64).float()
    for values in (near[: near.numel() // 16 * 16], far):
        exact = values.double().log2()
        assert ((run("logarithm", values) - exact).abs() <= 5e-7 * exact.abs()).all()


def test_the_power_keeps_its_bound(instructions: str) -> None:
    values = torch.linspace(-126, 127.9, 1 << 20, dtype=torch.float64).float()
    exact = values.double().exp2()
    assert ((run("power", values) / exact - 1).abs() <= 3e-7).all()
    assert (run("power", torch.zeros(16)) == 1).all()
    assert (run("power", torch.full((16,), -1e30)) == 2.0**-126).all()


def test_vectors_equal_plain_loops(instructions: str, tmp_path: Path) -> None:
    """Every function of simd.h, compiled as the library is, into a program that checks itself."""
    script = build_script()
    compiler = script.find_compiler()
    if compiler is None:
        pytest.skip("no C compiler")
    flags = [*script.FLAGS, "-Werror", *script.SETS[instructions], f"-DDHLAB_SET={instructions}"]
    source, program = ROOT / "tests/kernels/native/vectors.c", str(tmp_path / "vectors")
    subprocess.run([compiler, *flags, "-I", str(script.FOLDER), str(source), "-o", program, "-lm"], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_vector_function_is_checked() -> None:
    header = (ROOT / "dhlab/kernels/_cpu/simd.h").read_text()
    checks = (ROOT / "tests/kernels/native/vectors.c").read_text()
    written = set(re.findall(r"^static inline \w+ (\w+)\(", header, re.MULTILINE))
    assert written - set(re.findall(r"CHECK\((\w+),", checks)) <= {"finish_streams"}


def test_without_the_library_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu, "is_built", lambda: False)
    images = torch.randint(0, 256, (2, 7, 5, 3), dtype=torch.uint8)
    expected = normalize_reference(images.movedim(-1, 1), mean=MEAN, std=STD)
    torch.testing.assert_close(normalize(images, mean=MEAN, std=STD), expected)
    monkeypatch.setenv("DHLAB_KERNELS", "cpu")
    with pytest.raises(MissingDependencyError, match="compiler"):
        normalize(images, mean=MEAN, std=STD)


def test_an_unknown_function_says_how_to_build_it() -> None:
    with pytest.raises(MissingDependencyError, match="build_kernels"):
        _cpu.bind("no_such_kernel", "p")


def test_a_checkout_without_a_compiler_installs(tmp_path: Path) -> None:
    """The build hook itself, with no compiler on the path."""
    program = """
import sys; sys.path.insert(0, "binder")
import build_kernels as b
assert b.find_compiler() is None
class App:
    def display_warning(self, text): print(text)
hook = b.CustomBuildHook.__new__(b.CustomBuildHook)
b.LIBRARY = __import__("pathlib").Path(sys.argv[1]) / "kernels.so"
type(hook).app = App()
data = {"artifacts": [], "shared_data": {}}
hook.initialize("standard", data)
assert data["artifacts"] == [] and not data.keys() & {"tag", "pure_python"}
"""
    environment = {**os.environ, "PATH": str(tmp_path)} | {"CC": ""}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not built" in done.stdout


@pytest.mark.gpu
def test_c_on_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DHLAB_KERNELS", "cpu")
    with pytest.raises(BadValueError, match="cuda"):
        normalize(torch.zeros((1, 2, 2, 3), dtype=torch.uint8, device="cuda"), mean=MEAN, std=STD)


def test_torch_sees_one_operator() -> None:
    images = torch.randint(0, 256, (2, 7, 5, 3), dtype=torch.uint8).movedim(-1, 1)
    arguments = (images, torch.ones(3), torch.zeros(3), torch.empty(2, 3, 7, 5))
    torch.library.opcheck(torch.ops.dhlab.normalize.default, arguments)


def test_compiled_graphs_do_not_break_on_it() -> None:
    images = torch.randint(0, 256, (2, 7, 5, 3), dtype=torch.uint8)
    compiled = torch.compile(lambda x: normalize(x, mean=MEAN, std=STD) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), normalize(images, mean=MEAN, std=STD) * 2)


def test_preparing_memory_changes_no_content() -> None:
    """Neither of what is there nor of what lies around it, also where the tensor begins within a page."""
    whole = torch.arange(1 << 21, dtype=torch.int32)
    view = whole[1001:-1003]
    assert view.nbytes >= _cpu.HUGE_BYTES
    assert _cpu.prepare(view) is view
    assert torch.equal(whole, torch.arange(1 << 21, dtype=torch.int32))
