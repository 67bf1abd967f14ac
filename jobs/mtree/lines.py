"""The lines of a manifest: of any length, numbered, with lookahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

from layerfarm.jobs.errors import MtreeSyntaxError
from layerfarm.jobs.limits import limits
from layerfarm.jobs.mtree import vis

_CHUNK = 1 << 20
_LONGEST_COMMENT = 64
"""Most line breaks in the path of one directory."""


class LineSource:
    """Iterates over the lines of a stream, without their line ends.

    Raises:
        LimitExceeded: a line is longer than the limit ``mtree_line_bytes`` (go-mtree's reader ends at 64 KiB).
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._chunks = _split(stream)
        self._ready: deque[bytes] = deque()
        self.number = 0
        self.current = b""

    def __iter__(self) -> Iterator[bytes]:
        ready = self._ready
        while ready or self._more():
            while ready:
                self.number += 1
                self.current = line = ready.popleft()
                yield line

    def continuation(self) -> bytes:
        """Return the line after the current one, which a backslash at its end continues."""
        if not self._ready and not self._more():
            raise MtreeSyntaxError("the last line ends in a backslash")
        self.number += 1
        return self._ready.popleft()

    def skip_rest_of_comment(self, text: bytes, prefix: bytes) -> None:
        """Skip the rest of the comment above a directory.

        go-mtree and NetBSD's mtree write the directory's path into it unencoded, NetBSD's also above its ``..``.
        After a line break in the path, the rest would be read as an entry (umoci then reports a missing file that never
        existed). Such a comment is recognized by the directory's own line after it, which has the same path, encoded.
        """
        text = text.removeprefix(b"./")
        if not text.startswith(prefix.partition(b"\n")[0].rstrip(b"/")):
            return
        for extra in range(_LONGEST_COMMENT):
            name = self._name_at(extra)
            if name is None:
                return
            if prefix + name == text or (name == b".." and prefix == text + b"/"):
                for _ in range(extra):
                    self._ready.popleft()
                self.number += extra
                return
            text += b"\n" + self._ready[extra]

    def _name_at(self, index: int) -> bytes | None:
        """Return the decoded first word of a later line, or of the one after it if it is a /set."""
        while True:
            while len(self._ready) <= index:
                if not self._more():
                    return None
            line = self._ready[index]
            if not line.startswith(b"/set "):
                break
            index += 1
        words = line.split(None, 1)
        try:
            return vis.decode(words[0]) if words else b""
        except MtreeSyntaxError:
            return b""

    def _more(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._ready.extend(chunk)
        return True


def _split(stream: BinaryIO) -> Iterator[list[bytes]]:
    rest: list[bytes] = []
    held = 0
    bounds = limits()
    while chunk := stream.read(_CHUNK):
        lines = chunk.split(b"\n")
        rest.append(lines[0])
        held += len(lines[0])
        if held > bounds.mtree_line_bytes:
            raise bounds.exceeded("mtree_line_bytes", "a line of the manifest is longer than {} bytes")
        if len(lines) > 1:
            lines[0] = b"".join(rest)
            rest = [lines.pop()]
            held = len(rest[0])
            yield lines
    if held:
        yield [b"".join(rest)]
