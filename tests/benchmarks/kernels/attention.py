"""`attention_pool` at the sizes of CLAM: against eager and compiled PyTorch, and against matrix products alone.

Memory is the peak of a process of its own above its features.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from harness import Bench, Peer

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from dhlab.kernels import GatedAttention

    Pooling = Callable[[torch.Tensor], torch.Tensor]

TESTS = ["tests/kernels/test_attention.py"]
CHANNELS, WIDTH, HIDDEN = 1024, 512, 256
FORWARD = 2 * CHANNELS * WIDTH + 4 * WIDTH * HIDDEN  # operations an instance
BACKWARD = 2 * FORWARD - 2 * CHANNELS * WIDTH  # the features need no gradient
# The logits of a head of two classes may differ by 0.01 where products are bfloat16.
LOGIT = 1e-2


def measure(bench: Bench) -> None:
    """Time one bag, forward, then forward and backward to all parameters."""
    import torch
    from torch.nn import functional

    from dhlab.kernels import attention_pool

    torch.manual_seed(0)
    net, learned = make()
    head = torch.nn.Linear(WIDTH, 2)

    def eager(x: torch.Tensor) -> torch.Tensor:
        embedded = functional.linear(x, net.embed_weight, net.embed_bias).relu()
        value = functional.linear(embedded, net.value_weight, net.value_bias).tanh()
        gate = functional.linear(embedded, net.gate_weight, net.gate_bias).sigmoid()
        scores = functional.linear(value * gate, net.score_weight, net.score_bias)
        return scores.T.softmax(dim=1) @ embedded

    compiled = torch.compile(eager)

    def pool(x: torch.Tensor) -> torch.Tensor:
        return attention_pool(x, attention=net)

    def pool_exactly(x: torch.Tensor) -> torch.Tensor:
        return attention_pool(x, attention=net, precision="float32")

    def forward(run: Pooling, x: torch.Tensor, *, autocast: bool = False) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return head(run(x).flatten().float())

        return call

    def both(run: Pooling, x: torch.Tensor, *, autocast: bool = False) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            for parameter in learned:
                parameter.grad = None
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                pooled = run(x)
            pooled.float().square().sum().backward()
            return net.embed_weight.grad

        return call

    def agree(mine: torch.Tensor, theirs: torch.Tensor) -> None:
        assert (mine - theirs).abs().max() <= LOGIT

    def gradients_agree(mine: torch.Tensor, theirs: torch.Tensor) -> None:
        assert (mine - theirs).norm() <= 0.03 * theirs.norm()

    for instances in (10_000, 100_000):
        x = torch.randn(instances, CHANNELS)
        half = x.bfloat16()
        for part, way, operations, check in (
            ("forward", forward, FORWARD, agree),
            ("forward + backward", both, FORWARD + BACKWARD, gradients_agree),
        ):
            rate = {"work": instances * operations / 1e9, "unit": "GFLOP/s"}
            share = 0.92 if part == "forward" else None
            eagerly, quickly = way(eager, x), way(compiled, x)
            mixed = way(compiled, x, autocast=True)
            limits = [products(dtype, instances * operations) for dtype in (torch.float32, torch.bfloat16)]
            bench.compare(
                f"{part}, {instances:,} × {CHANNELS} float32",
                way(pool_exactly, x),
                [
                    Peer("torch eager", lambda run=eagerly: run, package="torch", check=check),
                    Peer("torch.compile", lambda run=quickly: run, goal=1.0, package="torch", check=check),
                    Peer("matrix products", lambda run=limits[0]: run, goal=share),
                ],
                **rate,
            )
            bench.compare(
                f"{part}, {instances:,} × {CHANNELS} float32, bfloat16 products",
                way(pool, x),
                [
                    Peer("torch eager float32", lambda run=eagerly: run, goal=3.0, package="torch", check=check),
                    Peer("torch.compile float32", lambda run=quickly: run, goal=1.0, package="torch", check=check),
                    Peer("torch.compile autocast", lambda run=mixed: run, package="torch", check=check),
                    Peer("matrix products", lambda run=limits[1]: run, goal=share),
                ],
                **rate,
            )
            bench.compare(
                f"{part}, {instances:,} × {CHANNELS} bfloat16",
                way(pool, half),
                [Peer("matrix products", lambda run=limits[1]: run, goal=share)],
                **rate,
            )
            mine, theirs = (peak_memory(instances, form, part) for form in ("attention_pool", "eager"))
            case = f"memory beside features, {part}, {instances:,} instances"
            bench.record(case, mine, theirs, peer_name="torch eager", unit="MB")
            bench.record(case, mine, 50.0, peer_name="wanted", unit="MB", goal=1.0)


def make() -> tuple[GatedAttention, list[torch.Tensor]]:
    """Return the attention of CLAM with weights as `torch.nn.Linear` draws them, and these in a list."""
    import torch

    from dhlab.kernels import GatedAttention

    sizes = ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, 1), (CHANNELS, WIDTH))
    tensors = [parameter for size in sizes for parameter in torch.nn.Linear(*size).parameters()]
    return GatedAttention(*tensors), tensors


def products(dtype: torch.dtype, operations: int) -> Callable[[], torch.Tensor]:
    """Return products of up to 4096 × 1024 by 1024 × 1024 that come to as many operations."""
    import torch

    a, b = torch.randn(4096, CHANNELS).to(dtype), torch.randn(CHANNELS, 1024).to(dtype)
    times, rest = divmod(round(operations / (2 * CHANNELS * 1024)), len(a))

    def run() -> torch.Tensor:
        for _ in range(times):
            a @ b
        return a[:rest] @ b

    return run


def peak_memory(instances: int, form: str, part: str) -> float:
    """Return by how many megabytes the peak of a fresh process rises above what it holds with its features."""
    program = f"""
import sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
import torch
torch.set_num_threads(1)
from kernels.attention import make
from dhlab.kernels import attention_pool
net, learned = make()
def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
def eager(x):
    h = torch.nn.functional.linear(x, net.embed_weight, net.embed_bias).relu()
    value = torch.nn.functional.linear(h, net.value_weight, net.value_bias).tanh()
    gate = torch.nn.functional.linear(h, net.gate_weight, net.gate_bias).sigmoid()
    return torch.nn.functional.linear(value * gate, net.score_weight, net.score_bias).T.softmax(dim=1) @ h
def run(x):
    pool = eager if {form == "eager"} else lambda x: attention_pool(x, attention=net)
    if {part == "forward"}:
        with torch.no_grad():
            return pool(x)
    return pool(x).square().sum().backward()
run(torch.randn(2, {CHANNELS}))
x = torch.randn({instances}, {CHANNELS})
Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
before = kilobytes("VmRSS")
run(x)
print(kilobytes("VmHWM") - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024 / 1e6
