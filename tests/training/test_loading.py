"""Batches are the same for any number of threads, and ranks together see what one sees."""

from __future__ import annotations

import numpy as np
import pytest

from dhlab import env
from dhlab.datasets import Dataset
from dhlab.errors import BadValueError
from dhlab.training import Loader


def some_data(count: int) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, 9, 9, 3)).astype(np.uint8)
    return Dataset.from_arrays(images, np.arange(count) % 2, classes=("a", "b"), task="classification")


@pytest.mark.parametrize("count", [1, 2, 17, 63])
@pytest.mark.parametrize("size", [1, 4, 63])
def test_every_sample_once_an_epoch(count, size):
    loader = Loader(some_data(count), size, seed=3)
    seen = np.concatenate(loader.plan(0))
    alone = count > size > 1 and count % size == 1
    assert len(set(seen.tolist())) == len(seen) == count - alone
    assert len(loader) == len(loader.plan(1))


def test_epochs_and_seeds_differ():
    data = some_data(63)
    orders = [np.concatenate(Loader(data, 8, seed=s).plan(e)).tolist() for s, e in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_out_each_batch(world):
    data = some_data(31)
    alone = list(Loader(data, 6, augment=1.0).batches(2))
    ranks = [list(Loader(data, 6, augment=1.0, rank=r, world=world).batches(2)) for r in range(world)]
    for number, whole in enumerate(alone):
        for rank in range(world):
            part = ranks[rank][number]
            assert np.array_equal(part.indices, whole.indices[rank::world])
            assert np.array_equal(part.images, whole.images[rank::world])


def test_threads_change_nothing(monkeypatch):
    data = some_data(31)
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("DHLAB_THREADS", threads)
        assert env.thread_count() == int(threads)
        found.append([b.images for b in Loader(data, 5, augment=1.0).batches(1)])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_begins_in_the_middle_and_can_be_left():
    loader = Loader(some_data(31), 5, augment=1.0)
    whole, rest = list(loader.batches(0)), list(loader.batches(0, first=4))
    assert [b.number for b in rest] == [4, 5]
    assert np.array_equal(rest[0].images, whole[4].images)
    for batch in loader.batches(0):
        assert batch.number == 0
        break


def test_a_rank_without_samples_lends_one():
    batches = [next(Loader(some_data(8), 1, rank=rank, world=2).batches()) for rank in (0, 1)]
    assert [batch.counts for batch in batches] == [True, False]
    assert np.array_equal(batches[0].images, batches[1].images)
    for size, rank in ((0, 0), (1, 2), (1, -1)):
        with pytest.raises(BadValueError, match="expected a sample"):
            Loader(some_data(8), size, rank=rank, world=2)
