"""`doctor`: one table of versions, devices and surroundings, for bug reports and for a first look at a new machine."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dhlab import env
from dhlab.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["doctor"]

LIBRARIES = (
    "dhlab",
    "numpy",
    "torch",
    "triton",
    "torchvision",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "imagecodecs",
    "simplejpeg",
    "zarr",
    "numcodecs",
    "shapely",
    "pyarrow",
    "onnx",
    "onnxruntime",
    "jupyterlab",
    "anywidget",
    "napari",
    "horovod",
)
Finding = tuple[str, str, str]


def doctor(*, folder: str | os.PathLike[str] = ".") -> Report:
    """Examine this machine and return one table: what works, what does not, and what to do about it.

    Parameters
    ----------
    folder
        Folder to test for file locks and atomic renames, for example the one that results will go to.

    Returns
    -------
    Report
        One table of checks with state ``ok``, ``absent`` or ``problem``, and one of versions. No secrets and no
        user name; paths of the machine are not listed.
    """
    rows = []
    for check in (_python, _devices, _kernels, _codecs, _horovod, _slurm, _hub, _viewer, _shared_memory):
        rows += [_row(finding) for finding in _guard(check)]
    rows += [_row(finding) for finding in _guard(lambda: _file_system(Path(folder)))]
    problems = sum(row["state"] == "problem" for row in rows)
    return Report(
        title="dhlab doctor",
        summary="No problem found." if not problems else f"{problems} problem(s) found; see the table.",
        tables={"checks": rows, "versions": [{"library": n, "version": _version(n)} for n in LIBRARIES]},
    )


def _row(finding: Finding) -> dict[str, str]:
    return dict(zip(("check", "state", "detail"), finding, strict=True))


def _guard(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except Exception as error:  # noqa: BLE001 - a broken library must show up as a row, not end the table
        return [(check.__name__.strip("_").replace("_", " "), "problem", f"{type(error).__name__}: {error}")]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _python() -> Iterator[Finding]:
    yield "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "cores", "ok", f"{env.thread_count()} usable; tiles are decoded on as many threads"


def _devices() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        yield "GPU", "absent", f"{built}; models run on the CPU"
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory, generation = properties.total_memory / 2**30, f"sm_{properties.major}{properties.minor}"
        yield "GPU", "ok", f"{properties.name}, {memory:.0f} GiB, {generation}"


def _kernels() -> Iterator[Finding]:
    import torch

    from dhlab.kernels import _cpu

    choice, built = env.get("DHLAB_KERNELS"), _cpu.is_built()
    if choice != "auto":
        possible = {"triton": torch.cuda.is_available() and _has_triton(), "cpu": built, "torch": True}[choice]
        yield (
            "kernels",
            "ok" if possible else "problem",
            f"DHLAB_KERNELS={choice}{'' if possible else ': not possible'}",
        )
        return
    if torch.cuda.is_available():
        found = ("ok", "Triton") if _has_triton() else ("problem", "PyTorch's operations: pip install 'dhlab[gpu]'")
        yield "kernels on the GPU", *found
    if built:
        yield "kernels on the CPU", "ok", f"C, compiled for {_cpu.instruction_set()}"
    else:
        yield (
            "kernels on the CPU",
            "absent",
            "PyTorch's operations: install a C compiler and dhlab again for faster ones",
        )


def _has_triton() -> bool:
    return find_spec("triton") is not None


def _codecs() -> Iterator[Finding]:
    import numcodecs
    import numpy as np
    import openslide
    import simplejpeg

    yield "OpenSlide", "ok", f"library {openslide.__library_version__}"
    if tuple(int(p) for p in openslide.__library_version__.split(".")[:3]) < (4, 0, 1):
        yield "OpenSlide", "problem", "older than 4.0.1, which mends CVE-2026-48977; pip install -U openslide-bin"
    square = np.full((16, 16, 3), 128, np.uint8)
    decoded = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(square, colorspace="RGB"))
    yield "JPEG", *_same(square.tobytes(), decoded.tobytes(), "libjpeg-turbo by simplejpeg")
    packed = numcodecs.Zstd().encode(square.tobytes())
    yield "OME-Zarr", *_same(square.tobytes(), numcodecs.Zstd().decode(packed), "zstd by numcodecs")


def _same(before: bytes, after: bytes, what: str) -> tuple[str, str]:
    if before == after:
        return "ok", f"{what}, packed and unpacked without a change"
    return "problem", f"{what} changes what it packs; install it again"


def _horovod() -> Iterator[Finding]:
    from dhlab.distributed import horovod_build

    built, remedy = horovod_build(), "bash binder/install.sh --horovod builds it"
    if built is None:
        yield "Horovod", "absent", f"training uses one process; {remedy}"
    elif not built:
        yield "Horovod", "problem", f"installed without torch support; {remedy}"
    else:
        yield "Horovod", "ok", f"built with {', '.join(built)}"


def _slurm() -> Iterator[Finding]:
    from dhlab.errors import SchedulerError
    from dhlab.scheduling.clusters import choose_cluster, run_slurm

    if choose_cluster("auto") == "local":
        yield "Slurm", "absent", "this machine belongs to no cluster; jobs run here"
        return
    try:
        partitions = run_slurm("sinfo", "--noheader", "--format=%R").split()
        yield "Slurm", "ok", f"partitions {', '.join(dict.fromkeys(partitions))}"
    except SchedulerError as error:
        yield "Slurm", "problem", f"{error}"


def _hub() -> Iterator[Finding]:
    prefix = env.hub_prefix()
    yield "JupyterHub", "ok" if prefix else "absent", f"prefix {prefix}" if prefix else "not under a hub"


def _viewer() -> Iterator[Finding]:
    bundle = Path(__file__).parent / "view" / "static" / "viewer.js"
    if bundle.is_file():
        yield "viewer", "ok", f"bundle of {bundle.stat().st_size / 1024:.0f} kB"
    else:
        yield "viewer", "problem", "the viewer's bundle is not built; run bash binder/install.sh lab (needs npm)"


def _shared_memory() -> Iterator[Finding]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield "shared memory", "absent", "no /dev/shm; use num_workers=0 for loaders"
        return
    free = shutil.disk_usage(folder).free / 2**30
    state = "ok" if free > 0.5 else "problem"
    yield "shared memory", state, f"{free:.1f} GiB free" + ("" if state == "ok" else "; loaders with workers may die")


def _file_system(folder: Path) -> Iterator[Finding]:
    yield "free disk", "ok", f"{shutil.disk_usage(folder).free / 2**30:.0f} GiB in the folder asked for"
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".dhlab-doctor-") as scratch:
            first, second = Path(scratch, "a"), Path(scratch, "b")
            first.write_bytes(b"1")
            os.replace(first, second)
            yield "atomic rename", "ok", "works; interrupted writes leave nothing half done"
            if sys.platform != "win32":
                yield _lock_state(second)
    except OSError as error:
        yield "writing", "problem", f"cannot write in the folder asked for: {error.strerror}; give --folder"


def _lock_state(path: Path) -> Finding:
    import fcntl

    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return "file locks", "absent", f"{error.strerror}; dhlab needs none, HDF5 tools might"
    return "file locks", "ok", "work; dhlab needs none"
