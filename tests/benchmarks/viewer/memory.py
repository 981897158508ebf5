"""Memory of server and page after minutes of panning and zooming at random, which should be flat."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import numpy as np
from viewer.browser import MOVE, OPEN, SIDE, open_lab

if TYPE_CHECKING:
    from harness import Bench

TESTS = ["tests/browser/test_slides_in_lab.py"]
MINUTES = float(os.environ.get("DHLAB_BENCH_MINUTES", "10"))


def measure(bench: Bench) -> None:
    """Compare what is held after a tenth of the time, when all caches are full, with what is held in the end."""
    import psutil

    with open_lab() as (page, lab, _):
        page.evaluate(OPEN, "slide.svs")
        root = page.locator(".dhlab-viewer:visible").first
        random = np.random.default_rng(1)
        client = page.context.new_cdp_session(page)
        server = psutil.Process(lab.process.pid)

        def memory() -> dict[str, float]:
            client.send("HeapProfiler.collectGarbage")
            heap = client.send("Runtime.getHeapUsage")["usedSize"]
            return {"server": server.memory_info().rss / 2**20, "page's heap": heap / 2**20}

        first: dict[str, float] = {}
        begin = time.monotonic()
        while (spent := time.monotonic() - begin) < MINUTES * 60:
            root.evaluate("(root, r) => root.dhlab.map.getView().setResolution(r)", float(2 ** random.uniform(0, 4)))
            root.evaluate(MOVE, random.uniform(0, SIDE, 2).tolist())
            if not first and spent > MINUTES * 6:
                first = memory()
        for name, value in memory().items():
            case = f"memory of the {name} after {MINUTES:g} minutes of panning"
            early = f"after {MINUTES / 10:g} minutes"
            bench.record(case, value, first[name], peer_name=early, unit="MiB", goal=0.9)
