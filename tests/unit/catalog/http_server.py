"""An HTTP server that a test answers for, in the place of a registry."""

from __future__ import annotations

from collections.abc import Callable

from tests.catalog.loopback import Handler, LoopbackServer

Answer = tuple[int, dict[str, str], bytes]


class Server(LoopbackServer):
    """Answers every request by ``answer``, of its method, path and ``Authorization``."""

    def __init__(self) -> None:
        self.answer: Callable[[str, str, str], Answer] = lambda method, path, authorization: (200, {}, b"")
        self.requests: list[tuple[str, str, str]] = []
        server = self

        class Answering(Handler):
            def _serve(self) -> None:
                asked = (self.command, self.path, self.headers.get("Authorization") or "")
                server.requests.append(asked)
                status, headers, body = server.answer(*asked)
                self.send_response_only(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = _serve

        super().__init__(Answering)
