"""One block of a layer as a gzip member: which compressor takes it, and the same bytes on every machine.

By default a block goes to the compressor that spends its time best. isal is two to three times as fast as libdeflate,
and its members are larger: not at all where content is noise, by 5 to 10 % in code and text, by 20 to 30 % in tables
of symbols and addresses (it finds no match of three bytes). A sample of 16 KiB is compressed by both: where isal makes
it more than 8 % larger, the block is libdeflate's. How well a sample compresses says much less: a choice by that takes
14 to 33 % more time for the same size. Of 137,000 files of a Debian machine, 2.4 GB of tar, measured on one core:

====================================  ========  =====================
compressor                            MB/s      blob, umoci's is 1
====================================  ========  =====================
libdeflate level 1                    237       1.024
libdeflate level 2                    201       0.982
isal level 2                          626       1.067
isal level 3                          426       1.046
zlib-ng level 2                       180       1.045
by the sample, libdeflate level 2     448       1.044
====================================  ========  =====================

isal 1.9.1 gives the same bytes at level 2 on all x86 processors since SSE 4.2 (compared: Nehalem, Sandy Bridge,
Haswell, EPYC with AVX-512); its level 3 does not, and elsewhere it takes another hash. Where it gives other bytes it is
not used: see :func:`isal_serves`.
"""

from __future__ import annotations

from functools import cache
from typing import Final
from zlib import crc32

DENSE_LEVEL: Final = 2
"""libdeflate's, for blocks that isal makes much larger."""
_PLAIN_LEVEL: Final = 1
"""libdeflate's for all blocks where isal does not serve."""
_MUCH: Final = 1.08
"""Of the size that libdeflate makes of a sample."""
_SLICE: Final = 8 << 10
_ISAL_LEVEL: Final = 2
_WINDOW_BITS: Final = 15
_KNOWN_ANSWER: Final = 0xFBA119BE
"""CRC-32 of what isal makes of the probe, on the processors named above."""


def compress_block(block: bytes) -> bytes:
    """``block`` as one gzip member, at the default level."""
    from deflate import gzip_compress

    if not isal_serves():
        return bytes(gzip_compress(block, _PLAIN_LEVEL))
    sample = _sample(block)
    if len(_isal(sample)) > _MUCH * len(gzip_compress(sample, DENSE_LEVEL)):
        return bytes(gzip_compress(block, DENSE_LEVEL))
    return _isal(block)


def default_id() -> str:
    """The compressors of the default level and their versions: what decides the bytes besides the content."""
    import deflate

    if not isal_serves():
        return f"deflate={deflate.__version__};level={_PLAIN_LEVEL}"
    import isal

    return f"isal={isal.__version__};deflate={deflate.__version__};level=default.2"


@cache
def isal_serves() -> bool:
    """Whether this machine's isal makes the bytes that it makes on most machines: a question with a known answer.

    Not so on processors that are no x86, or are older than SSE 4.2.
    """
    probe = b"".join(b"%d %d\n" % (number * number % 1009, number % 97) for number in range(4000))
    return crc32(_isal(probe)) == _KNOWN_ANSWER


def _isal(data: bytes) -> bytes:
    from isal import igzip_lib

    return igzip_lib.compress(data, _ISAL_LEVEL, igzip_lib.COMP_GZIP, igzip_lib.MEM_LEVEL_DEFAULT, _WINDOW_BITS)


def _sample(block: bytes) -> bytes:
    """The middle of each half of a block, or all of a small one."""
    if len(block) <= 2 * _SLICE:
        return block
    half = len(block) // 2
    first = (half - _SLICE) // 2
    return block[first : first + _SLICE] + block[half + first : half + first + _SLICE]
