"""The counter-based generator against the vectors that its authors publish, and what is drawn from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dhlab.kernels._cpu import is_built
from dhlab.kernels.philox import Stream, philox, sample_keys, uniform, uniforms

# kat_vectors of Random123: counter, key, result of philox4x32 with ten rounds
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.fixture(params=["C", "NumPy"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Draw in C where it is built, and as without a compiler."""
    if request.param == "C" and not is_built():
        pytest.skip("the C kernels are not built")
    monkeypatch.setattr("dhlab.kernels.philox.is_built", lambda: request.param == "C")
    return request.param


@pytest.mark.parametrize("make", [np.array, torch.tensor])
@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
def test_published_vectors(make, counter: str, key: str, result: str) -> None:
    low, high = (int(word, 16) for word in key.split())
    signed = np.array([high << 32 | low], np.uint64).view(np.int64)
    words = philox([int(word, 16) for word in counter.split()], make(signed.tolist()))
    assert [int(word[0]) for word in words] == [int(word, 16) for word in result.split()]


def test_uniform_numbers_keep_off_both_ends_and_are_exact_in_float32() -> None:
    ends = uniform(np.array([0, 2**32 - 1]))
    assert 0 < ends[0] < 1e-7
    assert 1 - 1e-7 < ends[1] < 1
    words = torch.randint(0, 2**32, (1000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform(words).double().float().double(), uniform(words).double())


def test_draws_are_uniform_and_begin_alike() -> None:
    keys = sample_keys(7, epoch=3, indices=range(4096))
    assert len(set(keys.tolist())) == 4096
    drawn = uniforms(keys, 10)
    assert drawn.shape == (4096, 10)
    assert abs(drawn.mean() - 0.5) < 0.005
    assert abs(drawn.var() - 1 / 12) < 0.001
    assert abs(np.corrcoef(drawn.T) - np.eye(10)).max() < 0.06
    np.testing.assert_array_equal(uniforms(keys[5:6], 3), drawn[5:6, :3])
    assert uniforms(keys[:0], 3).shape == (0, 3)


def test_keys_depend_on_seed_epoch_and_index_alone() -> None:
    keys = {
        int(sample_keys(seed, epoch=epoch, indices=[i])[0])
        for seed in (0, -1, 2**70)
        for epoch in (0, 1)
        for i in (0, 2**33)
    }
    assert len(keys) == 8  # 2**70 and 0 agree in their lower 64 bits
    np.testing.assert_array_equal(sample_keys(5, epoch=1, indices=[9, 4])[1:], sample_keys(5, epoch=1, indices=[4]))


def test_streams_differ() -> None:
    key = np.array([1])
    first = {int(philox((0, 0, int(stream), 0), key)[0][0]) for stream in Stream}
    assert len(first) == len(Stream)
