"""The fused kernels beside what a user would pick today; each operation's cases lie in ``kernels/<operation>.py``.

A module of cases has ``TESTS`` (pytest targets that prove what it times) and ``measure(bench)``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from harness import Bench, main

HERE = Path(__file__).parent / "kernels"
OPERATIONS = sorted(path.stem for path in HERE.glob("*.py"))


def measure(bench: Bench) -> None:
    """Time every operation, or those named with --only, and print what memory can do in the same run."""
    import torch

    torch.set_num_threads(bench.arguments.threads)
    print(f"copy, the limit of every pass over memory: {copy_bandwidth():.1f} GB/s read and written")
    for name in chosen(bench.arguments.only):
        print(name, flush=True)
        module(name).measure(bench)


def copy_bandwidth() -> float:
    """Return bytes read and written per ns by the fastest of ten copies of 256 MiB."""
    import torch

    source, target = torch.zeros(1 << 28, dtype=torch.uint8), torch.zeros(1 << 28, dtype=torch.uint8)
    seconds = []
    for _ in range(10):
        begin = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - begin)
    return 2 * source.numel() / min(seconds) / 1e9


def chosen(only: str) -> list[str]:
    """Return the operations to time."""
    names = only.split(",") if only else OPERATIONS
    if unknown := sorted(set(names) - set(OPERATIONS)):
        sys.exit(f"no cases named {', '.join(unknown)}; there are {', '.join(OPERATIONS)}")
    return names


def module(name: str):
    """Return the cases of an operation."""
    sys.path[:0] = [str(HERE.parent)] if str(HERE.parent) not in sys.path else []
    return importlib.import_module(f"kernels.{name}")


def options(parser: argparse.ArgumentParser) -> None:
    """Add the choice of operations."""
    parser.add_argument("--only", default="", help=f"operations, with commas: {', '.join(OPERATIONS)}")


if __name__ == "__main__":
    first = argparse.ArgumentParser(add_help=False)
    options(first)
    wanted = chosen(first.parse_known_args()[0].only)
    main("kernels", measure, tests=sorted({t for name in wanted for t in module(name).TESTS}), options=options)
