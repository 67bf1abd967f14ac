"""The default gzip: the same bytes on any processor and any number of threads, and what it gives up in size."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from zstandard import backend_c

from layerfarm.jobs.compress import Codec, Compression, codec_id, codecs, compress

TEXT = b"".join(b"line %d of some text that compresses\n" % n for n in range(30_000))
NOISE = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(40_000))
CODE = Path(backend_c.__file__).read_bytes()[: 2 << 20]
_WORDS = [NOISE[at : at + 3] for at in range(0, 64 * 32, 32)]
TABLES = b"".join(b"%b%c" % (_WORDS[NOISE[at] % 64], NOISE[-at]) for at in range(1, 1 << 18))
"""Repetitions of three bytes, as in a program's tables of addresses: isal finds no such match."""
SOURCES = b"".join(
    file.name.encode().ljust(512, b"\0") + file.read_bytes()
    for file in sorted(Path(codecs.__file__).parents[1].rglob("*.py"))
)[: 1 << 20]
"""Small files of text."""
CONTENT = TEXT + NOISE + CODE + TABLES
"""Data for isal, incompressible data, and, at the end, data for libdeflate."""

_REPORT = """
import hashlib, sys
from layerfarm.jobs.compress.codecs import Codec, codec_id, compress
print(codec_id(Codec()), hashlib.sha256(b"".join(compress([sys.stdin.buffer.read()], Codec()))).hexdigest())
"""


def blob(data: bytes, codec: Codec) -> bytes:
    return b"".join(compress((data[at : at + 100_000] for at in range(0, len(data), 100_000)), codec))


def emulated(program: Callable[[str], str], processor: str) -> list[str]:
    """The codec and the digest of CONTENT's blob, as that processor makes it."""
    run = subprocess.run(
        [program("qemu-x86_64"), "-cpu", processor, os.path.realpath(sys.executable), "-c", _REPORT],
        input=CONTENT,
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return run.stdout.decode().split()


@pytest.mark.large
@pytest.mark.parametrize("processor", ["Nehalem", "Haswell"])
def test_B1_20_other_processors_make_the_same_blob(program: Callable[[str], str], processor: str) -> None:
    here = [codec_id(Codec()), hashlib.sha256(b"".join(compress([CONTENT], Codec()))).hexdigest()]
    assert emulated(program, processor) == here


@pytest.mark.large
def test_a_processor_on_which_isal_makes_other_bytes_does_without_it_and_says_so(
    program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "isal_serves", lambda: False)
    codec, digest = emulated(program, "qemu64")
    assert codec == codec_id(Codec())
    assert "isal" not in codec
    assert digest == hashlib.sha256(blob(CONTENT, Codec(level=1))).hexdigest()


@pytest.mark.large
@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.ZSTD, Compression.NONE])
def test_B1_20_threads_change_no_byte_of_a_layer_of_many_blocks_and_jobs(compression: Compression) -> None:
    data = CONTENT * 9  # 60 MB: several jobs of zstd, each behind the window of the one before
    assert len({hashlib.sha256(blob(data, Codec(compression, threads=n))).digest() for n in (1, 2, 7)}) == 1


@pytest.mark.parametrize(
    ("content", "most"), [(TEXT, 1.05), (NOISE, 1.001), (CODE, 1.12), (TABLES, 1.1), (SOURCES, 1.07)]
)
def test_each_kind_of_content_is_about_as_small_as_zlib_makes_it(content: bytes, most: float) -> None:
    assert len(blob(content, Codec())) <= most * len(zlib.compress(content, 6))


def test_content_that_isal_makes_much_larger_is_given_to_libdeflate() -> None:
    for content in (TABLES, SOURCES):
        assert codecs.compress_block(content) == blob(content, Codec(level=codecs.DENSE_LEVEL))
    for content in (TEXT, NOISE, CODE):
        block = content[: 1 << 20]
        assert codecs.compress_block(block) != blob(block, Codec(level=codecs.DENSE_LEVEL))


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 16_385, 16_386])
def test_small_blocks_round_trip(size: int) -> None:
    assert zlib.decompress(codecs.compress_block(TEXT[:size]), 31) == TEXT[:size]
