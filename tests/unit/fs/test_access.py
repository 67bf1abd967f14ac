from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfarm.jobs.errors import LimitExceeded, RootfsNotFound, TreeChanged, UnsafePath
from layerfarm.jobs.fs import (
    Beneath,
    DirectoryCache,
    Rootfs,
    clear_xattrs,
    get_xattrs,
    proc_path,
    read_regular,
    resolve,
    set_xattr,
    stat_regular,
)
from layerfarm.jobs.fs.mounts import filesystem_type
from tests.leaks import Held


@pytest.fixture(params=["openat2", "walk"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "_kernel_has_openat2", request.param == "openat2")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "d/e").mkdir(parents=True)
    (root / "d/f").write_bytes(b"content")
    (root / "link").symlink_to("d")
    (root / "file-link").symlink_to("/d/f")
    (root / "outside").symlink_to(tmp_path / "secret")
    (root / "dangling").symlink_to("nowhere")
    (tmp_path / "secret").write_text("secret")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return root


@pytest.fixture
def root(path: Path) -> Iterator[int]:
    with Rootfs(path) as opened:
        yield opened.fd


def test_rootfs_is_closed_with_its_block(path: Path) -> None:
    with Rootfs(path) as opened:
        fd = opened.fd
        assert os.path.samestat(os.fstat(fd), path.stat())
    with pytest.raises(OSError):
        os.fstat(fd)
    opened.close()


def test_rootfs_that_does_not_exist_or_is_a_file_is_reported(path: Path) -> None:
    with pytest.raises(RootfsNotFound, match="does not exist"):
        Rootfs(path / "none")
    with pytest.raises(RootfsNotFound, match="not a directory"):
        Rootfs(path / "d/f")


def test_directory_cache_gives_the_parent_and_the_name(root: int, path: Path) -> None:
    with DirectoryCache(root) as cache:
        for wanted, parent in ((b"d/e/x", "d/e"), (b"d/f", "d"), (b"d", "."), (b".", ".")):
            fd, name = cache.parent(wanted)
            assert os.path.samestat(os.fstat(fd), (path / parent).stat())
            assert name == os.path.basename(wanted)


def test_directory_cache_opens_each_directory_once_and_keeps_few(root: int, path: Path) -> None:
    for number in range(10):
        (path / f"n{number}").mkdir()
    held = Held()
    with DirectoryCache(root, limit=3) as cache:
        assert cache.directory(b"n0") == cache.directory(b"n0")
        for number in range(10):
            fd = cache.directory(b"n%d" % number)
            assert os.path.samestat(os.fstat(fd), (path / f"n{number}").stat())
        assert len(held.new()) == 3
    assert not held.new()


def test_directory_cache_follows_no_link(root: int) -> None:
    with DirectoryCache(root) as cache, pytest.raises(UnsafePath):
        cache.parent(b"link/f")


def test_regular_file_is_opened_with_its_status(root: int, path: Path) -> None:
    with DirectoryCache(root) as cache:
        parent, name = cache.parent(b"d/f")
        fd, found = stat_regular(parent, name)
        assert os.path.samestat(found, (path / "d/f").stat())
        assert os.read(fd, 100) == b"content"
        os.close(fd)
        os.close(stat_regular(parent, "f")[0])


@pytest.mark.parametrize("name", [b"fifo", b"null", b"link", b"file-link", b"d"])
def test_anything_else_is_never_opened_as_a_file(root: int, name: bytes) -> None:
    held = Held()
    with pytest.raises(TreeChanged, match="not a regular file"):
        stat_regular(root, name)
    assert not held.new()


def test_missing_file_is_the_callers_affair(root: int) -> None:
    with pytest.raises(FileNotFoundError):
        stat_regular(root, b"none")


@pytest.mark.parametrize("name", [b"d/f", b"/d/f", b"file-link", b"link/f", b"../d/f"])
def test_small_file_is_read_through_links_in_root(root: int, name: bytes) -> None:
    assert read_regular(root, name, 7) == b"content"


@pytest.mark.parametrize("name", [b"none", b"fifo", b"null", b"d", b"outside", b"dangling", b"d/f/x"])
def test_D_etc_passwd_anything_but_a_regular_file_inside_counts_as_absent(root: int, name: bytes) -> None:
    assert read_regular(root, name, 100) is None


