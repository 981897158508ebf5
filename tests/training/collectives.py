"""What four workers run in `test_collectives.py`: gradients of any kind become the sum of all, and groups are apart."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from workers import make_model, some_data

import dhlab as dh
from dhlab import distributed, env
from dhlab.distributed import WorkerError
from dhlab.errors import BadFileError


class Awkward(nn.Module):
    """Layers whose gradients are small and large, in three types and two memory orders, and not always there."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.large = nn.Linear(8, 1 << 16)
        self.narrow = nn.Linear(8, 4).to(torch.bfloat16)
        self.wide = nn.Linear(8, 2).double()
        self.never = nn.Linear(3, 3)
        self.sometimes = nn.Linear(8, 8)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor, *, all_layers: bool) -> torch.Tensor:
        means = self.first(images).mean((2, 3))
        narrow, wide = self.narrow(means.bfloat16()).float(), self.wide(means.double()).float()
        total: torch.Tensor = self.large(means).square().sum() / 100 + narrow.square().sum() + wide.sum()
        return total + self.sometimes(means).sum() if all_layers else total


def check_gradients(compression: str, passes: int) -> None:
    torch.manual_seed(0)
    net = Awkward()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    torch.manual_seed(distributed.rank())
    batches = [torch.rand(2, 3, 9, 9) for _ in range(passes)]

    def learn() -> None:
        net.zero_grad()
        for batch in batches:
            net(batch, all_layers=distributed.rank() == 1).backward()

    def gradients() -> dict[str, Any]:
        return {n: np.zeros(p.shape) if p.grad is None else p.grad.double().numpy() for n, p in net.named_parameters()}

    learn()
    own = gradients()
    sums = {name: distributed.allreduce(gradient) for name, gradient in own.items()}
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    distributed.wrap(optimizer, net, compression=compression)
    distributed.set_passes(optimizer, passes)
    for explicit in (True, False):
        net.load_state_dict(before)
        learn()
        if explicit:
            distributed.synchronize(optimizer)
        optimizer.step()
        for name, parameter in net.named_parameters():
            rough = parameter.dtype == torch.bfloat16 or compression == "fp16"
            size = np.abs(sums[name]).max() + 1e-6
            difference = np.abs(gradients()[name] - sums[name]).max()
            assert difference <= (2e-2 if rough else 1e-6) * size, (name, compression, passes, difference, size)
            assert parameter.grad.stride() == parameter.stride()
            assert torch.allclose(parameter, before[name] - 0.5 * parameter.grad), "the step took the sums"
    net.load_state_dict(before)
    distributed.unwrap(optimizer)
    learn()
    optimizer.step()
    assert all(np.array_equal(own[name], gradient) for name, gradient in gradients().items()), "alone again"


def check_too_many_passes() -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    distributed.wrap(optimizer, net)
    net(torch.ones(1, 2)).sum().backward()
    with pytest.raises(WorkerError, match="set_passes said 1 backward passes"):
        net(torch.ones(1, 2)).sum().backward()
    distributed.synchronize(optimizer)
    distributed.unwrap(optimizer)


def check_late_groups() -> None:
    if not env.get("HOROVOD_DYNAMIC_PROCESS_SETS"):
        with pytest.raises(WorkerError, match="Begin with split_workers"), distributed.split_workers(2):
            pass


def check_groups(folder: Path) -> None:
    """Two trainings side by side, of two workers each, end as two of one worker do."""
    with distributed.split_workers(2) as group:
        number = int(env.get("HOROVOD_RANK"))
        assert (distributed.rank(), distributed.size(), group) == (number % 2, 2, number // 2)
        assert distributed.allreduce(np.array([number])).tolist() == [[1], [5]][group]
        assert distributed.broadcast_value(number) == [0, 2][group]
        assert distributed.gather_values(str(number)) == [["0", "1"], ["2", "3"]][group]
        assert distributed.gather(np.full((number, 1), number)).ravel().tolist() == [[1], [2, 2, 3, 3, 3]][group]
        with pytest.raises(WorkerError, match="in groups already"), distributed.split_workers(2):
            pass
        data = some_data("classification", 20 + 8 * group)
        model = make_model(data)
        report = dh.fit(
            model, data, epochs=1 + group, batch_size=8, optimizer="sgd", learning_rate=0.01, precision="float32",
            device="cpu", progress=False, folder=folder / f"fold-{group}",
        )  # fmt: skip
        losses = [row["loss"] for row in report.tables["Learning curve"]]
        distributed.join()
    assert (distributed.rank(), distributed.size()) == (number, 4)
    with distributed.split_workers(4) as group:
        assert (group, distributed.size()) == (number, 1)
    together = distributed.gather_values(losses)
    assert [len(found) for found in together] == [1, 1, 2, 2]
    assert together[0] == together[1]
    assert together[2] == together[3]
    assert distributed.allreduce(np.ones(1))[0] == 4


class Damaged:
    """Samples that nobody can read from the fourth time on."""

    def __init__(self, samples: Any) -> None:
        self.samples, self.times = samples, 0

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, indices: Any) -> Any:
        self.times += 1
        if self.times > 3:
            raise BadFileError("damaged")
        return self.samples.read(indices)

    def targets(self, indices: Any) -> Any:
        return self.samples.targets(indices)

    def fresh(self, index: int) -> bool:
        return bool(self.samples.fresh(index))


def check_errors_within_an_accumulation(folder: Path) -> None:
    """What an error stopped before a step goes on when it is mended, and ends as if there had been none."""
    data = some_data("classification", 24)

    def train(place: str, samples: Any) -> torch.Tensor:
        model = make_model(data)
        dh.fit(
            model, replace(data, samples=samples), epochs=1, batch_size=4, accumulate=4, optimizer="sgd",
            learning_rate=0.002, precision="float32", device="cpu", progress=False, folder=folder / place,
        )  # fmt: skip
        return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])

    expected = torch.empty(0)
    with distributed.split_workers(4) as number:
        if number == 0:
            expected = train("whole", data.samples)
            # A worker alone keeps its gradient, with which all go on.
            with pytest.raises(BadFileError):
                train("alone", Damaged(data.samples))
    with pytest.raises(BadFileError):
        train("together", Damaged(data.samples))
    expected = distributed.broadcast_value(expected)
    for place in ("alone", "together"):
        assert torch.allclose(train(place, data.samples), expected, atol=1e-4), place


def check_adasum() -> None:
    """Adasum of the same gradients is their mean, of orthogonal ones their sum; without MPI it is refused."""
    net = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    if not env.get("OMPI_COMM_WORLD_SIZE"):
        with pytest.raises(WorkerError, match=r"these talk over Gloo.*HVD_MPI=1.*mpirun"):
            distributed.wrap(optimizer, net, reduction="adasum")
        return
    distributed.wrap(optimizer, net, reduction="adasum")
    for images, expected in ((torch.ones(1, 4), [1, 1, 1, 1]), (torch.eye(4)[distributed.rank()][None], None)):
        net.zero_grad()
        net(images).sum().backward()
        distributed.synchronize(optimizer)
        found = net.weight.grad[0].tolist()
        assert np.allclose(found, expected or [float(n < distributed.size()) for n in range(4)]), found
    distributed.unwrap(optimizer)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if env.get("HOROVOD_SIZE") == "4":
        check_groups(Path(sys.argv[1]))
        check_errors_within_an_accumulation(Path(sys.argv[1]))
    for compression, passes in product(distributed.COMPRESSIONS, (1, 3)):
        check_gradients(compression, passes)
    check_too_many_passes()
    check_late_groups()
    check_adasum()
    print("all is well", flush=True)
