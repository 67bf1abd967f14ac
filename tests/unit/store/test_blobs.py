from __future__ import annotations

import base64
import hashlib
import os
import stat
from pathlib import Path

import pytest

from layerfarm.jobs.errors import BlobNotFound, DigestMismatch, LimitExceeded, SizeMismatch, StoreError
from layerfarm.jobs.store import Descriptor, Layout, VerifiedReader
from layerfarm.jobs.store.transfer import import_blob

TYPE = "application/octet-stream"


def describe(content: bytes, algorithm: str = "sha256", **fields: object) -> Descriptor:
    digest = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    return Descriptor.model_validate({"mediaType": TYPE, "digest": digest, "size": len(content)} | fields)


def staged(layout: Layout) -> list[str]:
    return os.listdir(layout.path / ".layerfarm" / "ingest")


def test_put_gives_the_descriptor_of_the_bytes_and_open_gives_the_bytes(layout: Layout) -> None:
    descriptor = layout.put([b"he", b"", b"llo"], TYPE, annotations={"a": "b"})
    assert descriptor == describe(b"hello", annotations={"a": "b"})
    assert layout.read(descriptor) == b"hello"
    assert layout.has(descriptor)
    assert staged(layout) == []


def test_empty_blob(layout: Layout) -> None:
    assert layout.read(layout.put(b"", TYPE)) == b""


def test_sha512_blobs_are_written_and_read(layout: Layout) -> None:
    with layout.ingest("sha512") as blob:
        blob.write(b"hello")
        digest, size = blob.commit()
    assert digest == describe(b"hello", "sha512").digest
    assert layout.read(describe(b"hello", "sha512")) == b"hello"
    assert size == 5


def test_ingest_left_without_commit_leaves_nothing(layout: Layout) -> None:
    with layout.ingest() as blob:
        blob.write(b"half")
        assert len(staged(layout)) == 1
    assert staged(layout) == []
    with pytest.raises(RuntimeError), layout.ingest() as blob:
        blob.write(b"half")
        raise RuntimeError
    assert staged(layout) == []
    assert os.listdir(layout.path / "blobs" / "sha256") == []


def test_failing_source_leaves_no_blob(layout: Layout) -> None:
    def chunks() -> object:
        yield b"some"
        raise RuntimeError("source")

    with pytest.raises(RuntimeError, match="source"):
        layout.put(chunks(), TYPE)  # type: ignore[arg-type]
    assert staged(layout) == []
    assert os.listdir(layout.path / "blobs" / "sha256") == []


def test_commit_refuses_unexpected_bytes(layout: Layout) -> None:
    expected = describe(b"hello")
    with layout.ingest() as blob:
        blob.write(b"hellO")
        with pytest.raises(DigestMismatch):
            blob.commit((expected.digest, 5))
    with layout.ingest() as blob:
        blob.write(b"hello!")
        with pytest.raises(SizeMismatch):
            blob.commit((expected.digest, 5))
    assert not layout.has(expected)
    assert staged(layout) == []


def test_ingest_is_committed_once(layout: Layout) -> None:
    with layout.ingest() as blob:
        blob.commit()
        with pytest.raises(StoreError):
            blob.commit()


def test_blob_that_is_there_is_kept_and_marked_as_used(layout: Layout) -> None:
    descriptor = layout.put(b"hello", TYPE)
    path = layout.blob_path(descriptor.digest)
    os.utime(path, (1, 1))
    inode = path.stat().st_ino
    layout.put(b"hello", TYPE)
    assert path.stat().st_ino == inode
    assert path.stat().st_mtime > 1
    assert staged(layout) == []


def test_blob_of_a_wrong_size_is_healed_by_the_next_put(layout: Layout) -> None:
    descriptor = layout.put(b"hello", TYPE)
    layout.blob_path(descriptor.digest).write_bytes(b"")
    layout.put(b"hello", TYPE)
    assert layout.read(descriptor) == b"hello"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_B7_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        layout = Layout.create(tmp_path / "store")
        descriptor = layout.put(b"hello", TYPE)
        layout.tag("a", descriptor)
    finally:
        os.umask(old)
    for path in layout.path.rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert (path.name, oct(stat.S_IMODE(path.stat().st_mode))) == (path.name, oct(wanted))