def test_file_over_the_limit_is_refused(root: int, path: Path) -> None:
    with pytest.raises(LimitExceeded, match="6 bytes"):
        read_regular(root, b"d/f", 6)
    os.truncate(path / "d/f", 1 << 40)  # sparse: reading it would take for ever
    with pytest.raises(LimitExceeded):
        read_regular(root, b"d/f", 1 << 20)


def test_content_that_the_size_of_the_file_does_not_show_is_limited_too() -> None:
    with Rootfs(Path("/proc/self")) as proc:
        assert os.stat("status", dir_fd=proc.fd).st_size == 0
        assert b"Pid:" in (read_regular(proc.fd, b"status", 1 << 20) or b"")
        with pytest.raises(LimitExceeded, match="10 bytes: status"):
            read_regular(proc.fd, b"status", 10)


@pytest.mark.parametrize("replaced", [False, True])
def test_without_proc_a_file_is_opened_by_its_name_and_only_if_it_is_the_one_that_was_checked(
    root: int, path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    real = os.open

    def without_proc(name: bytes | str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if not os.fsencode(name).startswith(b"/proc/"):
            return real(name, flags, mode, dir_fd=dir_fd)
        if replaced:
            (path / "d/f").unlink()
            (path / "d/f").write_bytes(b"another")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(os, "open", without_proc)
    held = Held()
    if replaced:
        with pytest.raises(TreeChanged, match="file was replaced by another one: d/f"):
            read_regular(root, b"d/f", 100)
    else:
        assert read_regular(root, b"d/f", 100) == b"content"
    assert not held.new()


def test_a_root_that_was_never_locked_is_regained_as_it_is(path: Path) -> None:
    with Rootfs(path, to_be_read=True) as opened:
        before = os.fstat(opened.fd)
        opened.regain()
        assert os.fstat(opened.fd) == before


def test_the_regular_files_of_a_directory_are_read_at_once_and_no_link_is_followed(path: Path) -> None:
    files = Beneath(path)
    (path / "d/empty").touch()
    (path / "d/link").symlink_to("f")
    os.mkfifo(path / "d/fifo")
    assert sorted(files.contents(path / "d")) == [("empty", b""), ("f", b"content")]
    assert list(files.contents(path / "none")) == list(files.contents(path / "d/f")) == []
    with pytest.raises(UnsafePath):
        list(files.contents(path / "link"))


def test_the_kind_of_a_file_system_that_is_not_mounted_here_is_unknown() -> None:
    assert filesystem_type(os.stat("/proc/self").st_dev) == "proc"
    assert filesystem_type(os.makedev(4095, 1048575)) == ""


def test_xattrs_of_a_link_a_device_and_a_fifo_are_their_own(root: int, path: Path) -> None:
    for name in (b"link", b"null", b"fifo"):
        set_xattr(proc_path(root, name), b"trusted.test", name)
    assert get_xattrs(proc_path(root, b"link")) == ((b"trusted.test", b"link"),)
    assert get_xattrs(proc_path(root, b"null")) == ((b"trusted.test", b"null"),)
    assert get_xattrs(proc_path(root, b"fifo")) == ((b"trusted.test", b"fifo"),)
    assert os.listxattr(path / "d") == []


def test_xattrs_of_a_descriptor_are_sorted_and_complete(path: Path) -> None:
    names = [b"user.z", b"user.a", b"user.\xff odd", b"trusted.m"]
    with Rootfs(path) as opened:
        for name in names:
            set_xattr(opened.fd, name, name * 20)
        assert get_xattrs(opened.fd) == tuple((name, name * 20) for name in sorted(names))
        clear_xattrs(opened.fd, keep=frozenset((b"user.a",)))
        assert get_xattrs(opened.fd) == ((b"user.a", b"user.a" * 20),)
        clear_xattrs(opened.fd)
        assert get_xattrs(opened.fd) == ()


def test_a_filesystem_without_xattrs_has_none() -> None:
    assert get_xattrs(b"/proc/self/status") == ()
    clear_xattrs(b"/proc/self/status")
