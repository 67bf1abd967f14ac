"""Errors of a client whose server cannot be used."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator

import pytest

from layerfarm.jobs.errors import FarmUnreachable, RequestError
from layerfarm.worker.broker.address import Address
from layerfarm.worker.broker.connection import connect


class _Redis5(socketserver.StreamRequestHandler):
    """As Redis 5 answers: it knows PING, and no HELLO."""

    def handle(self) -> None:
        while count := self.rfile.readline():
            words = []
            for _ in range(int(count[1:])):
                length = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(length))
                self.rfile.readline()
            known = words[0] in (b"PING", b"CLIENT", b"SELECT")
            self.wfile.write(b"+OK\r\n" if known else b"-ERR unknown command `%s`, with args: \r\n" % words[0])


@pytest.fixture
def redis5() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Redis5) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()


@pytest.mark.parametrize(
    ("query", "message"),
    [("ssl_ca_certs=/ca.crt", "unknown option 'ssl_ca_certs'.*TLS needs rediss://"), ("colour=red", "unknown option")],
)
def test_option_that_a_connection_does_not_have_is_named(query: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        connect(Address(f"redis://:s3cret@127.0.0.1:1/0?{query}"))
    assert "s3cret" not in str(refused.value)


def test_a_redis_before_6_is_refused_with_one_line(redis5: str) -> None:
    with pytest.raises(FarmUnreachable) as refused:
        connect(Address(redis5))
    said = f"this Redis is older than 6: {redis5} (upgrade to Redis 6 or newer, or to Valkey)"
    assert str(refused.value) == said
