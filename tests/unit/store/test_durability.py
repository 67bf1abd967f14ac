"""State of the disk after faults of the disk, the owner or the machine."""

from __future__ import annotations

import errno
import itertools
import os
import signal
from pathlib import Path

import pytest

from layerfarm.jobs.errors import MalformedDocument, StoreError, UnsafePath
from layerfarm.jobs.flows.base import WorkDirectory
from layerfarm.jobs.fs import Beneath
from layerfarm.jobs.store import Descriptor, Document, Layout, atomic_file, encode_document, janitor, parse_document
from layerfarm.jobs.store.atomic_file import make_directory
from layerfarm.jobs.store.leases import Leases

A = Descriptor.model_validate({"mediaType": "a/b", "digest": "sha256:" + "a" * 64, "size": 1})


def fail(code: int) -> object:
    def raising(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return raising


def staged(layout: Layout) -> list[str]:
    return os.listdir(layout.path / ".layerfarm/ingest")


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_full_disk_is_one_clear_error_and_leaves_nothing(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(os, call, fail(errno.ENOSPC))
    with pytest.raises(StoreError, match="No space left on device"):
        layout.put(b"hello", "a/b")
    with pytest.raises(StoreError, match=r"index\.json cannot be updated, No space left"):
        layout.tag("t", A)
    monkeypatch.undo()
    assert staged(layout) == []
    assert list((layout.path / "blobs/sha256").iterdir()) == []
    assert layout.tags() == []


@pytest.mark.parametrize("left", ["nothing", "its mount point"])
def test_where_the_store_was_nothing_comes_into_being(layout: Layout, left: str) -> None:
    """Its disk is not mounted any more: data written there now would be hidden by the next mount."""
    layout.path.rename(layout.path.with_name("elsewhere"))
    if left != "nothing":
        layout.path.mkdir()
    for write in (
        lambda: layout.put(b"hello", "a/b"),
        lambda: layout.tag("t", A),
        lambda: Leases(layout.path).add("job", 10, [A.digest]),
        lambda: WorkDirectory(layout.path, "job").create(),
    ):
        with pytest.raises((StoreError, FileNotFoundError), match="layout no longer exists"):
            write()
    assert layout.path.exists() == (left != "nothing")
    assert left == "nothing" or os.listdir(layout.path) == []


def test_blob_is_synced_before_it_gets_its_name_and_its_directory_after(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)

        def note(*args: object, _name: str = name, _real: object = real, **places: int) -> object:
            what = f"{places['src_dir_fd']}/{args[0]}" if _name == "rename" else args[0]
            kind = "dir" if os.path.isdir(f"/proc/self/fd/{what}") else "file"
            calls.append(f"{_name} {kind}")
            return _real(*args, **places)  # type: ignore[operator]

        monkeypatch.setattr(os, name, note)
    layout.put(b"hello", "a/b")
    assert calls == ["fsync file", "rename file", "fsync dir"]
    calls.clear()
    layout.tag("t", A)
    assert calls == ["fsync file", "rename file", "fsync dir"]


def test_filesystem_that_cannot_sync_a_directory_is_no_failure(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert layout.read(layout.put(b"hello", "a/b")) == b"hello"


def test_directory_that_cannot_be_synced_is_an_error(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreError, match="blob cannot be stored, Input/output error"):
        layout.put(b"hello", "a/b")
    assert staged(layout) == []


def test_directory_that_another_process_creates_at_the_same_time_is_used(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, path = os.mkdir, layout.path / "blobs/sha512"

    def mkdir(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(name, mode, dir_fd=dir_fd)
        real(name, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", mkdir)
    make_directory(path, layout.path)
    assert path.is_dir()


def test_owner_that_cannot_be_given_leaves_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(layout.path, 1234, 1234)
    monkeypatch.setattr(os, "fchown", fail(errno.EIO))
    with pytest.raises(StoreError, match="Input/output error"):
        layout.put(b"hello", "a/b")
    monkeypatch.undo()
    assert staged(layout) == []


def test_files_keep_their_owner_where_chown_is_forbidden(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root without CAP_CHOWN, or squashed by an NFS server, is like an ordinary user."""
    os.chown(layout.path, 1234, 1234)
    monkeypatch.setattr(os, "fchown", fail(errno.EPERM))
    assert layout.read(layout.put(b"hello", "a/b")) == b"hello"


def test_killed_writer_leaves_only_what_the_janitor_removes(layout: Layout) -> None:
    writer = os.fork()
    if writer == 0:
        blob = layout.ingest()
        blob.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(writer, 0)
    assert len(staged(layout)) == 1
    assert list((layout.path / "blobs/sha256").iterdir()) == []
    janitor(layout.path, -1.0)
    assert staged(layout) == []


def test_killed_holder_of_the_lock_does_not_block_the_next(layout: Layout) -> None:
    holder = os.fork()
    if holder == 0:
        layout.update_index(lambda index: os.kill(os.getpid(), signal.SIGKILL) or index)  # type: ignore[func-returns-value]
    os.waitpid(holder, 0)
    layout.tag("t", A)
    assert layout.tags() == ["t"]


def test_lock_file_is_never_removed(layout: Layout) -> None:
    layout.tag("t", A)
    inode = (layout.path / ".layerfarm/index.lock").stat().st_ino
    layout.untag("t")
    assert (layout.path / ".layerfarm/index.lock").stat().st_ino == inode


def test_lock_file_that_is_a_link_is_refused(layout: Layout, tmp_path: Path) -> None:
    (layout.path / ".layerfarm/index.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePath, match=r"not a regular file: .*/\.layerfarm/index\.lock"):
        layout.tag("t", A)
    assert not (tmp_path / "elsewhere").exists()


def test_something_else_where_a_directory_should_be(layout: Layout) -> None:
    (layout.path / "blobs/sha512").touch()
    with pytest.raises(StoreError), layout.ingest("sha512") as blob:
        blob.commit()
    assert staged(layout) == []


class Thing(Document):
    name: str
    more: list[Document] = []


def test_document_that_is_no_object() -> None:
    for raw in (b"[]", b"1", b'"x"', b"null"):
        with pytest.raises(MalformedDocument, match="not an object"):
            parse_document(Thing, raw, "here")


def test_schema_error_names_the_place_in_one_line() -> None:
    with pytest.raises(MalformedDocument, match=r"name: missing: here$"):
        parse_document(Thing, b"{}", "here")


def test_equal_documents_may_have_their_keys_in_another_order_but_keep_it() -> None:
    one = parse_document(Thing, b'{"z":1,"name":"n","more":[{"b":1,"a":2}]}', "x")
    two = parse_document(Thing, b'{"more":[{"a":2,"b":1}],"name":"n","z":1}', "x")
    assert one == two
    assert encode_document(one) == b'{"z":1,"name":"n","more":[{"b":1,"a":2}]}'
    assert encode_document(two) == b'{"more":[{"a":2,"b":1}],"name":"n","z":1}'
    assert one != one.model_copy(update={"name": "m"})


def test_directory_that_cannot_be_created_is_named_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.create(tmp_path / "store")
    monkeypatch.setattr(os, "mkdir", fail(errno.EACCES))
    with pytest.raises(PermissionError) as caught:
        WorkDirectory(layout.path, "JOB").create()
    assert Path(caught.value.filename).is_relative_to(layout.path / ".layerfarm")


@pytest.mark.parametrize("times", [1, 30, None])
def test_index_that_another_host_replaces_while_it_is_read_is_read_again(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, times: int | None
) -> None:
    """NFS reports the old file as stale, many times if others write all the time. Only for ever is it an error."""
    layout.tag("t", A)
    real, stale = Beneath.read, itertools.repeat(None, times) if times else itertools.repeat(None)

    def read(self: Beneath, path: Path, most: int = -1) -> bytes:
        if next(stale, 1) is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(self, path, most)

    monkeypatch.setattr(Beneath, "read", read)
    monkeypatch.setattr(atomic_file, "_STALE", (0.05, 31 if times else 3))
    if times:
        assert Layout.open(layout.path).tags() == ["t"]
    else:
        with pytest.raises(StoreError, match="file cannot be read, Stale file handle"):
            Layout.open(layout.path).tags()


@pytest.mark.parametrize("times", [1, 30, None])
def test_index_that_another_host_replaces_while_its_layout_is_opened_is_looked_at_again(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, times: int | None
) -> None:
    """Kernels ask a second time by themselves, which is too seldom where many hosts write."""
    real, stale = Path.stat, itertools.repeat(None, times) if times else itertools.repeat(None)

    def stat(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if self.name == "index.json" and next(stale, 1) is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return real(self, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(atomic_file, "_STALE", (0.05, 31 if times else 3))
    if times:
        assert Layout.open(layout.path).tags() == []
    else:
        with pytest.raises(OSError, match=r"Stale file handle.*index\.json"):
            Layout.open(layout.path)


def test_file_that_is_removed_on_another_host_while_it_is_opened_stays_open_nowhere(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS server gives the old file, by its handle, as long as any process has it open."""
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", fail(errno.ESTALE))
        with pytest.raises(OSError, match="Stale file handle"):
            Beneath(layout.path).open(layout.path / "index.json")
    assert os.listdir("/proc/self/fd") == before


def test_directories_are_opened_before_names_are_relied_on_so_that_nfs_looks_them_up(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Close-to-open consistency is of what is opened, and a name is the directory's; O_PATH opens nothing."""
    blob = layout.put(b"x", "a/b")
    steps: list[str] = []
    opened, status = os.open, os.stat

    def open_(path: str | Path, flags: int, *rest: int, **options: int) -> int:
        if not flags & os.O_PATH:
            steps.append(os.fspath(path))
        return opened(path, flags, *rest, **options)

    def stat(path: str | Path, *rest: int, **options: int) -> os.stat_result:
        steps.append(str(path))
        return status(path, *rest, **options)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "stat", stat)
    layout.tags()
    assert steps == [str(layout.path), "index.json"]
    steps.clear()
    layout.tag("t", blob, [blob])
    assert steps.index(str(layout.path)) < steps.index("index.json")
    place = layout.blob_path(blob.digest)
    assert steps.index(str(place.parent)) < steps.index(str(place))


def test_layout_that_may_only_be_searched_is_read(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refused(path: str | Path, flags: int, *rest: int, **options: int) -> int:
        if flags & os.O_DIRECTORY and not flags & os.O_PATH:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refused)
    assert layout.tags() == []
