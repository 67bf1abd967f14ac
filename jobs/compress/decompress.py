"""Decompress a layer strictly: a truncated or damaged stream, or garbage after it, is an error (B6)."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from typing import BinaryIO, Final, cast

from layerfarm.jobs.compress.codecs import Compression, compression_of
from layerfarm.jobs.compress.digest_thread import Buffer, digested
from layerfarm.jobs.compress.zstd_frames import ZstdFrames, is_frame
from layerfarm.jobs.errors import LayerfarmError, MalformedLayer, TruncatedStream
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.limits import limits as process_limits
from layerfarm.jobs.tar.header import check_sum
from layerfarm.jobs.tar.reader import Readable
from layerfarm.jobs.tar.writer import BLOCK, ZERO_BLOCK

_INPUT: Final = 256 * 1024
_OUTPUT: Final = 1 << 20
_GZIP_MAGIC: Final = b"\x1f\x8b"
_FHCRC: Final = 2
_FEXTRA: Final = 4
_FNAME: Final = 8
_FCOMMENT: Final = 16
_LONGEST_GZIP_HEADER: Final = 1 << 20
"""Names and comments may have any length; Go accepts 512 bytes, an extra field has at most 65,535."""
_HIGHEST_WINDOW: Final = 1 << 31
_AHEAD: Final = 4
"""Pieces of at most ``_OUTPUT`` bytes that the read-ahead thread keeps ready."""

Pieces = Generator[bytes, None, None]


def decompress(
    stream: Readable,
    compression: Compression | str,
    *,
    limits: Limits | None = None,
    ahead: bool = False,
    seen: Callable[[Buffer], object] | None = None,
    advanced: Callable[[int], None] | None = None,
) -> PlainStream:
    """Return the uncompressed bytes of ``stream``, whose compression or layer media type is given.

    A media type may be wrong: skopeo wrote blobs of another compression than their type says, which containerd,
    Docker and buildah read, because they look at the bytes. So does this, and :attr:`PlainStream.compression` is the
    compression found. That reads the first bytes of ``stream``.

    Several gzip members or zstd frames may follow one another, zero bytes may follow the last gzip
    member. ``ahead``: decompress in a thread, a few MiB ahead of the reader, which must close the stream then.
    ``seen`` is called with every piece of the result, in order and before the reader meets the end; with ``ahead`` in
    one more thread: a digest computed there costs the reader no time. ``advanced`` is called by reads, with
    the compressed bytes since the last call, and may raise. ``stream`` is closed by the caller.

    Reading raises:
        TruncatedStream: the stream ends before its trailer.
        MalformedLayer: a checksum is wrong, or something else than padding follows.
        LimitExceeded: it unpacks to more than ``limits`` allow.

    Raises:
        UnsupportedMediaType: the media type is not a layer's.
    """
    source = _Source(stream)
    if isinstance(compression, Compression):
        known = compression.of_stream
    else:
        known = compression_in(source.peek(BLOCK), compression_of(compression))
    pieces = _bounded(_PIECES[known], source, limits or process_limits())
    if seen is not None:
        pieces = digested(pieces, seen, in_thread=ahead)
    return PlainStream(_ReadAhead(pieces) if ahead else pieces, known, source, advanced)


def compression_in(start: bytes, promised: Compression) -> Compression:
    """Return the compression of a blob with these first bytes, a block of a tar; ``promised`` if they fit none."""
    if len(start) == BLOCK:
        with suppress(MalformedLayer):
            if start != ZERO_BLOCK:
                check_sum(start)
            return Compression.NONE
    if start.startswith(_GZIP_MAGIC):
        return Compression.GZIP
    return Compression.ZSTD if is_frame(start[:4]) else promised


class PlainStream(io.RawIOBase):
    """A readable binary stream over uncompressed pieces."""

    def __init__(
        self,
        pieces: Iterator[bytes],
        compression: Compression,
        source: _Source,
        advanced: Callable[[int], None] | None,
    ) -> None:
        self._pieces = pieces
        self.compression: Final = compression
        """Compression of the actual bytes, whatever their media type says."""
        self.diff_id = ""
        """Digest of the whole stream, if the caller that computes it has set it."""
        self.hidden: frozenset[bytes] = frozenset()
        """Names of members that belong to the format of the layer and are not files, if the caller has set them."""
        self._source = source
        self._advanced = advanced
        self._reported = 0
        self._held = memoryview(b"")

    @property
    def size(self) -> int:
        """Uncompressed bytes read so far."""
        return self._source.unpacked

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to ``size`` bytes, at least one before the end; everything for a negative size."""
        if size is None or size < 0:
            return b"".join((bytes(self._held), *self._pieces))
        held = self._held
        if not held:
            held = memoryview(next(self._pieces, b""))
            if self._advanced is not None:
                fresh = self._source.count - self._reported
                self._reported += fresh
                self._advanced(fresh)
        self._held = held[size:]
        return held.obj if size >= len(held) == len(held.obj) else bytes(held[:size])  # type: ignore[arg-type,return-value]

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed and isinstance(self._pieces, _ReadAhead):
            self._pieces.stop()
        super().close()


def _bounded(make: Callable[[_Source, Limits], Iterator[bytes]], source: _Source, limits: Limits) -> Pieces:
    total = 0
    for piece in make(source, limits):
        total += len(piece)
        source.unpacked = total
        if total > limits.stream_bytes:
            raise limits.exceeded("stream_bytes", "layer unpacks to more than {} bytes")
        if total > limits.ratio_floor and total > limits.ratio * source.count:
            raise limits.exceeded("ratio", "layer unpacks to more than {} times its size")
        yield piece


