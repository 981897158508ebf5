"""Many people at once, slow ones, and those who leave: the server stays quick, small and right."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from urllib.parse import urlsplit

import pytest

import dhlab as dh
from dhlab.view.tiles import TileSource


class Line:
    """One connection of its own to the server, for one person."""

    def __init__(self, server, person) -> None:
        parts = urlsplit(server.url)
        self.where = parts.hostname, parts.port
        cookies = "; ".join(f"{name}={value}" for name, value in person.cookies.items())
        self.head = f"Host: {parts.netloc}\r\nCookie: {cookies}\r\nReferer: {server.url}lab\r\n\r\n"
        self.path = parts.path

    def request(self, path: str) -> bytes:
        return f"GET {self.path}{path} HTTP/1.1\r\n{self.head}".encode()

    @staticmethod
    async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        return int(head.split()[1]), await reader.readexactly(length)


@pytest.fixture
def line(server, person, phantom) -> Line:
    person.open_scan(phantom)
    return Line(server, person)


@pytest.fixture
def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if wanted < 1500:
        pytest.skip("needs 1500 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_requests_at_once_are_all_answered_rightly(server, person, phantom, line, many_files) -> None:
    opened = person.open_scan(phantom)
    source = TileSource(dh.open(phantom))
    places = [
        (level, row, column)
        for level in range(source.level_count)
        for row in range(source.grid_shape(level)[0])
        for column in range(source.grid_shape(level)[1])
    ]
    wanted = (places * (1000 // len(places) + 1))[:1000]

    async def ask(place: tuple[int, int, int], gate: asyncio.Event) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection(*line.where)
        await gate.wait()
        writer.write(line.request(f"dhlab/tiles/{opened['token']}/{'/'.join(map(str, place))}"))
        try:
            return await line.answer(reader)
        finally:
            writer.close()

    async def ask_all() -> list[tuple[int, bytes]]:
        gate = asyncio.Event()
        tasks = [asyncio.create_task(ask(place, gate)) for place in wanted]
        await asyncio.sleep(0.5)
        gate.set()
        return await asyncio.gather(*tasks)

    expected = {place: source.encode(*place)[0] for place in places}
    start = time.perf_counter()
    answers = asyncio.run(ask_all())
    print(f"1000 requests: {time.perf_counter() - start - 0.5:.2f} s, {server.memory() / 1e6:.0f} MB")
    assert {status for status, _ in answers} == {200}
    assert all(data == expected[place] for place, (_, data) in zip(wanted, answers, strict=True))


def test_slow_readers_cost_no_memory_and_hold_nobody_up(server, person, phantom, line) -> None:
    pytest.importorskip("psutil")
    opened = person.open_scan(phantom)
    source = TileSource(dh.open(phantom))
    columns = source.grid_shape(0)[1]
    places = [(0, i // columns % source.grid_shape(0)[0], i % columns) for i in range(400)]
    text = b"".join(line.request(f"dhlab/tiles/{opened['token']}/{'/'.join(map(str, p))}") for p in places)
    person.tile(opened, 0, 0, 0)
    before = server.memory()
    slow = []
    for _ in range(30):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(line.where)
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            connection.send(text)
        slow.append(connection)
    time.sleep(1)
    for row in range(10):
        assert person.tile(opened, 0, row, 1).status_code == 200
    print(f"beside 30 slow readers: {(server.memory() - before) / 1e6:.1f} MB more")
    # 30 × 400 tiles would be 60 MB.
    assert server.memory() - before < 20e6

    async def read_on() -> list[tuple[int, bytes]]:
        reader, writer = await asyncio.open_connection(sock=slow[0])
        answers = [await line.answer(reader) for _ in range(20)]
        writer.close()
        return answers

    # Whoever reads on after all gets everything in order.
    assert asyncio.run(read_on()) == [(200, source.encode(*place)[0]) for place in places[:20]]
    for connection in slow[1:]:
        connection.close()


def test_people_who_leave_are_not_waited_for(server, person, phantom, line) -> None:
    opened = person.open_scan(phantom)
    for number in range(200):
        with socket.socket() as connection:
            connection.connect(line.where)
            connection.send(line.request(f"dhlab/tiles/{opened['token']}/0/{number % 11}/1?channel=0&low={number}"))
    assert person.tile(opened, 0, 3, 3).status_code == 200
