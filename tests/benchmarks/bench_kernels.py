"""The fused kernels beside what a user would pick today; each operation's cases lie in ``kernels/<operation>.py``."""

from __future__ import annotations

import time

from harness import Bench, main_of_cases


def print_limit(bench: Bench) -> None:
    """Print what memory can do in the same run."""
    import torch

    torch.set_num_threads(bench.arguments.threads)
    print(f"copy, the limit of every pass over memory: {copy_bandwidth():.1f} GB/s read and written")


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


if __name__ == "__main__":
    main_of_cases("kernels", before=print_limit)
