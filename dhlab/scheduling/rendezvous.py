"""Where workers find one another: Horovod's rendezvous server, and its driver of workers that come and go."""

from __future__ import annotations

import secrets
import time
from typing import Any

from horovod.runner.common.util.timeout import TimeoutException
from horovod.runner.elastic.driver import ElasticDriver
from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer, RendezvousServer
from horovod.runner.util.threads import in_thread

__all__ = ["Driver", "Rendezvous"]


class Rendezvous(RendezvousServer):  # type: ignore[misc] # Horovod has no types
    """Horovod's rendezvous server. Its own listens on every network and believes whoever asks.

    Parameters
    ----------
    address
        Address of this machine, the only one that it listens on.
    """

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address, self.secret = address, secrets.token_urlsafe(32)

    def start(self, handler_cls: Any = RendezvousHandler) -> int:
        """Listen on a free port and return it."""
        self._httpd = RendezvousHTTPServer((self.address, 0), _guarded(handler_cls, self.secret), 0)
        # An elastic worker that waits for others must not keep the server from stopping.
        self._httpd.daemon_threads = True
        self._listen_thread = in_thread(self._httpd.serve_forever)
        return int(self._httpd.server_port)

    def stop(self) -> None:
        """Listen no more."""
        super().stop()
        self._httpd.server_close()

    def variables(self) -> dict[str, str]:
        """Return what tells a worker where the server is, once it has started, and what lets it in."""
        port = self._httpd.server_port
        return {
            # Horovod asks for http://ADDR:PORT/SCOPE/KEY, so what follows the address becomes part of every path.
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": f"{self.address}:{port}/{self.secret}",
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
        }


class Driver(ElasticDriver):  # type: ignore[misc] # Horovod has no types
    """Horovod's driver of elastic workers, which also knows for whom they wait, and keeps why it gave up."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.shortage = ""
        self.placed: set[tuple[str, int]] = set()
        self.asking: dict[tuple[str, int], float] = {}
        super().__init__(*arguments, **keywords)

    def register_worker_server(self, host: str, slot: int, addresses: Any, secret_key: Any) -> None:
        """Note that a worker has begun to work with the others, and will ask for its place when one is lost."""
        super().register_worker_server(host, slot, addresses, secret_key)
        self.placed.add((host, slot))

    def record_ready(self, host: str, slot: int) -> None:
        """Let a worker that asks for its place wait until all have asked."""
        self.asking[host, slot] = time.monotonic()
        try:
            super().record_ready(host, slot)
        finally:
            self.asking.pop((host, slot), None)

    def seconds_awaited(self, host: str, slot: int) -> float:
        """Return how long others have asked for their places while a worker has not."""
        if (host, slot) not in self.placed or (host, slot) in self.asking:
            return 0.0
        now = time.monotonic()
        return now - min(list(self.asking.values()), default=now)

    def forget(self, host: str, slot: int) -> None:
        """Note that a worker has ended."""
        self.placed.discard((host, slot))

    def wait_for_available_slots(self, min_num_proc: int, min_hosts: int = 1) -> Any:
        """Wait for room for so many workers and return where it is."""
        try:
            return super().wait_for_available_slots(min_num_proc, min_hosts)
        except TimeoutException:
            self.shortage = f"there was no room for {min_num_proc} workers within {self._timeout} s; see the log."
            raise


def _guarded(handler: Any, secret: str) -> Any:
    """Return a handler that answers only requests whose path begins with a secret."""

    class Guarded(handler):  # type: ignore[misc] # Horovod has no types
        path: str

        def parse_request(self) -> bool:
            if not super().parse_request():
                return False
            given, _, rest = self.path.removeprefix("/").partition("/")
            self.path = f"/{rest}"
            if secrets.compare_digest(given.partition(":")[0].encode(), secret.encode()):
                return True
            self.send_error(403)
            return False

    return Guarded
