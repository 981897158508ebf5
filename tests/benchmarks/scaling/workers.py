"""One worker of ``bench_scaling.py``: Horovod, torch's DDP and no communication take turns in its process."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import nn
from torch.nn import functional

from dhlab import distributed

if TYPE_CHECKING:
    from collections.abc import Callable

WARM_UP = 3
# Steps in a row before the other has its turn.
STEPS = {"small CNN": 20, "ResNet-18": 4}
BATCH = {"small CNN": 16, "ResNet-18": 4}


def make_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "ResNet-18":
        import torchvision

        return torchvision.models.resnet18(num_classes=2)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, 2), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))


def make_step(kind: str, name: str) -> tuple[Callable[[], None], nn.Module]:
    """Return a training step on this worker's own batch, and the network that it trains."""
    network = make_network(name)
    torch.manual_seed(1 + distributed.rank())
    images, truth = torch.rand(BATCH[name], 3, 64, 64), torch.randint(0, 2, (BATCH[name],))
    optimizer: Any = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    run: nn.Module = network
    workers = distributed.size()
    if kind == "DDP":
        run = nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True)
    if kind == "Horovod":
        distributed.wrap(optimizer, network)

    def step() -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(run(images), truth)
        # Horovod adds, DDP averages.
        (loss / workers if kind == "Horovod" else loss).backward()
        optimizer.step()

    return step, network


def check_same(first: nn.Module, second: nn.Module) -> None:
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5), f"{name} differs between Horovod and DDP"


def race(name: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of a step of each kind, one number per turn."""
    steps, networks = {}, {}
    for kind in ("none", "DDP", "Horovod"):
        steps[kind], networks[kind] = make_step(kind, name)
        for _ in range(WARM_UP):
            steps[kind]()
    check_same(networks["Horovod"], networks["DDP"])
    seconds: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(rounds):
        for kind, step in steps.items():
            torch.distributed.barrier()
            begin = time.perf_counter()
            for _ in range(STEPS[name]):
                step()
            seconds[kind].append((time.perf_counter() - begin) / STEPS[name])
    return seconds


def by_layer(name: str, repeats: int = 5) -> list[dict[str, Any]]:
    """Return megabytes and milliseconds that the gradients of each layer need to be added, alone."""
    rows = []
    for part, layer in make_network(name).named_children():
        flat = torch.zeros(sum(p.numel() for p in layer.parameters()))
        if not len(flat):
            continue
        times = []
        for _ in range(repeats):
            torch.distributed.barrier()
            begin = time.perf_counter()
            distributed.sum_over_workers(flat)
            times.append(time.perf_counter() - begin)
        rows.append({"layer": part, "MB": flat.nbytes / 1e6, "ms": 1e3 * min(times)})
    return rows


def main(target: Path, rounds: int, cores: list[int]) -> None:
    torch.set_num_threads(1)
    rank, size = distributed.rank(), distributed.size()
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    place = distributed.broadcast_value(str(target.with_suffix(".rendezvous")))
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=size)
    found = {name: race(name, rounds) for name in STEPS}
    layers = by_layer("ResNet-18")
    if rank == 0:
        target.write_text(json.dumps({"seconds": found, "layers": layers}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), [int(core) for core in sys.argv[3].split(",")])
