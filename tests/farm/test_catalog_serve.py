"""``catalog serve`` while it is killed and started again, under a thousand notifications; and its sockets."""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.serve.inbox import Inbox
from tests.started import for_later_tests

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "the token of the registry of this test"
NOTIFICATIONS = 1000
TAGS = 60
KILLS = 6
CLIENTS = 8
DEADLINE = 600.0


class Server:
    """The process of ``tests.farm.serving``, for the catalog of docker://h/team."""

    def __init__(self, directory: Path) -> None:
        (directory / "secrets").mkdir()
        (directory / "secrets/distribution").write_text(TOKEN)
        Layout.create(directory / "store")
        self.file = directory / "c.yaml"
        self.file.write_text(
            "store: store\nsources: [{registry: 'docker://h/team', repositories: [web]}]\n"
            "policies: [{match: '*', do: {transform: keep}}]\n"
        )
        self.record = directory / "runs"
        self.record.touch()
        self.log = directory / "log"
        self._directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.farm.serving", self.file, str(self.port)]
        with for_later_tests(), self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, self._directory / "secrets", self.record],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(lambda: self.answer("GET", "/healthz") == (200, {"status": "ok"}), self.log)

    def end(self, number: int) -> int:
        """Send a signal; return the exit code."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(number)
        return process.wait(DEADLINE)

    def close(self) -> None:
        if self._process is not None:
            self.end(signal.SIGKILL)

    def is_idle(self) -> bool:
        """Return True if nothing waits for a run."""
        _, text = self.answer("GET", "/metrics")
        return 'layerfarm_catalog_pending{catalog="c"} 0.0' in str(text).splitlines()

    def answer(self, method: str, path: str, body: bytes = b"") -> tuple[int, object]:
        """Return status and text of the answer, parsed if it is JSON; 0: there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}"})
            reply = connection.getresponse()
            text = reply.read().decode()
            return reply.status, json.loads(text) if text.startswith("{") else text
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 60)


def until(ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    while not ready():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


def notification(number: int, tag: str) -> bytes:
    event = {"id": str(number), "action": "push", "target": {"repository": "team/web", "tag": tag}}
    return json.dumps({"events": [event]}).encode()


def pending(server: Server) -> set[str]:
    """The names that wait, by the journal of a server that does not run."""
    inbox = Inbox(server.file.parent / "store", server.file.parent / "store/.layerfarm/catalog/c")
    try:
        return set(inbox.pending)
    finally:
        inbox.close()


def test_a_thousand_notifications_while_the_server_is_killed(server: Server) -> None:
    """Each tag is run after its last push, and not oftener than it was pushed and the server killed."""
    rng = random.Random(1)
    tags = [f"t{rng.randrange(TAGS)}" for _ in range(NOTIFICATIONS)]
    sent: dict[str, int] = {}
    lock = threading.Lock()
    todo = iter(enumerate(tags))
    done = 0

    def send() -> None:
        """Send as a registry does, until each notification is acknowledged."""
        nonlocal done
        while True:
            with lock:
                number, tag = next(todo, (-1, ""))
            if number < 0:
                return
            began = time.monotonic_ns()
            while server.answer("POST", "/notifications/distribution", notification(number, tag))[0] != 202:
                time.sleep(0.05)
            with lock:
                sent[tag] = max(sent.get(tag, 0), began)
                done += 1

    server.start()
    clients = [threading.Thread(target=send) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for kill in range(KILLS):
        until(lambda kill=kill: done >= NOTIFICATIONS * (kill + 1) // (KILLS + 2), server.log)  # type: ignore[misc]
        server.end(signal.SIGKILL)
        server.start()
    for client in clients:
        client.join()
    assert done == NOTIFICATIONS
    server.end(signal.SIGKILL)
    server.start()
    until(server.is_idle, server.log)
    assert _run_after(server, sent) == set(sent)
    assert server.end(signal.SIGTERM) == 0
    assert pending(server) == set()
    runs = Counter(name for line in _lines(server) if "ended" not in line for name in line["names"])
    pushes = Counter(f"team/web:{tag}" for tag in tags)
    failures = Counter(name for line in _lines(server) for name in line["failed"])
    assert all(runs[name] <= pushes[name] + failures[name] + KILLS + 1 for name in runs)
    assert len(runs) == TAGS


def _lines(server: Server) -> list[dict[str, object]]:
    found = []
    for line in server.record.read_text().splitlines():
        found.append(json.loads(line))
    return found


def _run_after(server: Server, sent: dict[str, int]) -> set[str]:
    """The tags with a run that succeeded and began after their last push was sent."""
    return {
        tag
        for line in _lines(server)
        if "ended" in line
        for tag, began in sent.items()
        if line["began"] >= began and f"team/web:{tag}" in set(line["names"]).difference(line["failed"])
    }


def test_a_connection_has_one_request(server: Server) -> None:
    server.start()
    with server.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n" * 2)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.count(b"HTTP/1.1 200") == 1 and b"connection: close" in answer.lower()
    assert b"server:" not in answer.lower()


def test_a_client_that_never_ends_its_headers_is_disconnected(server: Server) -> None:
    """It may send a byte now and then; others are served in the meantime."""
    server.start()
    with server.connect() as connection:
        connection.sendall(b"POST /notifications/distribution HTTP/1.1\r\n")
        connection.settimeout(0.5)
        ended = False
        deadline = time.monotonic() + DEADLINE
        while not ended:
            assert time.monotonic() < deadline
            try:
                connection.sendall(b"X")
                ended = connection.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
            assert server.answer("GET", "/healthz")[0] == 200
    assert server.answer("GET", "/healthz")[0] == 200


@pytest.mark.parametrize(
    "request_",
    [b"\0" * 100, b"GET /healthz HTTP/1.1\r\n\r\n", b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n"],
    ids=["no text", "no host", "a long header"],
)
def test_an_invalid_request_is_answered_with_400(server: Server, request_: bytes) -> None:
    server.start()
    with server.connect() as connection:
        connection.sendall(request_)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400")
    assert "Traceback" not in server.log.read_text()


def test_a_second_server_of_the_catalog_is_refused(server: Server, tmp_path: Path) -> None:
    server.start()
    command = [Path(sys.executable).with_name("layerfarm"), "catalog", "serve", server.file, "--listen", "127.0.0.1:0"]
    done = subprocess.run([*command, "--secrets", tmp_path / "secrets"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "another process serves this catalog" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to serve"),
        (["--secrets", "empty"], "no secrets"),
        (["--secrets", "secrets", "--listen", "localhost"], "not an address to serve notifications at"),
        (["--secrets", "secrets", "--listen", "192.0.2.1:1"], "notifications cannot be served"),
    ],
)
def test_a_catalog_that_cannot_be_served_is_one_line(
    server: Server, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    command = [Path(sys.executable).with_name("layerfarm"), "catalog", "serve", "c.yaml", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
