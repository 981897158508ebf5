"""One process alone is a complete stand-in for several; a Horovod that does not fit says how to mend it."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from dhlab import distributed
from dhlab.errors import BadValueError, MissingDependencyError


@pytest.fixture
def launched(monkeypatch):
    """A process that says it is one of two workers."""
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    distributed._horovod.cache_clear()
    yield
    distributed._horovod.cache_clear()


def test_one_process_is_worker_0_of_1():
    assert (distributed.rank(), distributed.size(), distributed.local_rank()) == (0, 1, 0)
    assert distributed.is_main()
    assert not distributed.is_shared()
    assert np.arange(7)[distributed.shard(7)].tolist() == list(range(7))


def test_sums_of_one_process_are_what_was_given():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert np.array_equal(distributed.allreduce(array), array)
    assert distributed.gather(array) is array
    assert distributed.broadcast_value({"a": 1}) == {"a": 1}
    tensor = torch.ones(3, requires_grad=True)
    assert distributed.sum_over_workers(tensor) is tensor
    assert distributed.on_main(lambda: 5) == 5
    with pytest.raises(BadValueError, match="expected 'sum', 'min' or 'max'"):
        distributed.allreduce(array, operation="mean")


def test_optimiser_of_one_process_stays_as_it_is():
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    distributed.wrap(optimizer, net)
    with pytest.raises(BadValueError, match="expected one of none, fp16"):
        distributed.wrap(optimizer, net, compression="zip")
    with pytest.raises(BadValueError, match="expected one of sum, adasum"):
        distributed.wrap(optimizer, net, reduction="mean")
    net(torch.ones(1, 3)).sum().backward()
    distributed.synchronize(optimizer)
    optimizer.step()
    distributed.unwrap(optimizer)
    distributed.broadcast(net, optimizer)
    distributed.join()


def test_one_process_is_one_group():
    assert distributed.gather_values("mine") == ["mine"]
    with distributed.split_workers(1) as group:
        assert (group, distributed.size()) == (0, 1)
    with pytest.raises(BadValueError, match="2 groups of 1 workers; expected 1 to 1"), distributed.split_workers(2):
        pass


def test_work_that_could_be_elastic_is_simply_done():
    done = []
    distributed.run_elastic(lambda commit: (commit(), done.append(1)), keep=dict, take=print, on_change=print)
    assert done == [1]


def test_slurm_alone_makes_no_worker(monkeypatch):
    for name, value in (("SLURM_PROCID", "3"), ("SLURM_NTASKS", "8"), ("SLURM_JOB_ID", "77")):
        monkeypatch.setenv(name, value)
    assert distributed.size() == 1


def test_absent_horovod_is_told(launched, monkeypatch):
    monkeypatch.setattr(distributed, "find_spec", lambda _: None)
    assert distributed.horovod_build() is None
    with pytest.raises(MissingDependencyError, match=r"not installed.*install\.sh --horovod"):
        distributed.rank()


def test_horovod_without_torch_is_told(launched, monkeypatch):
    bare = types.ModuleType("horovod.torch")
    parent = types.ModuleType("horovod")
    parent.torch = bare
    monkeypatch.setitem(sys.modules, "horovod", parent)
    monkeypatch.setitem(sys.modules, "horovod.torch", bare)
    monkeypatch.setattr(distributed, "find_spec", lambda _: object())
    assert distributed.horovod_build() == ()
    with pytest.raises(MissingDependencyError, match="without torch support"):
        distributed.rank()


def test_horovod_of_another_torch_is_told(launched, monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod.torch", None)
    monkeypatch.setattr(distributed, "find_spec", lambda _: object())
    with pytest.raises(MissingDependencyError, match=r"does not load with torch .*install\.sh --horovod"):
        distributed.horovod_build()
