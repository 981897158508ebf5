"""Bytes stay below their budget, and what is asked for twice at once is made once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dhlab.cache import ByteCache


def test_the_cache_keeps_to_its_budget_and_drops_the_oldest() -> None:
    cache = ByteCache(100)
    for key in "abcd":
        cache.put(key, key, 30)
        assert cache.get("a") == "a"  # touching keeps it
    assert cache.get("b") is None
    assert (cache.used, len(cache)) == (90, 3)
    cache.put("a", "larger", 60)
    assert cache.used <= 100
    assert cache.get("a") == "larger"
    cache.put("huge", "", 101)
    assert cache.get("huge") is None
    cache.drop()
    assert (cache.used, len(cache)) == (0, 0)


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_many_who_ask_at_once_make_it_once(budget) -> None:
    cache = ByteCache(budget)
    made, gate = [], threading.Event()

    def make() -> bytes:
        made.append(threading.get_ident())
        gate.wait(10)
        return b"tile"

    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(cache.get_or_make, "key", make, len) for _ in range(16)]
        while not made:
            time.sleep(0.001)
        time.sleep(0.05)
        gate.set()
        assert {future.result() for future in futures} == {b"tile"}
    assert len(made) == 1
    assert cache.get("key") == (b"tile" if budget else None)


def test_an_error_reaches_everyone_and_is_not_kept() -> None:
    cache = ByteCache(100)
    gate = threading.Event()

    def fail() -> bytes:
        gate.wait(10)
        raise OSError("no disk")

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(cache.get_or_make, "key", fail, len) for _ in range(4)]
        time.sleep(0.05)
        gate.set()
        for future in futures:
            with pytest.raises(OSError, match="no disk"):
                future.result()
    assert cache.get_or_make("key", lambda: b"back", len) == b"back"