def test_B7_what_root_writes_belongs_to_the_owner_of_the_layout(tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "store")
    for path in (layout.path, *layout.path.rglob("*")):
        os.chown(path, 1234, 5678)
    descriptor = layout.put(b"hello", TYPE)
    layout.tag("a", descriptor)
    with layout.ingest("sha512") as blob:  # makes blobs/sha512
        blob.commit()
    assert {(path.stat().st_uid, path.stat().st_gid) for path in layout.path.rglob("*")} == {(1234, 5678)}


def test_missing_blob(layout: Layout) -> None:
    with pytest.raises(BlobNotFound):
        layout.open_blob(describe(b"nothing"))
    with pytest.raises(BlobNotFound):
        layout.read(describe(b"nothing", "sha512"))
    assert not layout.has(describe(b"nothing"))
    assert not layout.has(describe(b"nothing", "sha512"))


def test_blob_of_another_size_is_refused_before_it_is_read(layout: Layout) -> None:
    descriptor = layout.put(b"hello", TYPE)
    path = layout.blob_path(descriptor.digest)
    for content in (b"hello!", b"hell", b""):
        path.write_bytes(content)
        assert not layout.has(descriptor)
        with pytest.raises(SizeMismatch):
            layout.open_blob(descriptor)


def test_corrupt_blob_raises_at_its_end(layout: Layout) -> None:
    content = bytes(3 << 20)
    descriptor = layout.put(content, TYPE)
    layout.blob_path(descriptor.digest).write_bytes(content[:-1] + b"x")
    with pytest.raises(DigestMismatch), layout.open_blob(descriptor) as stream:
        assert stream.read(1 << 20) == content[: 1 << 20]
        while stream.read(1 << 20):
            pass
        raise AssertionError("the end was reached")


def test_leaving_a_half_read_blob_verifies_the_rest(layout: Layout) -> None:
    content = bytes(3 << 20)
    descriptor = layout.put(content, TYPE)
    layout.blob_path(descriptor.digest).write_bytes(content[:-1] + b"x")
    with pytest.raises(DigestMismatch), layout.open_blob(descriptor) as stream:
        stream.read(1)


def test_error_inside_the_block_is_not_hidden_by_the_verification(layout: Layout) -> None:
    descriptor = layout.put(b"hello", TYPE)
    layout.blob_path(descriptor.digest).write_bytes(b"hellO")
    with pytest.raises(RuntimeError, match="mine"), layout.open_blob(descriptor):
        raise RuntimeError("mine")


@pytest.mark.parametrize("content", [b"ab", b"abcdefgh"])
def test_B2_8_blob_that_changes_its_size_while_it_is_read(layout: Layout, content: bytes) -> None:
    descriptor = layout.put(b"abcd", TYPE)
    path = layout.blob_path(descriptor.digest)
    with pytest.raises(SizeMismatch), layout.open_blob(descriptor) as stream:
        path.write_bytes(content)  # the same inode, which is open
        stream.read()
        raise AssertionError("the end was reached")


def test_B2_8_negative_size_is_no_descriptor() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        describe(b"", size=-1)


def test_B2_8_embedded_data_is_verified_and_used_when_the_blob_is_missing(layout: Layout) -> None:
    good = base64.b64encode(b"hello").decode()
    assert layout.read(describe(b"hello", data=good)) == b"hello"
    for data, error in (
        (base64.b64encode(b"hellO").decode(), DigestMismatch),
        (base64.b64encode(b"hell").decode(), SizeMismatch),
        ("?", DigestMismatch),
    ):
        with pytest.raises(error):
            layout.read(describe(b"hello", data=data))
        layout.put(b"hello", TYPE)
        with pytest.raises(error):
            layout.read(describe(b"hello", data=data))


