#!/usr/bin/env python3
"""Let torchvision's CUDA-built wheel load its CPU operators beside a CPU build of torch.

The wheel's extension modules name three CUDA libraries that a CPU torch does not bring; none of their functions is
called for CPU tensors. This compiles three stand-ins (every function returns 0) and adds a `.pth` hook that loads
them at start, only while torch is a CPU build. For set-up of CPU machines alone: never part of the package.

    python torchvision_cpu_ops.py [--remove]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SITE = Path(sysconfig.get_paths()["platlib"])
STAND_INS = SITE / "torchvision.libs" / "cpu_standins"
MODULE = SITE / "_torchvision_cpu_standins.py"
HOOK = SITE / "torchvision_cpu_standins.pth"

LOADER = '''"""Loads stand-ins for CUDA libraries while torch is a CPU build."""
import ctypes
from pathlib import Path

site = Path(__file__).parent
folder = site / "torchvision.libs" / "cpu_standins"
if folder.is_dir() and not (site / "torch" / "lib" / "libtorch_cuda.so").exists():
    for name in {names!r}:
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
'''


def main(arguments: list[str]) -> str:
    """Install or remove the stand-ins and return what was done, in one line."""
    if arguments not in ([], ["--remove"]):
        sys.exit(__doc__)
    if arguments:
        remove()
        return "stand-ins removed"
    if sys.platform != "linux":
        return "only Linux wheels are built for CUDA: nothing to do"
    if not (SITE / "torchvision").is_dir():
        return "torchvision is not installed: nothing to do"
    if (SITE / "torch" / "lib" / "libtorch_cuda.so").exists():
        return "torch is a CUDA build: nothing to do"
    missing = missing_symbols()
    runtime = next((s.split("@")[1] for s in missing if "@libcudart.so" in s), None)
    if runtime is None:
        return "torchvision asks for no CUDA library: nothing to do"
    cuda = {s for s in missing if s.startswith(("_ZN3c104cuda", "_ZNK3c104cuda", "_ZN2at4cuda"))}
    data = {s for s in cuda if s.endswith("9allocatorE")}
    STAND_INS.mkdir(exist_ok=True)
    build(runtime, {s.split("@")[0] for s in missing if s.endswith(f"@{runtime}")}, version=runtime)
    build("libc10_cuda.so", cuda - data, data=data)
    build("libtorch_cuda.so", set())
    MODULE.write_text(LOADER.format(names=(runtime, "libc10_cuda.so", "libtorch_cuda.so")))
    HOOK.write_text(f"import {MODULE.stem}\n")
    return f"stand-ins for torchvision's CPU operators in {STAND_INS.relative_to(SITE)}"


def missing_symbols() -> set[str]:
    """Return the symbols that torchvision's extension modules expect elsewhere, with their versions."""
    found: set[str] = set()
    for pattern in ("_C*.so", "image*.so"):
        for library in (SITE / "torchvision").glob(pattern):
            listing = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True)
            found |= {line.split()[-1].replace("@@", "@") for line in listing.splitlines()}
    return found


def build(name: str, functions: set[str], *, data: set[str] = frozenset(), version: str = "") -> None:
    """Compile one shared library whose functions all return 0."""
    # A registration of GPU code wants an address that it can write to.
    lines = ["static long long scratch[64];"]
    lines += [f"void *{symbol}[8] = {{0}};" for symbol in sorted(data)]
    lines += [f"void *{s}(void) {{ return {'scratch' if 'FatBinary' in s else '0'}; }}" for s in sorted(functions)]
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "stand_in.c"), Path(folder, "versions.map")
        source.write_text("\n".join(lines) + "\n")
        script.write_text(f"{version} {{ global: *; }};\n")
        command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-w", "-fno-builtin", str(source)]
        command += ["-o", str(STAND_INS / name), f"-Wl,-soname,{name}"]
        command += [f"-Wl,--version-script={script}"] if version else []
        subprocess.check_call(command)


def remove() -> None:
    """Take everything away that `main` wrote."""
    shutil.rmtree(STAND_INS, ignore_errors=True)
    for path in (MODULE, HOOK):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    print(main(sys.argv[1:]))