class _Source:
    """The compressed stream, with the number of bytes read of it."""

    def __init__(self, stream: Readable) -> None:
        self._read = stream.read
        self._peeked = b""
        self.count = 0
        self.unpacked = 0
        """Bytes that were decompressed."""

    def peek(self, size: int) -> bytes:
        """Return the first ``size`` bytes, fewer only at the end; they are read again."""
        while len(self._peeked) < size and (piece := self._read(_INPUT)):
            self._peeked += piece
        return self._peeked[:size]

    def read(self, size: int) -> bytes:
        if self._peeked:
            piece, self._peeked = self._peeked[:size], self._peeked[size:]
        else:
            piece = self._read(size)
        self.count += len(piece)
        return piece


def _plain(source: _Source, limits: Limits) -> Iterator[bytes]:
    while piece := source.read(_OUTPUT):
        yield piece


def _gunzip(source: _Source, limits: Limits) -> Iterator[bytes]:
    # isal: 800 MB/s where the standard library's zlib gives 350, and max_length bounds what a bomb costs.
    from isal import isal_zlib

    held = source.read(_INPUT)
    if not held:
        raise TruncatedStream("gzip stream is empty")
    while held:
        held = _with_whole_header(held, source)
        member = isal_zlib.decompressobj(wbits=31)
        while not member.eof:
            if not held:
                raise TruncatedStream("gzip stream ends before its trailer")
            try:
                piece = member.decompress(held, _OUTPUT)
            except isal_zlib.error as error:  # type: ignore[misc]  # its stub forgets the base class
                raise MalformedLayer(f"gzip stream is damaged, {error}") from error
            if piece:
                yield piece
            held = member.unconsumed_tail or (b"" if member.eof else source.read(_INPUT))
        held = member.unused_data or source.read(_INPUT)
        if held[:1] == b"\0":
            # tar(1) and tape drives pad with zeros; umoci accepts them since 0.4.7.
            _expect_zeros(held, source)
            return
        if held and held[:1] != b"\x1f":
            raise MalformedLayer("garbage follows the gzip stream")


def _with_whole_header(held: bytes, source: _Source) -> bytes:
    """Read on until the gzip header at the start of ``held`` is whole; return all.

    isal rejects a header with several optional fields, or with a checksum, if it comes in parts.
    """
    while _GZIP_MAGIC.startswith(held[:2]):
        if _has_whole_header(held):
            break
        if len(held) > _LONGEST_GZIP_HEADER:
            raise MalformedLayer(f"gzip header is longer than {_LONGEST_GZIP_HEADER} bytes")
        more = source.read(_INPUT)
        if not more:
            raise TruncatedStream("gzip stream ends before its trailer")
        held += more
    return held


def _has_whole_header(data: bytes) -> bool:
    """Return True if the gzip header at the start of ``data`` is whole (RFC 1952 2.3)."""
    if len(data) < 12:
        return False
    flags = data[3]
    end = 10
    if flags & _FEXTRA:
        end = 12 + int.from_bytes(data[10:12], "little")
    for text in (_FNAME, _FCOMMENT):
        if flags & text:
            end = data.find(b"\0", end) + 1
            if not end:
                return False
    return end + (2 if flags & _FHCRC else 0) <= len(data)


def _expect_zeros(held: bytes, source: _Source) -> None:
    while held:
        if held.strip(b"\0"):
            raise MalformedLayer("garbage follows the gzip stream")
        held = source.read(_INPUT)


def _unzstd(source: _Source, limits: Limits) -> Iterator[bytes]:
    import zstandard

    # zstandard's reader takes the end of its input for the end of the data, even inside a frame, so the frames are
    # followed, and their window is checked: libzstd's own limit is only the maximum.
    frames = ZstdFrames(source, limits)
    reader = zstandard.ZstdDecompressor(max_window_size=_HIGHEST_WINDOW).stream_reader(
        cast("BinaryIO", frames), read_size=_INPUT, read_across_frames=True, closefd=False
    )
    try:
        while piece := reader.read(_OUTPUT):
            yield piece
    except (zstandard.ZstdError, MemoryError) as error:
        raise MalformedLayer(f"zstd stream is damaged, {error}") from error
    frames.finish()


_PIECES: dict[Compression, Callable[[_Source, Limits], Iterator[bytes]]] = {
    Compression.NONE: _plain,
    Compression.GZIP: _gunzip,
    Compression.ZSTD: _unzstd,
}


class _ReadAhead(Iterator[bytes]):
    """Pieces decompressed in a thread, a few ahead of the reader."""

    def __init__(self, pieces: Pieces) -> None:
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(pieces,), name="decompress", daemon=True)
        self._thread.start()

    def _run(self, pieces: Pieces) -> None:
        try:
            # Closed also when the reader stops early: it may own a thread.
            with closing(pieces):
                for piece in pieces:
                    if not self._put(piece):
                        return
        except BaseException as error:  # passed on, and raised where the bytes are read
            self._put(error)
        else:
            self._put(None)

    def _put(self, item: bytes | BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def __next__(self) -> bytes:
        if self._stopped.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, bytes):
            return item
        self.stop()
        if item is None:
            raise StopIteration
        # A new error each time would lose its type; LayerfarmErrors are raised as they are.
        raise item if isinstance(item, LayerfarmError | OSError) else RuntimeError("decompression failed") from item

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
