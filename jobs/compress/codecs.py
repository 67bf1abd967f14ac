"""Compression of a layer's tar: gzip, zstd or none, with the same bytes on any number of threads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final
from zlib import crc32

from layerfarm.jobs.compress.digest_thread import Buffer, digested
from layerfarm.jobs.compress.in_order import in_order
from layerfarm.jobs.errors import RequestError, UnsupportedMediaType

BLOCK_SIZE: Final = 1 << 20
"""Uncompressed bytes of one gzip member: part of the bytes of a blob, like the level (law 1, docs/architecture.md)."""
DENSE_LEVEL: Final = 3
"""Level of libdeflate, for blocks that isal makes much larger."""
_PLAIN_LEVEL: Final = 1
"""Level of libdeflate for all blocks on machines whose isal is not used."""
_MUCH: Final = 1.10
"""Multiple of libdeflate's size of a sample, above which libdeflate compresses the block."""
_MUCH_OF_TEXT: Final = 1.05
"""The same for samples that libdeflate makes smaller than :data:`_TEXT` of their size."""
_TEXT: Final = 0.36
_RULE: Final = 3
"""Incremented when another compressor or level may be chosen for a block: it is part of the codec's name."""
_SLICE: Final = 8 << 10
_ISAL_LEVEL: Final = 2
_WINDOW_BITS: Final = 15
_KNOWN_ANSWER: Final = 0xFBA119BE
"""CRC-32 of isal's output for the probe of :func:`isal_serves`, on the processors named in :func:`compress_block`."""

_ZSTD_WINDOW_LOG: Final = 25
_ZSTD_JOB: Final = 16 << 20
_ZSTD_LONG_RATE: Final = 9
"""zstd finds repetitions within 32 MiB, as the best level of the Go tools' encoder does, so that all of them read
it. With long-distance matching level 2 then makes 0.84 times umoci's gzip blob of 137,000 files of a Debian machine;
level 3 with its own window of 2 MiB makes 0.86 of it. Long matches are searched at one byte of 512, not of 128, which
takes 13 % less time and makes 1 % more bytes. Jobs of less than four windows, which is libzstd's choice, keep 2 threads
busy and memory lower."""
_CHUNKED_FORMAT: Final = 1
"""Incremented when layerfarm cuts zstd:chunked frames, or describes them, differently."""
_ESTARGZ_FORMAT: Final = 1
"""The same for the members of eStargz."""

_MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"
_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"


class Compression(StrEnum):
    """The compressions of layer.md."""

    GZIP = "gzip"
    ESTARGZ = "estargz"
    """gzip in a member for each file, with a table of contents for clients that fetch files when they are read."""
    ZSTD = "zstd"
    ZSTD_CHUNKED = "zstd:chunked"
    """zstd in a frame for each file, with a table of contents for clients that pull in part. Readers see zstd."""
    NONE = "none"

    @property
    def of_stream(self) -> Compression:
        """Return the compression as readers see it, and as media types name it."""
        return _OF_STREAM.get(self, self)


_OF_STREAM: Final = {Compression.ZSTD_CHUNKED: Compression.ZSTD, Compression.ESTARGZ: Compression.GZIP}


_COMPRESSIONS: Final = {
    base if compression is Compression.NONE else f"{base}{separator}{compression}": compression
    for base, separator in ((_MEDIA_TYPE, "+"), (_FOREIGN, "+"), (_DOCKER, "."), (_DOCKER_FOREIGN, "."))
    for compression in Compression
    if compression is compression.of_stream
}
# gzip's default is not one compressor's level: see compress_block.
_DEFAULT_LEVEL: dict[Compression, int | None] = {
    Compression.GZIP: None,
    Compression.ESTARGZ: 6,
    Compression.ZSTD: 2,
    Compression.ZSTD_CHUNKED: 6,
    Compression.NONE: 0,
}
_LEVELS: dict[Compression, range] = {
    Compression.GZIP: range(1, 13),
    Compression.ESTARGZ: range(1, 13),
    Compression.ZSTD: range(1, 20),
    Compression.ZSTD_CHUNKED: range(1, 20),
    Compression.NONE: range(1),
}


