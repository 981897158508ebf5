"""Tiles over HTTP from a real Jupyter server, alone and beside a process that trains a network on every core."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
from bench_read import TILE, write_slide
from harness import ROOT, Bench

sys.path += [str(ROOT / "tests" / folder) for folder in ("shared", "extensions")]
from conftest import Person, Server, run_server

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = ["tests/extensions/test_lab_tiles.py", "tests/extensions/test_lab_load.py"]
SIDE = 4096
IN_FLIGHT = 6  # what a browser opens to one server
BUSY_LIMIT_MS = 10.0
TRAINING = """
import torch
network = torch.nn.Sequential(*(torch.nn.Conv2d(a, b, 3) for a, b in ((3, 32), (32, 32), (32, 3))))
optimizer = torch.optim.SGD(network.parameters(), 1e-3)
batch = torch.rand(4, 3, 128, 128)
step = 0
while True:
    optimizer.zero_grad()
    network(batch).square().mean().backward()
    optimizer.step()
    step += 1
    if step == 3:
        print("training", flush=True)
"""


def measure(bench: Bench) -> None:
    """Time every stored tile of a slide, one by one and as many at once as a browser asks for."""
    # Page, server and kernel are processes of their own, and share the machine as they do at work.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    with tempfile.TemporaryDirectory() as place:
        folder, home = Path(place) / "root", Path(place) / "home"
        folder.mkdir()
        home.mkdir()
        write_slide(folder / "slide.svs", SIDE)
        with run_server(folder, home) as server, server.person() as person:
            token = person.open_scan("slide.svs")["token"]
            count = SIDE // TILE
            order = np.random.default_rng(3).permutation(count * count).tolist()
            paths = [f"dhlab/tiles/{token}/0/{i // count}/{i % count}" for i in order]
            record(bench, server, person, paths, "")
            with training():
                record(bench, server, person, paths, ", a kernel training")


def record(bench: Bench, server: Server, person: Person, paths: list[str], when: str) -> None:
    """Measure in one state of the machine."""
    asyncio.run(fetch(server, person, paths, 1))
    alone, together, rates = [], [], []
    for _ in range(bench.arguments.rounds):
        alone += asyncio.run(fetch(server, person, paths, 1))
        begin = time.perf_counter()
        together += asyncio.run(fetch(server, person, paths, IN_FLIGHT))
        rates.append(len(paths) / (time.perf_counter() - begin))
    for flight, seconds in ((1, alone), (IN_FLIGHT, together)):
        for percent in (50, 95):
            value = float(np.percentile(seconds, percent)) * 1e3
            case = f"tile over HTTP, {flight} in flight, p{percent}{when}"
            if when and percent == 95:
                limit = f"limit: {BUSY_LIMIT_MS:g} ms"
                bench.record(case, value, BUSY_LIMIT_MS, peer_name=limit, unit="ms", goal=1.0)
            else:
                bench.record(case, value, unit="ms")
    bench.record(f"tiles over HTTP, {IN_FLIGHT} in flight{when}", max(rates), unit="tiles/s")


async def fetch(server: Server, person: Person, paths: list[str], lines: int) -> list[float]:
    """Return the seconds that each tile took, over as many connections as are kept open."""
    waiting = list(reversed(paths))
    parts = urlsplit(server.url)
    cookies = "; ".join(f"{name}={value}" for name, value in person.cookies.items())
    rest = f" HTTP/1.1\r\nHost: {parts.netloc}\r\nCookie: {cookies}\r\nReferer: {server.url}lab\r\n\r\n"
    seconds: list[float] = []

    async def work() -> None:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while waiting:
            path = waiting.pop()
            begin = time.perf_counter()
            writer.write(f"GET {parts.path}{path}{rest}".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            assert head.startswith("http/1.1 200"), head
            await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
            seconds.append(time.perf_counter() - begin)
        writer.close()

    await asyncio.gather(*(work() for _ in range(lines)))
    return seconds


@contextmanager
def training() -> Iterator[None]:
    """Train a network on every core, as a notebook's kernel does, in a process of its own."""
    free = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", TRAINING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=free, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline().strip() == b"training"
            yield
        finally:
            process.kill()
