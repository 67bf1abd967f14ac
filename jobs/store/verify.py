"""Read a blob and know, at its end, that it is the one that was promised."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
from types import TracebackType
from typing import TYPE_CHECKING, Any

from layerfarm.jobs.errors import DigestMismatch, SizeMismatch, StoreError
from layerfarm.jobs.store.descriptor import Descriptor

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ALGORITHMS = ("sha256", "sha512")
_BUFFER = 1024 * 1024


def hasher(digest: str) -> hashlib._Hash:
    """A hash object for the algorithm of ``digest``.

    Raises:
        StoreError: layerfarm does not know the algorithm.
    """
    algorithm = digest.partition(":")[0]
    if algorithm not in ALGORITHMS:
        raise StoreError("digest algorithm is not supported", where=digest, hint="sha256 and sha512 are")
    return hashlib.new(algorithm)


def check_content(descriptor: Descriptor, content: bytes) -> None:
    """Raises SizeMismatch or DigestMismatch unless ``content`` is what ``descriptor`` promises."""
    if len(content) != descriptor.size:
        raise SizeMismatch(f"blob has {len(content)} bytes, not {descriptor.size}", where=descriptor.digest)
    digest = hasher(descriptor.digest)
    digest.update(content)
    _compare(descriptor, digest)


def embedded_data(descriptor: Descriptor) -> bytes | None:
    """The content embedded in the descriptor, verified (descriptor.md "data"; umoci.md B2.8)."""
    if descriptor.data is None:
        return None
    try:
        content = base64.b64decode(descriptor.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DigestMismatch("embedded data of the descriptor is not base64", where=descriptor.digest) from error
    check_content(descriptor, content)
    return content


class _Checking(io.RawIOBase):
    """Passes the bytes of an open blob file on; the read that meets the end checks the digest."""

    def __init__(self, fd: int, descriptor: Descriptor) -> None:
        self._fd = fd
        self._descriptor = descriptor
        self._hash = hasher(descriptor.digest)
        self._left = descriptor.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if not view.nbytes:
            return 0
        if not self._left:
            self._end()
            return 0
        count = os.readv(self._fd, [view[: self._left]])
        if not count:
            raise SizeMismatch(f"blob ends {self._left} bytes too early", where=self._descriptor.digest)
        self._hash.update(view[:count])
        self._left -= count
        return count

    def _end(self) -> None:
        if os.read(self._fd, 1):
            raise SizeMismatch(f"blob is longer than {self._descriptor.size} bytes", where=self._descriptor.digest)
        _compare(self._descriptor, self._hash)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
            super().close()


class VerifiedReader(io.BufferedReader):
    """A blob opened for reading. The read that meets the end raises if the digest is wrong.

    Leaving its ``with`` block without an error reads what is left, so that nobody who read only a
    part believes in bytes that were never checked.

    Raises (while reading):
        DigestMismatch, SizeMismatch: the blob is not what the descriptor promises.
    """

    def __init__(self, fd: int, descriptor: Descriptor) -> None:
        super().__init__(_Checking(fd, descriptor), _BUFFER)

    def drain(self) -> None:
        """Read what is left, and so verify the whole."""
        while self.read(_BUFFER):
            pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> Any:
        try:
            if kind is None and not self.closed:
                self.drain()
        finally:
            self.close()


def _compare(descriptor: Descriptor, digest: hashlib._Hash) -> None:
    found = f"{digest.name}:{digest.hexdigest()}"
    if found != descriptor.digest:
        raise DigestMismatch(f"blob has digest {found}, not the promised one", where=descriptor.digest)
