"""tar-split data: all bytes of a tar that are not the content of a file, from which a client makes the tar again.

One JSON document a line, as vbatts/tar-split writes them: the bytes before each content (type 2), and the name, size
and CRC-64 of each content (type 1). Podman computes the diff_id of a layer that it pulled in part from it.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Final

FILE: Final = 1
SEGMENT: Final = 2


class TarSplitWriter:
    """Writes the lines of a layer, in the order of its bytes."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._position = 0

    def segment(self, data: bytes) -> None:
        """Bytes of headers and padding. A header and the extended headers before it are in one segment."""
        self._line(b'"type":%d,"payload":"%b"' % (SEGMENT, b64encode(data)))

    def file(self, name: str, size: int, crc: int | None) -> None:
        """Write an entry of the tar; ``crc`` is that of its content, None without content."""
        text = json.dumps(name, ensure_ascii=False).encode()
        sized = b',"size":%d' % size if size else b""
        payload = b"null" if crc is None else b'"%b"' % b64encode(crc.to_bytes(8, "big"))
        self._line(b'"type":%d,"name":%b%b,"payload":%b' % (FILE, text, sized, payload))

    def _line(self, fields: bytes) -> None:
        self._write(b'{%b,"position":%d}\n' % (fields, self._position))
        self._position += 1
