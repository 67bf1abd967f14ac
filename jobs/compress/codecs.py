"""How a layer's tar is compressed: gzip, zstd or not at all, with the same bytes on any number of threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from layerfarm.jobs.compress import gzip_blocks
from layerfarm.jobs.errors import RequestError, UnsupportedMediaType

if TYPE_CHECKING:
    from concurrent.futures import Future

BLOCK_SIZE: Final = 1 << 20
"""Uncompressed bytes of one gzip member: part of the bytes of a blob, like the level (DESIGN law 1)."""

_ZSTD_WINDOW_LOG: Final = 25
_ZSTD_JOB: Final = 16 << 20
_ZSTD_LONG_RATE: Final = 9
"""zstd finds what repeats within 32 MiB, as the best level of the Go tools' encoder does, so that all of them read
it. With long-distance matching level 2 then makes 0.84 times umoci's gzip blob of 137,000 files of a Debian machine;
level 3 with its own window of 2 MiB makes 0.86 of it. Long matches are looked for at one byte of 512, not of 128, which
takes 13 % less time and makes 1 % more bytes. Jobs of less than four windows, which is libzstd's choice, keep 2 threads
busy and memory lower."""

_MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"
_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"


class Compression(StrEnum):
    """The compressions of layer.md."""

    GZIP = "gzip"
    ZSTD = "zstd"
    NONE = "none"


# gzip's default is no level of one compressor: see layerfarm.jobs.compress.gzip_blocks.
_DEFAULT_LEVEL: dict[Compression, int | None] = {Compression.GZIP: None, Compression.ZSTD: 2, Compression.NONE: 0}
_LEVELS: dict[Compression, range] = {
    Compression.GZIP: range(1, 13),
    Compression.ZSTD: range(1, 20),
    Compression.NONE: range(1),
}


@dataclass(frozen=True)
class Codec:
    """A compression and how hard it tries. ``threads`` changes the speed, never the bytes."""

    compression: Compression = Compression.GZIP
    level: int | None = None
    """None: layerfarm's default for the compression."""
    threads: int = 1

    def __post_init__(self) -> None:
        levels = _LEVELS[self.compression]
        if self.level is not None and self.level not in levels:
            raise RequestError(
                f"{self.compression} has levels {levels.start} to {levels.stop - 1}", where=str(self.level)
            )
        if self.threads < 1:
            raise RequestError("a codec needs at least one thread", where=str(self.threads))

    @property
    def effective_level(self) -> int | None:
        """None: gzip's default, which is no single level."""
        return _DEFAULT_LEVEL[self.compression] if self.level is None else self.level


def media_type_for(compression: Compression) -> str:
    """The media type of a layer blob so compressed (layer.md)."""
    return _MEDIA_TYPE if compression is Compression.NONE else f"{_MEDIA_TYPE}+{compression}"


def compression_of(media_type: str) -> Compression:
    """The compression of a layer blob of this media type, the nondistributable ones included.

    Docker's own types, which separate the compression by a full stop, are read as well: some builders put
    them into OCI manifests (the .NET SDK), and containerd, Docker and buildah run those.

    Raises:
        UnsupportedMediaType: not a layer's (B6).
    """
    for bases, separator in (((_MEDIA_TYPE, _FOREIGN), "+"), ((_DOCKER, _DOCKER_FOREIGN), ".")):
        for base in bases:
            if media_type == base:
                return Compression.NONE
            for compression in (Compression.GZIP, Compression.ZSTD):
                if media_type == f"{base}{separator}{compression}":
                    return compression
    raise UnsupportedMediaType("not a layer media type that can be read", where=media_type)


def is_docker(media_type: str) -> bool:
    """The media type is one of Docker's for layers, not one of the image-spec."""
    return media_type.startswith((_DOCKER, _DOCKER_FOREIGN))


def is_foreign(media_type: str) -> bool:
    """The layer is one that is not to be distributed, but fetched from its urls."""
    return media_type.startswith((_FOREIGN, _DOCKER_FOREIGN))


def codec_id(codec: Codec) -> str:
    """Everything that decides a blob's bytes besides the tar, as one line to record beside it."""
    level = codec.effective_level
    if codec.compression is Compression.GZIP:
        if level is None:
            return f"gzip;{gzip_blocks.default_id()};block={BLOCK_SIZE}"
        import deflate

        return f"gzip;deflate={deflate.__version__};level={level};block={BLOCK_SIZE}"
    if codec.compression is Compression.ZSTD:
        import zstandard

        version = ".".join(map(str, zstandard.ZSTD_VERSION))
        return f"zstd;libzstd={version};level={level};window={_ZSTD_WINDOW_LOG};job={_ZSTD_JOB};long={_ZSTD_LONG_RATE}"
    return "none"


def compress(chunks: Iterable[bytes], codec: Codec) -> Iterator[bytes]:
    """The compressed stream, in pieces; how ``chunks`` are cut and how many threads work changes nothing."""
    if codec.compression is Compression.GZIP:
        return _gzip(chunks, codec)
    if codec.compression is Compression.ZSTD:
        return _zstd(chunks, codec)
    return iter(chunks)


def _gzip(chunks: Iterable[bytes], codec: Codec) -> Iterator[bytes]:
    """Fixed blocks, each a gzip member (RFC 1952 2.2: members simply follow one another).

    Where blocks are cut depends on the bytes alone, so any number of threads gives the same blob.
    """
    member = _member_of(codec.effective_level)
    if codec.threads == 1:
        for block in _blocks(chunks):
            yield member(block)
        return
    # Imported here: it costs 10 ms that commands which compress nothing need not pay.
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(codec.threads, thread_name_prefix="gzip")
    try:
        ahead: deque[Future[bytes]] = deque()
        for block in _blocks(chunks):
            ahead.append(pool.submit(member, block))
            # A few blocks per thread keep every thread busy and memory flat: an entry of many small files may
            # take as long to read as four blocks to compress.
            if len(ahead) >= 4 * codec.threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _member_of(level: int | None) -> Callable[[bytes], bytes]:
    """What makes a gzip member of a block."""
    if level is None:
        return gzip_blocks.compress_block
    from deflate import gzip_compress

    return lambda block: bytes(gzip_compress(block, level))


def _blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """``chunks`` cut anew into blocks of BLOCK_SIZE, the last one shorter; one empty block for no bytes."""
    held: list[bytes] = []
    size = 0
    any_block = False
    for chunk in chunks:
        if not size and len(chunk) == BLOCK_SIZE:
            # As layerfarm.jobs.layer.generate cuts them: nothing to copy.
            yield chunk
            any_block = True
            continue
        view = memoryview(chunk)
        while size + len(view) >= BLOCK_SIZE:
            cut = BLOCK_SIZE - size
            yield b"".join((*held, view[:cut]))
            any_block = True
            view = view[cut:]
            held, size = [], 0
        if view:
            held.append(bytes(view))
            size += len(view)
    if held or not any_block:
        yield b"".join(held)


def _zstd(chunks: Iterable[bytes], codec: Codec) -> Iterator[bytes]:
    """One frame with a content checksum. libzstd's jobs are cut by size, not by the number of threads.

    Its single-threaded mode (threads=0) gives other bytes, so one thread is asked for even then.
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
