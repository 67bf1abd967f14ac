"""A disk as a network block device: what was written since the last flush is lost when power is cut, or some of it.

The server is a process of its own: ``python -m tests.machines.disk SOCKET FILE SIZE SEED volatile|kept``. Writes that
the guest has not flushed are in memory, in order; a flush, or a write with FUA, brings them to the file. A client that
disconnects without notice was cut: a ``volatile`` disk then keeps a random part of the writes since the last flush, as
a drive that wrote back some of its cache; a disk that is ``kept`` has them all. A line on stdin names a file that gets
what a cut at this moment would leave, while the client goes on; ``kept`` is the answer. The protocol is NBD's fixed
newstyle handshake with one export (the nbd project's ``doc/proto.md``).
"""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MAGIC: Final = b"NBDMAGIC"
_OPTION: Final = b"IHAVEOPT"
_REPLY: Final = 0x3E889045565A9
_REQUEST: Final = 0x25609513
_SIMPLE: Final = 0x67446698
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _INFO_EXPORT, _UNSUPPORTED = 1, 3, 0x80000001
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _ZEROES = 0, 1, 2, 3, 4, 6
_FLAGS: Final = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6
"""Has flags; flush, FUA, trim and write-zeroes are served."""
_FUA: Final = 1
_SECTOR: Final = 4096
"""Bytes that a drive writes whole or not at all, as those with 4 KiB sectors do."""


class Cache:
    """A file, and before it what was written since the last flush."""

    def __init__(self, path: Path, size: int, seed: int, *, volatile: bool) -> None:
        self._path, self.size, self._volatile = path, size, volatile
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.truncate(self._file, size)
        self.lock = threading.Lock()
        """Held for each request, and to make an image."""
        self._random = random.Random(seed)
        self._writes: list[tuple[int, bytes]] = []
        self._sectors: dict[int, bytes] = {}

    def read(self, offset: int, length: int) -> bytes:
        """As the guest sees it: cached sectors before those of the file."""
        data = bytearray(os.pread(self._file, length, offset))
        first = offset // _SECTOR
        for sector in range(first, (offset + length) // _SECTOR) if self._sectors else ():
            if sector in self._sectors:
                data[(sector - first) * _SECTOR : (sector - first + 1) * _SECTOR] = self._sectors[sector]
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        """Kept in memory until a flush."""
        self._writes.append((offset, data))
        view = memoryview(data)
        first = offset // _SECTOR
        for number in range(len(data) // _SECTOR):
            self._sectors[first + number] = bytes(view[number * _SECTOR : (number + 1) * _SECTOR])

    def flush(self) -> None:
        """Bring all that was written to the file."""
        for offset, data in self._writes:
            os.pwrite(self._file, data, offset)
        self._forget()

    def lose(self) -> None:
        """Power is cut: a volatile disk loses some of the writes since the last flush."""
        for offset, data in self._surviving():
            os.pwrite(self._file, data, offset)
        self._forget()

    def image(self, path: Path) -> None:
        """Write to ``path`` what a cut at this moment would leave."""
        with self.lock:
            subprocess.run(["cp", "--sparse=always", self._path, path], check=True)
            survivors = list(self._surviving())
        with path.open("r+b") as image:
            for offset, data in survivors:
                os.pwrite(image.fileno(), data, offset)

    def _surviving(self) -> Iterator[tuple[int, bytes]]:
        """Each write since the last flush is kept, torn between sectors, or lost."""
        for offset, data in self._writes:
            fate = self._random.random() if self._volatile else 0
            if fate < 0.4:
                yield offset, data
            elif fate < 0.5:
                yield offset, data[: self._random.randrange(len(data) // _SECTOR + 1) * _SECTOR]

    def _forget(self) -> None:
        self._writes.clear()
        self._sectors.clear()


class Connection:
    """One client: QEMU, while its machine runs."""

    def __init__(self, connection: socket.socket, cache: Cache) -> None:
        self._socket = connection
        self._cache = cache

    def serve(self) -> None:
        """Answer until the client takes its leave.

        Raises:
            ConnectionError, EOFError: it was gone without that.
        """
        if self._negotiate():
            while self._request():
                pass

    def _negotiate(self) -> bool:
        self._socket.sendall(_MAGIC + _OPTION + struct.pack(">H", 3))
        self._take(4)
        while True:
            _, option, length = struct.unpack(">8sII", self._take(16))
            self._take(length)
            export = struct.pack(">QH", self._cache.size, _FLAGS)
            if option == _EXPORT_NAME:
                self._socket.sendall(export)
                return True
            if option in (_GO, _INFO):
                self._answer(option, _INFO_EXPORT, struct.pack(">H", 0) + export)
                self._answer(option, _ACK, b"")
                if option == _GO:
                    return True
            elif option == _ABORT:
                self._answer(option, _ACK, b"")
                return False
            else:
                self._answer(option, _UNSUPPORTED, b"")

    def _answer(self, option: int, kind: int, data: bytes) -> None:
        self._socket.sendall(struct.pack(">QIII", _REPLY, option, kind, len(data)) + data)

    def _request(self) -> bool:
        magic, flags, kind, handle, offset, length = struct.unpack(">IHHQQI", self._take(28))
        assert magic == _REQUEST, f"no request of NBD: {magic:x}"
        data = self._take(length) if kind == _WRITE else b""
        with self._cache.lock:
            if kind == _READ:
                data = self._cache.read(offset, length)
            elif kind == _WRITE:
                self._cache.write(offset, data)
            elif kind == _ZEROES:
                self._cache.write(offset, bytes(length))
            if kind == _FLUSH or flags & _FUA:
                self._cache.flush()
        if kind == _DISCONNECT:
            return False
        answer = data if kind == _READ else b""
        self._socket.sendall(struct.pack(">IIQ", _SIMPLE, 0, handle) + answer)
        return True

    def _take(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            data = self._socket.recv(length - len(parts))
            if not data:
                raise EOFError
            parts += data
        return bytes(parts)


def main(path: str, file: str, size: str, seed: str, mode: str) -> None:
    """Serve one client after the other on a unix socket."""
    cache = Cache(Path(file), int(size), int(seed), volatile=mode == "volatile")
    threading.Thread(target=_images, args=(cache,), daemon=True).start()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                try:
                    Connection(connection, cache).serve()
                except (ConnectionError, EOFError):
                    with cache.lock:
                        cache.lose()
            with cache.lock:
                cache.flush()


def _images(cache: Cache) -> None:
    for line in sys.stdin:
        cache.image(Path(line.rstrip("\n")))
        print("kept", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
