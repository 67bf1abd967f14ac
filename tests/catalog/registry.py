"""Debian's docker-registry on loopback, and a gate before it that can be made to behave badly."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any, cast

from tests.catalog.loopback import Handler, LoopbackServer
from tests.started import for_later_tests

_CONFIGURATION = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: "{root}"}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
validation: {{manifests: {{urls: {{allow: ["^https?://"]}}}}}}
"""
_NOTIFICATIONS = """\
notifications:
  endpoints:
    - name: layerfarm
      url: "{0}"
      headers: {{Authorization: ["Bearer {1}"]}}
      timeout: 5s
      threshold: 3
      backoff: 1s
"""
_ACCEPTED = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class Registry:
    """A registry whose content is in ``directory``; a context manager, and may be killed and started again.

    ``notifications``: the address that receives notifications of pushes, and the token for it.
    """

    def __init__(self, directory: Path, program: str, notifications: tuple[str, str] | None = None) -> None:
        self.directory = directory
        self._notifications = notifications
        self._program = program
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Registry:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self.directory / "config.yml"
        text = _CONFIGURATION.format(root=self.directory / "data", port=self.port)
        if self._notifications is not None:
            text += _NOTIFICATIONS.format(*self._notifications)
        configuration.write_text(text)
        log = (self.directory / "log").open("ab")
        # A third of its processor time is garbage collection of a small heap.
        quick = os.environ | {"GOGC": "1000"}
        with for_later_tests():
            self._process = subprocess.Popen(
                [self._program, "serve", configuration], env=quick, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while not self._answers():
            assert self._process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, "the registry does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def put(self, layout: Path, tag: str, name: str) -> None:
        """Push an image of a layout as ``name``, ``repository:tag``."""
        command = ["skopeo", "copy", "--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false"]
        done = subprocess.run(
            [*command, f"oci:{layout}:{tag}", f"docker://{self.host}/{name}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def put_blob(self, repository: str, content: bytes) -> None:
        """Upload a blob, without skopeo."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        place = self._send("POST", f"/v2/{repository}/blobs/uploads/")["Location"]
        separator = "&" if "?" in place else "?"
        self._send("PUT", f"{place}{separator}digest={digest}", content)

    def put_manifest(self, name: str, content: bytes, media_type: str) -> None:
        """Upload a manifest byte for byte, of any format, as ``name``, ``repository:tag`` or ``repository@digest``."""
        self._send("PUT", _manifest_path(name), content, media_type)

    def manifest(self, name: str) -> bytes:
        """The manifest byte for byte, without skopeo."""
        request = urllib.request.Request(f"http://{self.host}{_manifest_path(name)}")
        request.add_header("Accept", ", ".join(_ACCEPTED))
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def _send(self, method: str, where: str, content: bytes = b"", media_type: str = "") -> Message:
        url = where if where.startswith("http") else f"http://{self.host}{where}"
        request = urllib.request.Request(url, data=content, method=method)
        request.add_header("Content-Type", media_type or "application/octet-stream")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return cast(Message, answer.headers)

    def served(self, digest: str) -> list[tuple[int, int]]:
        """Status and bytes of each answer to a request for the content of a blob, by the log of the registry."""
        request = re.compile(rf'"GET /v2/\S+/blobs/{digest} \S+" (\d+) (\d+) ')
        log = (self.directory / "log").read_text(errors="replace")
        return [(int(status), int(size)) for status, size in request.findall(log)]

    def delete(self, name: str) -> None:
        """Delete a manifest, ``repository:tag`` or ``repository@digest``, and so all tags that name it."""
        repository, _, tag = name.partition("@") if "@" in name else name.rpartition(":")
        address = f"http://{self.host}/v2/{repository}/manifests/"
        accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
        asked = urllib.request.Request(address + tag, method="HEAD", headers={"Accept": accept})
        with urllib.request.urlopen(asked) as answer:
            digest = answer.headers["Docker-Content-Digest"]
        urllib.request.urlopen(urllib.request.Request(address + digest, method="DELETE")).close()

    def blob(self, digest: str) -> Path:
        """The file that holds a blob."""
        hexadecimal = digest.partition(":")[2]
        return self.directory / f"data/docker/registry/v2/blobs/sha256/{hexadecimal[:2]}/{hexadecimal}/data"

    def blob_bytes(self) -> int:
        """Bytes of all blobs that it stores."""
        return sum(path.stat().st_size for path in (self.directory / "data").rglob("blobs/sha256/*/*/data"))

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.host}/v2/", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _manifest_path(name: str) -> str:
    repository, _, reference = name.partition("@") if "@" in name else name.rpartition(":")
    return f"/v2/{repository}/manifests/{reference}"


Verdict = Callable[[str, str], int | None]
"""Answer to a request's method and path: None lets it pass, 0 drops the connection, anything else is the status."""


def allow(method: str, path: str) -> None:
    """The verdict that lets every request pass."""


class Gate(LoopbackServer):
    """Passes requests on to a registry, as long as ``verdict`` lets it; ``refusal`` is what it answers else.

    ``takes``: of a manifest that is sent, as JSON, whether the registry takes it. Other ones are invalid to it.
    ``authorization``: the header that each request must have. ``tls``: HTTPS alone is answered.
    """

    def __init__(
        self,
        registry: Registry,
        verdict: Verdict = allow,
        *,
        refusal: bytes = b"",
        takes: Callable[[dict[str, Any]], bool] = lambda manifest: True,
        authorization: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[tuple[str, str]] = []
        gate = self

        class Passing(Handler):
            def _pass(self) -> None:
                gate.requests.append((self.command, self.path))
                body = self._body()
                if authorization not in (None, self.headers.get("Authorization")):
                    self._answer(401, {"WWW-Authenticate": 'Basic realm="registry"'}, b"")
                    return
                status = verdict(self.command, self.path)
                if status == 0:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                if status is not None:
                    self._answer(status, {}, refusal)
                    return
                if self.command == "PUT" and "/manifests/" in self.path and not takes(json.loads(body)):
                    self._answer(400, {}, b'{"errors":[{"code":"MANIFEST_INVALID","message":"manifest invalid"}]}')
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", registry.port, timeout=30)
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():  # several of one name, Accept above all
                    if name not in ("Content-Length", "Transfer-Encoding"):
                        upstream.putheader(name, value)
                if tls is not None:
                    upstream.putheader("X-Forwarded-Proto", "https")
                if self.command in ("POST", "PUT", "PATCH"):
                    upstream.putheader("Content-Length", str(len(body)))
                upstream.endheaders(body or None)
                answer = upstream.getresponse()
                self._answer(answer.status, dict(answer.getheaders()), answer.read())
                upstream.close()

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name not in ("Connection", "Transfer-Encoding"):
                        self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = _pass

        super().__init__(Passing)
        if tls is not None:
            self.secure(tls)