@dataclass(frozen=True)
class Codec:
    """A compression and its level. ``threads`` changes the speed, never the bytes."""

    compression: Compression = Compression.GZIP
    level: int | None = None
    """None: layerfarm's default for the compression."""
    threads: int = 1
    prefetch: Sequence[str] = ()
    """Paths in the image that a client of eStargz fetches before they are read, in this order."""

    def __post_init__(self) -> None:
        if self.prefetch and self.compression is not Compression.ESTARGZ:
            raise RequestError(f"only eStargz layers have files to prefetch, not {self.compression}")
        levels = _LEVELS[self.compression]
        if self.level is not None and self.level not in levels:
            raise RequestError(
                f"{self.compression} has levels {levels.start} to {levels.stop - 1}", where=str(self.level)
            )
        if self.threads < 1:
            raise RequestError("number of threads is below one", where=str(self.threads))

    @property
    def effective_level(self) -> int | None:
        """Return the level; None: gzip's default, which is not a single level."""
        return _DEFAULT_LEVEL[self.compression] if self.level is None else self.level


def media_type_for(compression: Compression) -> str:
    """Return the media type of a layer blob of this compression (layer.md)."""
    return _MEDIA_TYPE if compression is Compression.NONE else f"{_MEDIA_TYPE}+{compression.of_stream}"


def compression_of(media_type: str) -> Compression:
    """Return the compression of a layer blob of this media type, the nondistributable ones included.

    Docker's own types, which separate the compression by a full stop, are accepted: some builders put
    them into OCI manifests (the .NET SDK), and containerd, Docker and buildah run those.

    Raises:
        UnsupportedMediaType: it is not a layer's (B6).
    """
    try:
        return _COMPRESSIONS[media_type]
    except KeyError:
        raise UnsupportedMediaType("unsupported media type of a layer", where=media_type) from None


def is_docker(media_type: str) -> bool:
    """Return True if the media type is one of Docker's for layers, not one of the image-spec."""
    return media_type.startswith((_DOCKER, _DOCKER_FOREIGN))


def is_foreign(media_type: str) -> bool:
    """Return True if the layer must not be distributed, only fetched from its urls."""
    return media_type.startswith((_FOREIGN, _DOCKER_FOREIGN))


def codec_id(codec: Codec) -> str:
    """Return everything that decides a blob's bytes besides the tar, as one line to record beside it."""
    level = codec.effective_level
    if codec.compression.of_stream is Compression.ZSTD:
        import zstandard

        version = ".".join(map(str, zstandard.ZSTD_VERSION))
        if codec.compression is Compression.ZSTD_CHUNKED:
            return f"zstd:chunked;libzstd={version};level={level};format={_CHUNKED_FORMAT}"
        return f"zstd;libzstd={version};level={level};window={_ZSTD_WINDOW_LOG};job={_ZSTD_JOB};long={_ZSTD_LONG_RATE}"
    if codec.compression is Compression.NONE:
        return "none"
    import deflate

    if codec.compression is Compression.ESTARGZ:
        first = f";prefetch={sha256(json.dumps(codec.prefetch).encode()).hexdigest()[:16]}" if codec.prefetch else ""
        return f"estargz;deflate={deflate.__version__};level={level};format={_ESTARGZ_FORMAT}{first}"
    if level is not None or not isal_serves():
        return f"gzip;deflate={deflate.__version__};level={level or _PLAIN_LEVEL};block={BLOCK_SIZE}"
    import isal

    return f"gzip;isal={isal.__version__};deflate={deflate.__version__};level=default.{_RULE};block={BLOCK_SIZE}"


@dataclass
class Notes:
    """Information about a blob, available once it is written."""

    annotations: dict[str, str] = field(default_factory=dict)
    """For the descriptor of the layer."""
    warnings: list[str] = field(default_factory=list)


