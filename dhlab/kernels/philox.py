"""Random numbers by counter, the same in PyTorch, NumPy, C and Triton: Philox4x32-10."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from dhlab.kernels._cpu import is_built
from dhlab.kernels._cpu.philox import philox_cpu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Stream", "philox", "sample_keys", "uniform", "uniforms"]

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
WORD = 0xFFFFFFFF


class Stream(IntEnum):
    """What a number is drawn for: the third word of the counter, so that no two purposes share a number."""

    GAUSSIAN = 1
    LAPLACE = 2
    POISSON = 3
    SALT = 4
    PEPPER = 5
    DROPOUT = 6
    DRAW = 7
    KEY = 8


def philox(counter: Sequence[Any], key: Any) -> tuple[Any, Any, Any, Any]:
    """Return four words of 32 random bits for each counter and key.

    Parameters
    ----------
    counter
        Four arrays or tensors of int64, 0..2³²-1, or integers, that broadcast.
    key
        Array or tensor of int64 of one or more axes, all 64 bits of it count.

    Returns
    -------
    tuple
        Four arrays or tensors of int64, 0..2³²-1.

    References
    ----------
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    if isinstance(key, np.ndarray) and is_built():
        return philox_cpu(counter, key)
    low, high = key & WORD, (key >> 32) & WORD
    a, b, c, d = (word + (key & 0) for word in counter)
    for _ in range(ROUNDS):
        # int64 wraps round, and the mask takes off the sign that the shift draws in: both halves are right.
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (
            ((second >> 32) & WORD) ^ b ^ low,
            second & WORD,
            ((first >> 32) & WORD) ^ d ^ high,
            first & WORD,
        )
        low, high = (low + WEYL[0]) & WORD, (high + WEYL[1]) & WORD
    return a, b, c, d


def uniform(word: Any) -> Any:
    """Return numbers between 0 and 1, never either, from the upper 23 bits of `word` (any shape): exact in float32."""
    return ((word >> 9) + 0.5) * 2.0**-23


def uniforms(keys: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Draw numbers between 0 and 1, for example the parameters of a sample.

    Parameters
    ----------
    keys
        ``(B,)`` int64, one per sample.
    count
        Numbers per sample; a larger count begins with the same numbers.

    Returns
    -------
    ndarray
        ``(B, count)`` float64.
    """
    block = np.arange((count + 3) // 4, dtype=np.int64)
    words = philox((block, 0, int(Stream.DRAW), 0), np.asarray(keys, np.int64)[:, None])
    return uniform(np.stack(words, -1).reshape(len(keys), 4 * len(block))[:, :count])


def sample_keys(seed: int, *, epoch: int, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the key of each sample, which depends on nothing but these three numbers.

    Parameters
    ----------
    seed
        Of the run, any integer; its lower 64 bits count.
    epoch
        From 0.
    indices
        ``(B,)`` indices of the samples in their dataset.

    Returns
    -------
    ndarray
        ``(B,)`` int64.
    """
    index = np.asarray(indices, np.int64).reshape(-1)
    key = np.array([seed & (2**64 - 1)], np.uint64).view(np.int64)
    low, high, *_ = philox((index & WORD, (index >> 32) & WORD, int(Stream.KEY), epoch & WORD), key)
    return low | (high << 32)
