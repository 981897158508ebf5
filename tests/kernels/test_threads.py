"""The C kernels from several threads, in forked processes, and where no thread can be started."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dhlab.kernels import GatedAttention, Plan, _cpu, attention_pool, augment, filter_bank, normalize, normalize_stain

pytestmark = pytest.mark.skipif(not _cpu.is_built(), reason="needs the C kernels")
MEAN = STD = (0.5, 0.4, 0.3)
THREADS = 4


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return what sets how many threads each call uses, however little there is to do; four to begin with."""

    def use(number: int) -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("dhlab.kernels._cpu.") and hasattr(module, "threads_for"):
                monkeypatch.setattr(module, "threads_for", lambda _: number)

    monkeypatch.setenv("DHLAB_KERNELS", "cpu")
    use(4)
    return use


def images(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 150, 170, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def normalized(seed: int) -> torch.Tensor:
    return normalize(images(seed), mean=MEAN, std=STD)


def filtered(seed: int) -> torch.Tensor:
    return filter_bank(images(seed), sigmas=(1.0,), luminance=True)


def augmented(seed: int) -> torch.Tensor:
    matrix = torch.tensor([[0.9, -0.3, 2.0], [0.3, 0.9, -1.0], [0.0, 0.0, 1.0]]).expand(2, 3, 3).contiguous()
    plan = Plan((140, 160), matrix, torch.tensor([seed, -seed]), blur=torch.ones(2), gaussian=torch.full((2,), 0.1))
    return augment(images(seed), plan)


def stained(seed: int) -> torch.Tensor:
    return normalize_stain(images(seed))


def pooled(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((17, 32), (17,), (17, 32), (17,), (2, 17), (2,))
    net = GatedAttention(*(torch.randn(size, generator=generator) for size in sizes))
    return attention_pool(torch.randn(3000, 32, generator=generator), torch.tensor([0, 7, 3000]), attention=net)


Kernel = Callable[[int], torch.Tensor]
KERNELS = pytest.mark.parametrize("kernel", [normalized, filtered, augmented, stained, pooled])


class Images(torch.utils.data.Dataset):
    """Computes in the loader's workers."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __len__(self) -> int:
        return 6

    def __getitem__(self, seed: int) -> torch.Tensor:
        return self.kernel(seed)


def answer(kernel: Kernel, seeds: int, queue: multiprocessing.SimpleQueue) -> None:
    torch.set_num_threads(1)  # OpenMP, beneath torch, does not survive a fork
    queue.put([kernel(seed).numpy().tobytes() for seed in range(seeds)])


@KERNELS
def test_results_do_not_depend_on_the_number_of_threads(kernel: Kernel, threads: Callable[[int], None]) -> None:
    results = []
    for number in (1, 2, 3, 7, 64, 1000):
        threads(number)
        results.append(kernel(0))
    assert all(torch.equal(results[0], result) for result in results[1:])


@KERNELS
def test_several_threads_call_at_once(kernel: Kernel) -> None:
    expected = [kernel(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert all(map(torch.equal, pool.map(kernel, range(8)), expected))


@KERNELS
def test_forked_workers_of_a_loader(kernel: Kernel) -> None:
    """Fork after the parent has used its threads, as every training does."""
    expected = torch.stack([kernel(seed) for seed in range(6)])
    loader = torch.utils.data.DataLoader(Images(kernel), batch_size=2, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), expected)


@KERNELS
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # what is tested here
def test_a_process_forks_while_a_kernel_runs(kernel: Kernel) -> None:
    expected = [kernel(seed).numpy().tobytes() for seed in range(2)]
    context, done = multiprocessing.get_context("fork"), threading.Event()

    def work() -> None:
        while not done.is_set():
            kernel(0)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(3):
            queue = context.SimpleQueue()
            child = context.Process(target=answer, args=(kernel, 2, queue))
            child.start()
            assert queue.get() == expected
            child.join()
    finally:
        done.set()
        worker.join()


def test_without_a_thread_to_be_had_the_caller_does_the_work() -> None:
    """The system refuses memory for the stack of a thread; the program runs on its own."""
    program = """
import resource, threading
import torch
import dhlab.kernels
from dhlab.kernels import GatedAttention, Plan, _cpu, attention_pool, augment, filter_bank, normalize, normalize_stain
from dhlab.kernels._cpu import filters, normalize as form

def run():
    return normalize(images, mean=(0.5,) * 3, std=(0.5,) * 3, out=out), filter_bank(images, sigmas=(1.0,), out=bank)

images = torch.randint(0, 256, (1, 150, 170, 3), dtype=torch.uint8)
out, bank = torch.empty(1, 3, 150, 170), torch.empty(1, 21, 150, 170)
filters.threads_for = form.threads_for = lambda _: 1
expected = [result.clone() for result in run()]
filters.threads_for = form.threads_for = lambda _: 8
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 19), resource.RLIM_INFINITY))
try:
    threading.Thread(target=print).start()
    print("a thread was started")
except RuntimeError:
    print("no thread", all(map(torch.equal, run(), expected)))
"""
    environment = {**os.environ, "DHLAB_KERNELS": "cpu", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "no thread True", done.stdout
