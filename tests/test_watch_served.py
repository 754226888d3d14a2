"""The live page over real connections: the command itself, a tunnel, and clients that misbehave."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from test_watch import log_of_a_run, started

from svi_story.render import runs
from svi_story.watch import server as server_module
from svi_story.watch.server import WatchServer, bind, serve
from svi_story.watch.state import Watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Write = Callable[..., Path]

connect = socket.socket.connect
SECONDS = 60.0


@pytest.fixture(autouse=True)
def loopback(own_ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may be talked to."""
    monkeypatch.setattr(socket.socket, "connect", connect)


@contextmanager
def tunnel(port: int) -> Iterator[int]:
    """Another port of this machine that leads there, as `ssh -L` makes one."""

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            near: socket.socket = self.request
            with socket.create_connection(("127.0.0.1", port)) as far, suppress(OSError):
                while True:
                    for source in select.select([near, far], [], [], SECONDS)[0]:
                        data = source.recv(65536)
                        if not data:
                            return
                        (far if source is near else near).sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Forward) as forwarder:
        forwarder.daemon_threads = True
        thread = threading.Thread(target=forwarder.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield forwarder.server_address[1]
        finally:
            forwarder.shutdown()
            thread.join(SECONDS)


@dataclass
class Browser:
    """What a browser does with an address that leads to the page."""

    host: str
    port: int
    cookie: str = ""

    @contextmanager
    def open(self, path: str, method: str = "GET", body: bytes = b"") -> Iterator[http.client.HTTPResponse]:
        name = f"{self.host}:{self.port}"
        headers = {"Host": name, "Cookie": self.cookie}
        if method == "POST":
            headers |= {"Origin": f"http://{name}", "Sec-Fetch-Site": "same-origin"}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)) as connection:
            connection.request(method, path, body or None, headers)
            with connection.getresponse() as answer:
                yield answer

    def ask(self, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, bytes]:
        with self.open(path, method, body) as answer:
            return answer.status, answer.read()

    def log_in(self, address: str) -> str:
        """Open the printed address; the prefix of all paths."""
        parts = urlsplit(address)
        with self.open(f"{parts.path}?{parts.query}") as answer:
            assert answer.status == 303
            self.cookie = (answer.getheader("set-cookie") or "").partition(";")[0]
        return parts.path

    def state(self, prefix: str) -> dict[str, Any]:
        """What the page is sent first: its parts by name."""
        found: dict[str, Any] = {}
        with self.open(f"{prefix}events") as answer:
            kind = ""
            while not {"boards", "runs"} <= found.keys():
                line = answer.readline().decode()
                assert line
                kind = line.removeprefix("event: ").strip() if line.startswith("event: ") else kind
                if line.startswith("data: "):
                    found[kind] = json.loads(line.removeprefix("data: "))
        return found


def test_the_command_serves_through_a_tunnel_and_ends_with_an_interrupt(write_board: Write) -> None:
    board = write_board()
    run = log_of_a_run(Path("renders/.cache"), *started("board.yaml"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "svi_story", "watch", str(board), "--port", "0", "--engine", "animatic"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            port = urlsplit(address).port
            assert port
            with tunnel(port) as other:
                browser = Browser("localhost", other)
                prefix = browser.log_in(address)
                assert b"<title>svi-story</title>" in browser.ask(prefix)[1]
                state = browser.state(prefix)
                assert [each["name"] for each in state["boards"]["boards"]] == ["board.yaml"]
                assert [each["state"] for each in state["runs"]] == ["running"]
                asked = json.dumps({"run": run.name, "stop": "clip"}).encode()
                assert browser.ask(f"{prefix}stop", "POST", asked)[0] == 204
                assert runs.requested_stop(run) == "clip"
                foreign = Browser("evil.example", other, browser.cookie)
                assert foreign.ask(prefix)[0] == 400
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert (out, "Traceback" in err) == ("", False)


@pytest.fixture
def address(write_board: Write, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A page that is served in this process and loses its patience soon."""
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(server_module, "SEND_SECONDS", 0.5)
    monkeypatch.setattr(server_module, "POLL", 0.1)
    board = write_board(clips=[{"prompt": "The fog is drifting. " * 15} for _ in range(60)])
    servers: list[uvicorn.Server] = []

    class Kept(uvicorn.Server):
        def __init__(self, config: uvicorn.Config) -> None:
            super().__init__(config)
            servers.append(self)

    monkeypatch.setattr(uvicorn, "Server", Kept)
    server = WatchServer(Watched([board], {"engine": "animatic"}))
    with bind("127.0.0.1", 0) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of every connection
        thread = threading.Thread(target=serve, args=(server, listening))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}{server.prefix}/?token={server.token}"
        finally:
            while not servers:
                time.sleep(0.01)
            servers[0].should_exit = True
            thread.join(SECONDS)
    assert not thread.is_alive()


def is_closed(client: socket.socket) -> bool:
    """Whether the server closes a connection, whatever it sends before."""
    client.settimeout(SECONDS)
    with suppress(ConnectionError):
        while client.recv(65536):
            pass
    return True


def test_clients_that_do_not_finish_a_request_are_cut_off_and_others_are_served(address: str) -> None:
    port = urlsplit(address).port or 0
    beginnings = (b"", b"GET", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    for number, client in enumerate(clients):
        client.sendall(beginnings[number % len(beginnings)])
    browser = Browser("127.0.0.1", port)
    prefix = browser.log_in(address)
    assert browser.state(prefix)["boards"]["boards"][0]["finished"] == 0
    assert all(map(is_closed, clients))
    for client in clients:
        client.close()


def test_a_client_that_never_reads_its_events_is_cut_off(address: str, write_board: Write) -> None:
    port = urlsplit(address).port or 0
    browser = Browser("127.0.0.1", port)
    prefix = browser.log_in(address)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    request = f"GET {prefix}events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: {browser.cookie}\r\n\r\n"
    client.sendall(request.encode())
    assert client.recv(8) == b"HTTP/1.1"
    assert connections_to(port) == 1
    until, seed = time.monotonic() + SECONDS, 0
    while (open_there := connections_to(port)) and time.monotonic() < until:
        seed += 1  # every change is sent, until nothing more fits
        write_board(clips=[{"prompt": f"{seed} is drifting. " * 20} for _ in range(60)])
        time.sleep(0.15)
    assert open_there == 0
    assert browser.ask(prefix)[0] == 200
    client.close()


def connections_to(port: int) -> int:
    """How many connections of this process the server has on a port."""
    import psutil

    found = psutil.Process().net_connections("tcp")
    return sum(each.laddr.port == port and each.status == "ESTABLISHED" for each in found if each.laddr)
