"""An HTTP server that a test answers for, in the place of a registry."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Callable

Answer = tuple[int, dict[str, str], bytes]


class Server:
    """Answers every request by ``answer``, of its method, path and ``Authorization``."""

    def __init__(self) -> None:
        self.answer: Callable[[str, str, str], Answer] = lambda method, path, authorization: (200, {}, b"")
        self.requests: list[tuple[str, str, str]] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

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

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def secure(self, context: ssl.SSLContext) -> None:
        """Speak HTTPS from now on."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)

    def __enter__(self) -> Server:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
