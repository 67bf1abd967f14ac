"""Extended attributes: none where there can be none, and what goes away meanwhile is no error."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.fs import xattrs
from layerfarm.jobs.fs.xattrs import clear_xattrs, get_xattrs, proc_path, set_xattr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "f"
    found.write_bytes(b"")
    for name, value in (("user.a", b"1"), ("user.b", b"x" * 3000), ("trusted.c", b"")):
        os.setxattr(found, name, value)
    return found


def test_without_proc_a_missing_file_is_missing_and_the_working_directory_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xattrs, "_DESCRIPTORS", b"/no/proc/is/mounted/")
    before = Path.cwd()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        with pytest.raises(FileNotFoundError):
            get_xattrs(proc_path(directory, b"none"))
        with pytest.raises(FileNotFoundError):
            set_xattr(proc_path(directory, b"none"), b"user.a", b"1")
    finally:
        os.close(directory)
    assert Path.cwd() == before != path.parent


class Forbidding:
    """A libc whose unshare(2) is forbidden, as by a seccomp profile."""

    def unshare(self, flags: int) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1


def test_without_proc_and_without_unshare_there_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xattrs, "_DESCRIPTORS", b"/no/proc/is/mounted/")
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: Forbidding())
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        with pytest.raises(PermissionError, match="a thread cannot have its own working directory"):
            get_xattrs(proc_path(directory, b"f"))
    finally:
        os.close(directory)


def failing(number: int) -> Callable[..., Any]:
    def call(*args: object, **kwargs: object) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("descriptors", [b"/proc/self/fd/", b"/no/proc/is/mounted/"], ids=os.fsdecode)
def test_all_are_read_in_order_and_all_but_those_to_be_kept_are_cleared(
    path: Path, monkeypatch: pytest.MonkeyPatch, descriptors: bytes
) -> None:
    monkeypatch.setattr(xattrs, "_DESCRIPTORS", descriptors)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        target = proc_path(directory, b"f")
        assert get_xattrs(target) == ((b"trusted.c", b""), (b"user.a", b"1"), (b"user.b", b"x" * 3000))
        clear_xattrs(target, keep=frozenset((b"user.a", b"user.none")))
        set_xattr(target, b"user.d", b"2")
        assert get_xattrs(target) == ((b"user.a", b"1"), (b"user.d", b"2"))
    finally:
        os.close(directory)


def test_a_link_has_its_own_and_its_target_is_left_alone(path: Path) -> None:
    (path.parent / "l").symlink_to("f")
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        link = proc_path(directory, b"l")
        set_xattr(link, b"trusted.l", b"of the link")
        assert get_xattrs(link) == ((b"trusted.l", b"of the link"),)
        clear_xattrs(link)
        assert get_xattrs(link) == () and len(os.listxattr(path)) == 3
    finally:
        os.close(directory)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_filesystem_without_xattrs_has_none_to_read_or_clear(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "listxattr", failing(number))
    assert get_xattrs(os.fsencode(path)) == ()
    clear_xattrs(os.fsencode(path))
    monkeypatch.undo()
    assert len(os.listxattr(path)) == 3


@pytest.mark.parametrize("call", [get_xattrs, clear_xattrs])
def test_another_error_is_one(call: Callable[[bytes], Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        call(os.fsencode(tmp_path / "none"))


def test_xattrs_removed_after_listing_are_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listxattr", lambda *args, **kwargs: ["user.a", "user.gone"])
    assert get_xattrs(os.fsencode(path)) == ((b"user.a", b"1"),)
    clear_xattrs(os.fsencode(path))
    assert get_xattrs(os.fsencode(path)) == ()


def test_one_that_cannot_be_read_or_removed_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getxattr", failing(errno.EACCES))
    monkeypatch.setattr(os, "removexattr", failing(errno.EACCES))
    for call in (get_xattrs, clear_xattrs):
        with pytest.raises(PermissionError):
            call(os.fsencode(path))