def compress(
    chunks: Iterable[bytes],
    codec: Codec,
    notes: Notes | None = None,
    seen: Callable[[Buffer], object] | None = None,
    scratch: Path | None = None,
) -> Generator[bytes, None, None]:
    """Yield the compressed stream in pieces, the same for any cut of ``chunks`` and any number of threads.

    ``seen`` is called with every piece of the tar in the stream, in order; with several threads in one of its own.
    That is ``chunks``, to which eStargz adds entries. ``notes`` is filled at the end. ``scratch``: the directory for
    an unnamed file that holds a tar whose files are to be prefetched.
    """
    if codec.compression is Compression.ESTARGZ:
        from layerfarm.jobs.compress.estargz.writer import write as write_estargz

        yield from write_estargz(chunks, codec, notes or Notes(), seen or _unseen, scratch)
        return
    # The thread that produces the tar limits the speed with many small files; the digest took a third of its time.
    with closing(digested(chunks, seen or _unseen, in_thread=codec.threads > 1 and seen is not None)) as pieces:
        match codec.compression:
            case Compression.GZIP:
                yield from _gzip(pieces, codec)
            case Compression.ZSTD:
                yield from _zstd(pieces, codec)
            case Compression.ZSTD_CHUNKED:
                # Imported here: only this compression needs the tar reader.
                from layerfarm.jobs.compress.zstd_chunked.writer import write

                yield from write(pieces, codec, notes or Notes())
            case Compression.NONE:
                yield from pieces


def _unseen(data: Buffer) -> None:
    pass


class Blocks:
    """Cuts a stream into blocks of BLOCK_SIZE bytes, the last one shorter.

    Layers are produced in such blocks, content is read into the block itself, and the compressor takes them unchanged:
    joining read data into pieces and those into blocks took 0.6 s of CPU for 2.3 GB.
    """

    def __init__(self) -> None:
        self._block = memoryview(bytearray(BLOCK_SIZE))
        self._used = 0

    def put(self, data: bytes | memoryview) -> Sequence[bytes]:
        """Append ``data``; return the blocks that are full."""
        end = self._used + len(data)
        if end <= BLOCK_SIZE:
            if len(data) == BLOCK_SIZE and isinstance(data, bytes):
                return (data,)  # nothing to copy
            self._block[self._used : end] = data
            self._used = end
            return ()
        filled = []
        rest = memoryview(data)
        while rest:
            part, rest = rest[: BLOCK_SIZE - self._used], rest[BLOCK_SIZE - self._used :]
            self._block[self._used : self._used + len(part)] = part
            self._used += len(part)
            if rest:
                filled.append(self.rest())
        return filled

    def read(self, fd: int, size: int) -> tuple[int, Sequence[bytes]]:
        """Append up to ``size`` bytes of an open file; return how many there were, and the block if it is full."""
        full = (self.rest(),) if self._used == BLOCK_SIZE else ()
        count = os.readv(fd, [self._block[self._used : self._used + size]])
        self._used += count
        return count, full

    def rest(self) -> bytes:
        """Return the remaining bytes, which are in no block before."""
        block = bytes(self._block[: self._used])
        self._used = 0
        return block


# --- gzip ----------------------------------------------------------------------------------------------


def _gzip(chunks: Iterable[bytes], codec: Codec) -> Iterator[bytes]:
    """Yield fixed blocks, each a gzip member (RFC 1952 2.2: members simply follow one another).

    Blocks are cut by size alone, so any number of threads gives the same blob.
    """
    return in_order(_member_of(codec.effective_level), _blocks(chunks), codec.threads, "gzip")


