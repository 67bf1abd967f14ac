"""Digests computed in a thread thread: complete, in order, and no error lost."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from layerfarm.jobs.compress.codecs import Codec, Compression, compress
from layerfarm.jobs.compress.decompress import decompress
from layerfarm.jobs.compress.digest_thread import Buffer, DigestThread
from layerfarm.jobs.layer import ExtractOptions
from tests.leaks import Held
from tests.unit.layer.archives import applied_entries, archive, entry

BLOB = b"".join(compress([bytes(range(256)) * 20_000], Codec()))


def test_pieces_are_seen_in_order_and_all_before_wait_returns() -> None:
    seen: list[Buffer] = []
    thread = DigestThread()
    for number in range(100):
        thread.put(seen.append, b"%d" % number)
    thread.wait()
    assert seen == [b"%d" % number for number in range(100)]
    thread.close()


def test_an_error_beside_is_raised_by_put_and_wait_and_nothing_is_called_after_it() -> None:
    seen: list[Buffer] = []

    def refuse(piece: Buffer) -> None:
        seen.append(piece)
        raise MemoryError("no")

    thread = DigestThread()
    with pytest.raises(MemoryError):
        for number in range(100):
            thread.put(refuse, b"%d" % number)
    with pytest.raises(MemoryError):
        thread.wait()
    assert seen == [b"0"]
    thread.close()


@pytest.mark.parametrize("ahead", [False, True])
def test_reading_to_the_end_shows_everything(ahead: bool) -> None:
    digest = hashlib.sha256()
    with decompress(io.BytesIO(BLOB), Compression.GZIP, ahead=ahead, seen=digest.update) as reader:
        assert hashlib.sha256(reader.read()).digest() == digest.digest()


@pytest.mark.parametrize("ahead", [False, True])
def test_an_error_of_the_observer_reaches_the_reader(ahead: bool) -> None:
    def refuse(piece: Buffer) -> None:
        raise OSError("no")

    with (
        pytest.raises(OSError, match="no"),
        decompress(io.BytesIO(BLOB), Compression.GZIP, ahead=ahead, seen=refuse) as reader,
    ):
        reader.read()


def test_a_reader_that_stops_early_leaves_no_thread() -> None:
    held = Held()
    with decompress(io.BytesIO(BLOB), Compression.GZIP, ahead=True, seen=lambda piece: None) as reader:
        reader.read(1)
    assert not held.new()


@pytest.mark.parametrize("size", [0, 1, 256 * 1024 - 1, 256 * 1024, (1 << 20) + 1, 5_000_000])
def test_a_file_hashed_beside_has_the_digest_of_its_content(tmp_path: Path, size: int) -> None:
    content = (b"%d\n" % size * size)[:size]
    found = applied_entries(
        tmp_path, archive(entry("first"), entry("f", content=content), entry("g", content=content[::-1]))
    )
    assert [(e.path, e.size, e.sha256) for e in found if e.path in (b"f", b"g")] == [
        (b"f", size, hashlib.sha256(content).hexdigest()),
        (b"g", size, hashlib.sha256(content[::-1]).hexdigest()),
    ]
    assert (tmp_path / "f").read_bytes() == content


def test_without_hashing_no_thread_is_started(tmp_path: Path) -> None:
    held = Held()
    options = ExtractOptions(hash_content=False)
    found = applied_entries(tmp_path, archive(entry("f", content=bytes(1 << 20))), options=options)
    assert [e.sha256 for e in found] == [None, None]
    assert not held.new()
