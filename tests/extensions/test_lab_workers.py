"""The queue before the threads is bounded, and what nobody waits for any more is not done."""

from __future__ import annotations

import asyncio
import threading

import pytest

pytest.importorskip("jupyter_server", reason="needs JupyterLab (the extra 'lab')")
from dhlab_lab.access import Refused
from dhlab_lab.workers import Workers


def test_work_that_is_cancelled_before_its_turn_is_not_done() -> None:
    done: list[int] = []
    gate = threading.Event()

    async def run() -> None:
        workers = Workers(1, most_waiting=10)
        first = workers.submit(lambda: gate.wait(60))
        others = [workers.submit(lambda n=n: done.append(n)) for n in range(4)]
        await asyncio.sleep(0.01)
        for other in others[1:3]:
            other.cancel()
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(first, *others, return_exceptions=True)
        workers.close()

    asyncio.run(run())
    assert done == [0, 3]


def test_a_full_queue_refuses_and_then_takes_again() -> None:
    gate = threading.Event()

    async def run() -> None:
        workers = Workers(2, most_waiting=5)
        waiting = [workers.submit(lambda: gate.wait(60)) for _ in range(5)]
        for _ in range(3):
            with pytest.raises(Refused) as error:
                workers.submit(lambda: True)
            assert error.value.status_code == 503
        waiting.pop().cancel()
        await asyncio.sleep(0)
        waiting.append(workers.submit(lambda: True))
        gate.set()
        assert await asyncio.gather(*waiting) == [True] * 5
        assert await workers.submit(lambda: "again") == "again"
        workers.close()

    asyncio.run(run())


def test_errors_reach_whoever_asked() -> None:
    async def run() -> None:
        workers = Workers(1, most_waiting=1)

        def fail() -> None:
            raise OSError("no disk")

        with pytest.raises(OSError, match="no disk"):
            await workers.submit(fail)
        assert await workers.submit(lambda: 1) == 1
        workers.close()

    asyncio.run(run())


def test_a_slow_disk_holds_no_tile_up_and_a_slow_cluster_no_slide() -> None:
    gate = threading.Event()

    async def run() -> None:
        workers = Workers(1, most_waiting=100)
        asking = [workers.submit(lambda: gate.wait(60), pool="jobs") for _ in range(20)]
        assert await workers.submit(lambda: "slide", pool="files") == "slide"
        opening = [workers.submit(lambda: gate.wait(60), pool="files") for _ in range(20)]
        assert await workers.submit(lambda: "tile") == "tile"
        assert not any(future.done() for future in (*asking, *opening))
        gate.set()
        await asyncio.gather(*asking, *opening)
        workers.close()

    asyncio.run(run())