def test_read_is_limited(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = layout.put(b"hello", TYPE)
    monkeypatch.setenv("LAYERFARM_LIMIT_DOCUMENT_BYTES", "5")
    assert layout.read(descriptor) == b"hello"
    monkeypatch.setenv("LAYERFARM_LIMIT_DOCUMENT_BYTES", "4")
    with pytest.raises(LimitExceeded, match="larger than 4 bytes"):
        layout.read(descriptor)


def test_unknown_algorithm_is_refused(layout: Layout) -> None:
    descriptor = Descriptor.model_validate({"mediaType": TYPE, "digest": "blake9:abc", "size": 3})
    with pytest.raises(StoreError, match="not supported"):
        layout.open_blob(descriptor)


@pytest.mark.parametrize("digest", ["", "sha256:..", "sha256:../../index.json", "a", "sha256:" + "A" * 64])
def test_digest_that_could_be_a_path_is_refused(layout: Layout, digest: str) -> None:
    with pytest.raises(StoreError):
        layout.blob_path(digest)


def test_blob_that_is_a_fifo_does_not_hang(layout: Layout) -> None:
    descriptor = describe(b"")
    os.mkfifo(layout.blob_path(descriptor.digest))
    with pytest.raises(StoreError, match="not a regular file"):
        layout.open_blob(descriptor)


def test_blob_that_another_process_writes_to_is_not_stored(layout: Layout) -> None:
    with layout.ingest() as blob:
        blob.write(b"hello")
        (name,) = staged(layout)
        with (layout.path / ".layerfarm/ingest" / name).open("ab") as other:
            other.write(b"!")
        with pytest.raises(StoreError, match="changed by another process"):
            blob.commit()
    assert staged(layout) == os.listdir(layout.path / "blobs/sha256") == []


def test_reading_nothing_verifies_nothing_and_closing_twice_closes_no_file_of_another(layout: Layout) -> None:
    descriptor = layout.put(b"hello", TYPE)
    layout.blob_path(descriptor.digest).write_bytes(b"hellO")
    stream = layout.open_blob(descriptor)
    assert isinstance(stream, VerifiedReader)
    reader = stream.raw
    assert reader.readinto(bytearray()) == 0  # type: ignore[attr-defined]
    assert reader.readinto(bytearray(5)) == 5  # type: ignore[attr-defined]
    fd = reader.fileno()
    reader.close()
    with open(os.devnull, "rb") as other:
        assert other.fileno() == fd
        reader.close()
        assert other.read() == b""


def test_blob_that_another_host_sees_late_is_waited_for(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = layout.put(b"hello", TYPE)
    path = layout.blob_path(descriptor.digest)
    path.rename(layout.path / "unseen")
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            (layout.path / "unseen").rename(path)

    monkeypatch.setattr("layerfarm.jobs.store.layout.late_pauses", lambda path: (1.0, 2.0, 3.0))
    monkeypatch.setattr("layerfarm.jobs.store.layout.time.sleep", sleep)
    assert layout.read(descriptor) == b"hello"
    assert waited == [1.0, 2.0]


def test_embedded_blob_is_not_lacking(layout: Layout) -> None:
    embedded = describe(b"hello", data=base64.b64encode(b"hello").decode())
    assert not layout.lacks(embedded)
    assert layout.lacks(describe(b"hello"))


@pytest.mark.parametrize("known", [True, False])
def test_imported_file_is_a_blob_like_any_other(layout: Layout, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """``known``: /proc, which tells the umask, is mounted."""
    if not known:
        monkeypatch.setattr("layerfarm.jobs.store.transfer.umask", lambda: None)
    path, descriptor = layout.path / ".layerfarm/ingest/file", describe(b"hello")
    old = os.umask(0o027)
    try:
        for new in (True, False):
            path.write_bytes(b"hello")
            path.chmod(0o600)
            assert import_blob(layout, path, descriptor) is new
            assert not path.exists()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert layout.read(descriptor) == b"hello"
    assert stat.S_IMODE(layout.blob_path(descriptor.digest).stat().st_mode) == 0o640


def test_file_that_is_another_blob_is_not_imported_and_stays(layout: Layout) -> None:
    path = layout.path / ".layerfarm/ingest/file"
    path.write_bytes(b"hellO")
    with pytest.raises(DigestMismatch):
        import_blob(layout, path, describe(b"hello"))
    assert path.read_bytes() == b"hellO" and not layout.has(describe(b"hello"))
