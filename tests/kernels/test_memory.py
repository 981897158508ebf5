"""Memory that is kept from one result to the next, and never under two tensors at once."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dhlab.kernels._cpu.memory import LEAST_BYTES, Pool

SHAPE = (3, 1021, 1021)  # float32: more than LEAST_BYTES, and no whole number of pages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shape_strides_and_type_are_those_of_the_model(dtype: torch.dtype, layout: torch.memory_format) -> None:
    like = torch.ones(2, 3, 1021, 1021, dtype=dtype).contiguous(memory_format=layout)
    made = Pool().empty_like(like)
    assert (made.shape, made.stride(), made.dtype) == (like.shape, like.stride(), dtype)
    assert made.copy_(like).sum(dtype=torch.float64) == like.numel()
    assert made.data_ptr() % 64 == 0


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    pool, like = Pool(), torch.empty(SHAPE)
    first = pool.empty_like(like)
    place, view = first.data_ptr(), first[1, 3:]
    view.fill_(7)
    del first
    other = pool.empty_like(like)
    assert other.data_ptr() != place
    assert (other.fill_(1), view.unique().item())[1] == 7
    assert pool.idle_bytes == 0
    del view
    gc.collect()
    assert pool.idle_bytes >= like.nbytes
    assert pool.empty_like(like).data_ptr() == place


def test_little_is_kept_and_little_tensors_come_from_torch() -> None:
    like = torch.empty(SHAPE)
    pool = Pool(2 * like.nbytes)
    many = [pool.empty_like(like) for _ in range(5)]
    assert len({tensor.data_ptr() for tensor in many}) == 5
    del many
    gc.collect()
    assert 0 < pool.idle_bytes <= 2 * like.nbytes
    small = pool.empty_like(torch.empty(LEAST_BYTES // 4 - 1))
    huge = pool.empty_like(torch.empty(3 * like.numel()))
    held = pool.idle_bytes
    del small, huge
    gc.collect()
    assert pool.idle_bytes == held
    assert pool.empty_like(torch.empty(0, 5)).shape == (0, 5)


def test_threads_never_share_a_block() -> None:
    pool, like = Pool(), torch.empty(SHAPE)

    def fill(number: int) -> bool:
        tensors = [pool.empty_like(like).fill_(number + i) for i in range(2)]
        return all(bool((tensor == number + i).all()) for i, tensor in enumerate(tensors))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(fill, range(0, 120, 2)))
