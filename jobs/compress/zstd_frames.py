"""The frames of a zstd stream (RFC 8878 section 3), to tell a whole stream from a truncated one."""

from __future__ import annotations

from typing import Final

from layerfarm.jobs.errors import MalformedLayer, TruncatedStream
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.tar.reader import Readable

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_DICTIONARY_BYTES: Final = (0, 1, 2, 4)
_RLE_BLOCK: Final = 1
_LARGEST_BLOCK: Final = 128 * 1024


def is_frame(magic: bytes) -> bool:
    """Return True if these 4 bytes begin a zstd frame, or a skippable one (RFC 8878 3.1.1 and 3.1.2)."""
    return magic == _MAGIC or (len(magic) == 4 and 0x50 <= magic[0] <= 0x5F and magic[1:] == b"\x2a\x4d\x18")


def _may_be_frame(start: bytes) -> bool:
    return _MAGIC.startswith(start) or 0x50 <= start[0] <= 0x5F


class ZstdFrames:
    """Passes a stream on and follows its frame and block headers, 3 bytes per block of up to 128 KiB.

    Reading raises:
        MalformedLayer: a header breaks the format.
        LimitExceeded: a frame has a larger window, which the decompressor must hold, than ``limits`` allow.
    """

    def __init__(self, source: Readable, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._held = b""
        """Start of an incomplete header."""
        self._skip = 0
        """Remaining bytes of block content."""
        self._in_frame = False
        self._checksum = False
        self._empty = True

    def read(self, size: int = -1, /) -> bytes:
        piece = self._source.read(size)
        if piece:
            self._empty = False
            self._follow(piece)
        return piece

    def finish(self) -> None:
        """Check that the source has ended with a frame.

        Raises:
            TruncatedStream: it ended inside a frame, or before the first one.
        """
        if self._empty:
            raise TruncatedStream("zstd stream is empty")
        if self._in_frame or self._skip or self._held:
            raise TruncatedStream("zstd stream ends inside a frame")

    def _follow(self, piece: bytes) -> None:
        data = self._held + piece if self._held else piece
        at = 0
        while True:
            step = min(self._skip, len(data) - at)
            at += step
            self._skip -= step
            if self._skip or at == len(data):
                self._held = b""
                return
            used = self._block(data, at) if self._in_frame else self._frame(data, at)
            if not used:
                self._held = data[at:]
                return
            at += used

    def _frame(self, data: bytes, at: int) -> int:
        """Return the bytes of the frame header at ``at``, 0 if it is incomplete."""
        magic = data[at : at + 4]
        if not is_frame(magic) and (len(magic) == 4 or not _may_be_frame(magic)):
            raise MalformedLayer("garbage where a zstd frame should begin")
        if len(data) - at < 8:
            # A frame is at least 4 bytes of magic, 2 of header and a 3-byte block.
            return 0
        if magic != _MAGIC:
            self._skip = int.from_bytes(data[at + 4 : at + 8], "little")
            return 8
        descriptor = data[at + 4]
        single_segment = bool(descriptor & 0x20)
        size_bytes = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
        length = 5 + (not single_segment) + _DICTIONARY_BYTES[descriptor & 3] + size_bytes
        if len(data) - at < length:
            return 0
        content = int.from_bytes(data[at + length - size_bytes : at + length], "little")
        if single_segment:
            window = content + (256 if size_bytes == 2 else 0)
        else:
            exponent, mantissa = divmod(data[at + 5], 8)
            window = (8 + mantissa) << (7 + exponent)
        if window > self._limits.zstd_window:
            raise self._limits.exceeded("zstd_window", "zstd frame has a window of more than {} bytes")
        self._in_frame = True
        self._checksum = bool(descriptor & 0x04)
        return length

    def _block(self, data: bytes, at: int) -> int:
        """Return the bytes of the block header at ``at``, 0 if it is incomplete."""
        if len(data) - at < 3:
            return 0
        header = int.from_bytes(data[at : at + 3], "little")
        size = header >> 3
        if size > _LARGEST_BLOCK:
            raise MalformedLayer("zstd block is larger than the format allows")
        self._skip = 1 if header >> 1 & 3 == _RLE_BLOCK else size
        if header & 1:
            self._in_frame = False
            self._skip += 4 * self._checksum
        return 3
