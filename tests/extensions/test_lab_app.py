"""The extension is switched on by what is installed, and kernels are heard as before."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import uuid
from importlib.metadata import files

from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect


def test_the_installed_package_switches_the_extension_on() -> None:
    switches = [f for f in files("dhlab") or () if f.name == "dhlab_lab.json"]
    assert len(switches) == 1
    assert switches[0].parts[-5:-1][-2:] == ("jupyter", "jupyter_server_config.d")
    content = json.loads(switches[0].locate().read_text())
    assert content == {"ServerApp": {"jpserver_extensions": {"dhlab_lab": True}}}


def test_kernels_answer_without_delay(server, person) -> None:
    kernel = person.post("api/kernels", json={"name": "python3"}).json()["id"]
    session = uuid.uuid4().hex

    async def ask() -> list[float]:
        address = f"{server.url.replace('http', 'ws', 1)}api/kernels/{kernel}/channels?session_id={session}"
        socket = await websocket_connect(HTTPRequest(address, headers={"Authorization": f"token {server.token}"}))
        seconds = []
        for number in range(12):
            header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": session, "username": ""}
            content = {"code": f"print({number} * 1000)", "silent": False, "store_history": False}
            begin = time.perf_counter()
            await socket.write_message(
                json.dumps(
                    {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
                )
            )
            while (message := json.loads(await socket.read_message()))["msg_type"] != "execute_reply":
                pass
            assert message["content"]["status"] == "ok"
            seconds.append(time.perf_counter() - begin)
        socket.close()
        return seconds

    try:
        print(f"a cell takes {statistics.median(asyncio.run(ask())) * 1e3:.1f} ms")
    finally:
        person.delete(f"api/kernels/{kernel}")