def _blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield ``chunks`` in blocks of BLOCK_SIZE, the last one shorter; one empty block for no bytes."""
    blocks = Blocks()
    any_block = False
    for chunk in chunks:
        for block in blocks.put(chunk):
            any_block = True
            yield block
    last = blocks.rest()
    if last or not any_block:
        yield last


def _member_of(level: int | None) -> Callable[[bytes], bytes]:
    """Return the function that makes a gzip member of a block."""
    if level is None:
        return compress_block
    from deflate import gzip_compress

    return lambda block: bytes(gzip_compress(block, level))


def compress_block(block: bytes) -> bytes:
    """Return ``block`` as one gzip member at the default level, by the compressor that suits its content.

    isal is three to four times as fast as libdeflate, and its members are larger: not at all for noise, by 8 % for
    code, by 10 to 20 % for text, by 20 to 30 % for tables of symbols and addresses (it finds no match of three bytes,
    and of the candidates for a longer one it tries only the last). A sample of 16 KiB is compressed by both.
    libdeflate takes the block if isal makes the sample more than 10 % larger, or 5 % if libdeflate makes less than
    0.36 of it: that is text, where libdeflate is fastest, and where many repetitions lie further apart than in a
    sample. Blobs of five kinds of trees (TUNED in tests/bench/kinds.py), as multiples of umoci's:

    ====================================  ======  ======  ============  ============  ==============
    compressor                            Debian  Python  node_modules  machine code  text and media
    ====================================  ======  ======  ============  ============  ==============
    isal level 2                          1.053   1.096   1.162         1.056         1.044
    libdeflate level 2                    0.971   1.006   1.043         0.985         1.004
    libdeflate level 3                    0.964   0.989   1.009         0.976         0.996
    level 2 above 8 %, for any sample     1.036   1.082   1.140         1.041         1.038
    as here                               1.028   1.040   1.027         1.035         1.018
    ====================================  ======  ======  ============  ============  ==============

    isal 1.9.1 gives the same bytes at level 2 on all x86 processors since SSE 4.2 (compared: Nehalem, Sandy Bridge,
    Haswell, EPYC with AVX-512); its level 3 does not, and elsewhere it takes another hash. Where it gives other bytes
    it is not used: see :func:`isal_serves`.
    """
    from deflate import gzip_compress

    if not isal_serves():
        return bytes(gzip_compress(block, _PLAIN_LEVEL))
    sample = _sample(block)
    dense = len(gzip_compress(sample, DENSE_LEVEL))
    if len(_isal(sample)) > dense * (_MUCH_OF_TEXT if dense < _TEXT * len(sample) else _MUCH):
        return bytes(gzip_compress(block, DENSE_LEVEL))
    return _isal(block)


@cache
def isal_serves() -> bool:
    """Test with a known answer that this machine's isal makes the bytes that it makes on most machines.

    It does not on processors other than x86, or older than SSE 4.2.
    """
    probe = b"".join(b"%d %d\n" % (number * number % 1009, number % 97) for number in range(4000))
    return crc32(_isal(probe)) == _KNOWN_ANSWER


def _isal(data: bytes) -> bytes:
    from isal import igzip_lib

    return igzip_lib.compress(data, _ISAL_LEVEL, igzip_lib.COMP_GZIP, igzip_lib.MEM_LEVEL_DEFAULT, _WINDOW_BITS)


def _sample(block: bytes) -> bytes:
    """Return the middle of each half of a block, or all of a small one."""
    if len(block) <= 2 * _SLICE:
        return block
    half = len(block) // 2
    first = (half - _SLICE) // 2
    return block[first : first + _SLICE] + block[half + first : half + first + _SLICE]


# --- zstd ----------------------------------------------------------------------------------------------


def _zstd(chunks: Iterable[bytes], codec: Codec) -> Iterator[bytes]:
    """Yield one frame with a content checksum. libzstd's jobs are cut by size, not by the number of threads.

    Its single-threaded mode (threads=0) gives other bytes, so one thread is requested even then.
    """
    import zstandard

    level = codec.effective_level
    assert level is not None
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        threads=codec.threads,
        write_checksum=True,
        window_log=_ZSTD_WINDOW_LOG,
        job_size=_ZSTD_JOB,
        enable_ldm=True,
        ldm_hash_rate_log=_ZSTD_LONG_RATE,
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    for chunk in chunks:
        piece = compressor.compress(chunk)
        if piece:
            yield piece
    yield compressor.flush()
