"""Runs in a machine: takes commands from a virtio port and sends back each line they print, and their exit codes.

A request is one line of JSON, ``{"id", "command", "stdin"?}``, an answer ``{"id", "line"}`` or ``{"id", "code"}``.
Lines are sent at once, so that the host knows what was acknowledged when power is cut.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

PORT = "/dev/vport0p1"


def main() -> None:
    """Serve until the port closes."""
    port = os.open(PORT, os.O_RDWR)
    lock = threading.Lock()

    def tell(**answer: object) -> None:
        data = (json.dumps(answer) + "\n").encode()
        with lock:
            while data:
                data = data[os.write(port, data) :]

    def run(number: int, command: str, stdin: str) -> None:
        process = subprocess.Popen(
            ["/bin/sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdin and process.stdout
        process.stdin.write(stdin.encode())
        process.stdin.close()
        for line in process.stdout:
            tell(id=number, line=line.decode(errors="surrogateescape").rstrip("\n"))
        tell(id=number, code=process.wait())

    tell(id=0, code=0)
    pending = b""
    while data := os.read(port, 1 << 16):
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            arguments = (request["id"], request["command"], request.get("stdin", ""))
            threading.Thread(target=run, args=arguments, daemon=True).start()


if __name__ == "__main__":
    main()
    sys.exit(1)
