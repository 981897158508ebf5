"""Where workers meet: on one address, for those who know the secret; and which GPU each of them takes."""

from __future__ import annotations

import base64
import http.client
import os
import pickle
import signal
import socket
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from servers import listening
from waiting import wait_for

import dhlab as dh
from dhlab import distributed
from dhlab.scheduling import team
from dhlab.scheduling.folder import CALL, JobFolder
from dhlab.scheduling.request import Request

pytest.importorskip("submitit", reason="needs submitit (the extra 'jobs')")
pytestmark = pytest.mark.skipif(
    not distributed.horovod_build(), reason="needs Horovod with torch: bash binder/install.sh test --horovod"
)


def other_addresses() -> list[str]:
    """Return addresses at which this machine is reached, but not the loopback's first."""
    found = [one.address for every in psutil.net_if_addrs().values() for one in every if one.family == socket.AF_INET]
    return ["127.0.0.2", *(address for address in found if address != "127.0.0.1")]


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def server():
    from horovod.runner.elastic.rendezvous import create_rendezvous_handler

    from dhlab.scheduling.rendezvous import Rendezvous

    server = Rendezvous("127.0.0.1")
    server.start(create_rendezvous_handler(None))
    yield server
    server.stop()


def ask(server, method: str, path: str, body: bytes = b"") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", int(server.variables()["HOROVOD_GLOO_RENDEZVOUS_PORT"]))
    connection.request(method, path, body)
    return connection.getresponse().status


def test_the_rendezvous_listens_on_one_address(server) -> None:
    port = int(server.variables()["HOROVOD_GLOO_RENDEZVOUS_PORT"])
    socket.create_connection(("127.0.0.1", port)).close()
    for address in other_addresses():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port), timeout=5)


@pytest.mark.parametrize("path", ["/worker_addresses/127.0.0.1:0", "/wrong:1/worker_addresses/a:0", "//a/b"])
def test_strangers_are_refused_and_nothing_of_theirs_is_loaded(server, tmp_path, path) -> None:
    told = base64.b64encode(pickle.dumps(Touch(tmp_path / "loaded")))
    assert [ask(server, method, path, told) for method in ("GET", "PUT", "DELETE", "HEAD")] == [403] * 4
    assert not (tmp_path / "loaded").exists()


def test_horovods_own_client_is_let_in(server) -> None:
    from horovod.runner.http.http_client import put_data_into_kvstore, read_data_from_kvstore

    place = [server.variables()[f"HOROVOD_GLOO_RENDEZVOUS_{part}"] for part in ("ADDR", "PORT")]
    put_data_into_kvstore(*place, "scope", "key", {"a": 1})
    assert read_data_from_kvstore(*place, "scope", "key") == {"a": 1}


def send_unsigned(address: str, port: int, path: Path) -> None:
    """Send what Horovod's services read, signed with no key that they know."""
    message = pickle.dumps(Touch(path))
    with socket.create_connection((address, port), timeout=60) as stranger:
        stranger.sendall(bytes(32) + struct.pack("i", len(message)) + message)
        stranger.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            assert not stranger.recv(100)


def test_workers_of_this_machine_listen_nowhere_else(tmp_path) -> None:
    def work(place: Path) -> int:
        distributed.join()
        (place / str(distributed.rank())).write_text(str(os.getpid()))
        while not (place / "stop").exists():
            time.sleep(0.05)
        return int(distributed.allreduce(np.ones(1))[0])

    job = dh.submit(work, tmp_path, workers=2, cluster="local")
    wait_for(lambda: len(list(tmp_path.glob("[01]"))) == 2)
    workers = [psutil.Process(int((tmp_path / rank).read_text())) for rank in "01"]
    found = listening([*workers, workers[0].parent()])
    secret = workers[0].environ()["HOROVOD_GLOO_RENDEZVOUS_ADDR"].partition("/")[2]
    shown = [" ".join(process.cmdline()) for process in workers]
    (tmp_path / "stop").touch()
    assert job.result(60) == 2
    assert {address for address, _ in found} == {"127.0.0.1"}
    # Everyone here may read command lines, but not the environment of others.
    assert len(secret) > 40
    assert not any(secret in line for line in shown)


def test_each_elastic_worker_has_a_gpu_of_its_own(tmp_path, monkeypatch) -> None:
    """One of two is killed: the next takes its number, and so its GPU. What is not signed, nobody listens to."""

    def work(place: Path) -> None:
        def add(commit) -> None:
            stop = 0
            while not stop:
                workers, stop = distributed.allreduce(np.array([1, (place / "stop").exists()]))
                (place / f"{os.getpid()}.txt").write_text(f"{distributed.local_rank()} of {workers}")
                commit()
                time.sleep(0.05)

        distributed.run_elastic(add, keep=int, take=int, on_change=int)

    def numbers() -> dict[int, str]:
        told = {int(path.stem): path.read_text() for path in tmp_path.glob("*.txt")}
        return {worker: text for worker, text in told.items() if psutil.pid_exists(worker)}

    def disturb() -> None:
        try:
            first = wait_for(lambda: all_of if sorted((all_of := numbers()).values()) == ["0 of 2", "1 of 2"] else None)
            for address, port in listening([psutil.Process(worker) for worker in first]):
                send_unsigned(address, port, tmp_path / "loaded")
            lost = max(first, key=first.__getitem__)
            os.kill(lost, signal.SIGKILL)
            wait_for(lambda: lost not in (now := numbers()) and sorted(now.values()) == ["0 of 2", "1 of 2"])
            seen.append(numbers())
        finally:
            (tmp_path / "stop").touch()

    place = JobFolder(tmp_path / "job")
    place.create()
    place.write(CALL, (work, (tmp_path,), {}))
    request = Request(id="job", name="job", call="work", cluster="local", workers=2, least_workers=1)
    monkeypatch.setattr(team, "COOLDOWN_S", (1, 2))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    seen: list[dict[int, str]] = []
    elastic = team.ElasticTeam(place, request)
    thread = threading.Thread(target=disturb)
    thread.start()
    elastic.run(threading.Event())
    thread.join()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert elastic.failed is None, place.log_of(0).read_text()
    assert seen, "the lost worker came back, and each had its own number"
    assert not (tmp_path / "loaded").exists()
