"""A small tree of every kind of entry, and what can be done to it: one change of each kind, alone."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

from tests.trees import Node, char, directory, fifo, file, hardlink, symlink

SPEC: dict[bytes, Node] = {
    b".": directory(),
    b"a": file(b"content of a", mode=0o4755),
    b"b": file(b"content of b", xattrs={"user.small": b"1", "user.big": b"x" * 3000}),
    b"same-size": file(b"AAAA"),
    b"twin": file(b"linked"),
    b"twin-2": hardlink(b"twin"),
    b"link": symlink(b"a"),
    b"null": char(1, 3),
    b"pipe": fifo(),
    b"odd \xff\nname": file(b"odd"),
    b"d": directory(uid=7, gid=8, mode=0o1777),
    b"d/f": file(b"f", uid=7, gid=8),
    b"d/g": file(b"g"),
    b"d/sub": directory(),
    b"d/sub/deep": file(b"deep"),
    b"d/z": directory(xattrs={"user.on-directory": b"1"}),
    b"e": directory(),
    b"e/h": file(b"h"),
}


def keep_times(path: Path) -> Callable[[], None]:
    found = path.lstat()
    return lambda: os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def edit_in_place(root: Path) -> None:
    (root / "same-size").write_bytes(b"BBBB")


def edit_and_restore_mtime(root: Path) -> None:
    restore = keep_times(root / "same-size")
    edit_in_place(root)
    restore()


def replace_by_equal_size_and_mtime(root: Path) -> None:
    found, parent = (root / "same-size").stat(), keep_times(root)
    other = root.parent / "other"
    other.write_bytes(b"BBBB")
    other.chmod(found.st_mode & 0o7777)
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.rename(root / "same-size")
    parent()


def chmod_and_back(root: Path) -> None:
    mode = (root / "a").stat().st_mode & 0o7777
    (root / "a").chmod(0o600)
    (root / "a").chmod(mode)


def chmod(root: Path) -> None:
    (root / "a").chmod(0o600)


def chown_directory(root: Path) -> None:
    os.chown(root / "d", 70, 80)


def set_xattr(root: Path) -> None:
    os.setxattr(root / "b", "user.big", b"y" * 3000)


def remove_xattr(root: Path) -> None:
    os.removexattr(root / "d/z", "user.on-directory")


def set_xattr_of_link(root: Path) -> None:
    os.setxattr(root / "link", "trusted.new", b"1", follow_symlinks=False)


def device_number(root: Path) -> None:
    found, parent = (root / "null").stat(), keep_times(root)
    (root / "null").unlink()
    os.mknod(root / "null", found.st_mode, os.makedev(1, 5))
    os.utime(root / "null", ns=(found.st_atime_ns, found.st_mtime_ns))
    parent()


def add_hardlink(root: Path) -> None:
    os.link(root / "a", root / "d/another-a")


def break_hardlink(root: Path) -> None:
    shutil.copy2(root / "twin", root / "copy")
    (root / "copy").rename(root / "twin")


def lose_hardlink_to_the_outside(root: Path) -> None:
    parent = keep_times(root)
    (root / "twin-2").rename(root.parent / "outside")
    parent()


def exchange_hardlinks(root: Path) -> None:
    """Same names, contents, counts: another file is behind them."""
    for name in ("x", "y"):
        (root / name).write_bytes((root / "twin").read_bytes())
    os.link(root / "x", root / "x-2")
    for name in ("twin", "twin-2"):
        (root / name).unlink()
        os.link(root / "y", root / name)


def retarget_link(root: Path) -> None:
    restore = keep_times(root / "link")
    (root / "link").unlink()
    (root / "link").symlink_to("b")
    restore()


def replace_directory(root: Path) -> None:
    shutil.copytree(root / "d", root.parent / "copy", symlinks=True)
    shutil.rmtree(root / "d")
    (root.parent / "copy").rename(root / "d")


def directory_to_file(root: Path) -> None:
    shutil.rmtree(root / "d")
    (root / "d").write_bytes(b"was a directory")


def directory_to_link(root: Path) -> None:
    (root / "d").rename(root / "moved")
    (root / "d").symlink_to("moved")


def file_to_directory(root: Path) -> None:
    (root / "a").unlink()
    (root / "a").mkdir()
    (root / "a/below").touch()


def move_in_with_old_times(root: Path) -> None:
    parent = keep_times(root / "e")
    (root / "d/g").rename(root / "e/g")
    outside = root.parent / "outside"
    outside.write_bytes(b"from elsewhere")
    os.utime(outside, (0, 0))
    outside.rename(root / "e/h")
    parent()


def exchange_directories(root: Path) -> None:
    (root / "d").rename(root / "swap")
    (root / "e").rename(root / "d")
    (root / "swap").rename(root / "e")


def delete_files(root: Path) -> None:
    (root / "a").unlink()
    shutil.rmtree(root / "d/sub")


def delete_all(root: Path) -> None:
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def add_socket(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(root / "s"))


def rename_odd_name(root: Path) -> None:
    os.rename(os.fsencode(root) + b"/odd \xff\nname", os.fsencode(root) + b"/d/odd \xfe\nname")


def new_first_and_last(root: Path) -> None:
    (root / "!first").touch()
    (root / "zz").mkdir()


CHANGES: list[tuple[Callable[[Path], None], set[bytes] | None]] = [
    (edit_in_place, {b"same-size"}),
    (edit_and_restore_mtime, {b"same-size"}),
    (replace_by_equal_size_and_mtime, {b"same-size"}),
    (chmod_and_back, set()),
    (chmod, {b"a"}),
    (chown_directory, {b"d"}),
    (set_xattr, {b"b"}),
    (remove_xattr, {b"d/z"}),
    (set_xattr_of_link, {b"link"}),
    (device_number, {b"null"}),
    (add_hardlink, {b"a", b"d", b"d/another-a"}),
    (break_hardlink, {b".", b"twin", b"twin-2"}),
    (lose_hardlink_to_the_outside, {b"twin", b"twin-2"}),
    (exchange_hardlinks, {b".", b"twin", b"twin-2", b"x", b"x-2", b"y"}),
    (retarget_link, {b".", b"link"}),
    (replace_directory, None),
    (directory_to_file, {b".", b"d"}),
    (directory_to_link, None),
    (file_to_directory, {b".", b"a", b"a/below"}),
    (move_in_with_old_times, {b"d", b"d/g", b"e/g", b"e/h"}),
    (exchange_directories, None),
    (delete_files, {b".", b"a", b"d", b"d/sub"}),
    (delete_all, None),
    (add_socket, {b"."}),
    (rename_odd_name, {b".", b"d", b"odd \xff\nname", b"d/odd \xfe\nname"}),
    (new_first_and_last, {b".", b"!first", b"zz"}),
]
"""Each with the paths of the deltas that it leads to; None where they are too many to be named."""
