"""Compile the C kernels into one library: a build hook of hatchling, and a script for a checkout.

Each source is compiled once per instruction set; Python chooses at run time. Without a C compiler the package installs
all the same and PyTorch's own operations run.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script
    BuildHookInterface = object  # type: ignore[assignment,misc] # without hatchling there is none

FOLDER = Path(__file__).resolve().parents[1] / "dhlab" / "kernels" / "_cpu"
LIBRARY = FOLDER / "kernels.so"
LAB_EXTENSION = FOLDER.parents[2] / "extensions" / "jupyterlab" / "labextension"
FLAGS = [
    *("-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-semantic-interposition"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-Wall", "-Wextra", "-Wno-maybe-uninitialized"),  # GCC does not follow a vector that is written lane by lane
]
SETS = {"base": []}
if platform.machine() in ("x86_64", "AMD64"):
    SETS |= {
        "avx2": ["-DDHLAB_AVX2", "-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mpopcnt"],
        "avx512": ["-DDHLAB_AVX512", "-march=x86-64-v4", "-mavx512vbmi", "-mavx512vbmi2", "-mprefer-vector-width=512"],
    }


def digest_sources() -> str:
    """Return a hexadecimal number that changes with the sources and with how they are compiled."""
    content = hashlib.sha256(repr((FLAGS, SETS)).encode())
    for path in sorted(FOLDER.glob("*.[ch]")):
        content.update(path.name.encode() + path.read_bytes())
    return content.hexdigest()[:16]


def build(compiler: str) -> None:
    """Compile and link to `LIBRARY`, written beside it and then renamed."""
    with tempfile.TemporaryDirectory() as folder:
        jobs, objects = [], []
        for source in sorted(FOLDER.glob("*.c")):
            for name, flags in SETS.items() if "NAME(" in source.read_text() else [("base", [])]:
                target = str(Path(folder) / f"{source.stem}_{name}.o")
                define = [f"-DDHLAB_SET={name}", f'-DDHLAB_DIGEST="{digest_sources()}"']
                jobs.append([compiler, *FLAGS, *flags, *define, "-c", str(source), "-o", target])
                objects.append(target)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done in pool.map(lambda job: subprocess.run(job, capture_output=True, text=True, check=False), jobs):
                if done.stderr:
                    print(done.stderr, file=sys.stderr)
                done.check_returncode()
        beside = LIBRARY.with_suffix(f".{os.getpid()}.partial")
        # Not with the compiler's fast-math, which would switch denormals off for the whole process.
        subprocess.run([compiler, "-shared", "-pthread", *objects, "-o", str(beside), "-lm"], check=True)
        beside.replace(LIBRARY)


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc] # either class serves
    """Compile before the wheel is packed; a wheel with a library is for one platform, not for one Python."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, or say that there is no compiler; take the Lab extension along where npm has built it."""
        # An editable install links to it instead: a copy would stay as it is when npm builds anew.
        if version != "editable" and LAB_EXTENSION.is_dir():
            build_data["shared_data"][str(LAB_EXTENSION)] = "share/jupyter/labextensions/dhlab"
        compiler = find_compiler()
        try:
            if compiler is None:
                raise OSError("no C compiler (cc) found")
            build(compiler)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(
                f"dhlab: the C kernels were not built ({error}); PyTorch's operations run instead."
            )
            LIBRARY.unlink(missing_ok=True)
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["artifacts"].append("dhlab/kernels/_cpu/kernels.so")


def find_compiler() -> str | None:
    """Return the C compiler: CC, else cc, gcc or clang; None on Windows, whose compilers know no vector notation."""
    if sys.platform == "win32":
        return None
    return os.environ.get("CC") or next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


if __name__ == "__main__":
    found = find_compiler()
    if found is None:
        sys.exit("no C compiler found: install gcc or clang, or name one in CC")
    build(found)
    print(f"built {LIBRARY.relative_to(Path.cwd()) if LIBRARY.is_relative_to(Path.cwd()) else LIBRARY}")
