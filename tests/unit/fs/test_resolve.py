"""Both ways into a rootfs, openat2(2) and the walk in user space, do the same."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfarm.jobs.errors import UnsafePath
from layerfarm.jobs.fs import open_beneath, open_in_root, resolve
from tests.leaks import Held

PATH = os.O_PATH
Open = Callable[[int, bytes, int], int]


@pytest.fixture(params=["openat2", "walk"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(resolve, "_kernel_has_openat2", request.param == "openat2")
    if request.param == "openat2":

        def refuse(root: int, path: bytes, flags: int, how: int) -> int:
            raise AssertionError("the kernel was to resolve this")

        monkeypatch.setattr(resolve, "_walk", refuse)
    name: str = request.param
    return name


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.mkdir()
    (path / "secret").write_text("outside")
    return path


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Iterator[int]:
    path = tmp_path / "root"
    (path / "d/e").mkdir(parents=True)
    (path / "etc").mkdir()
    (path / "d/f").write_text("d/f")
    (path / "d/e/g").write_text("d/e/g")
    (path / "etc/secret").write_text("inside")
    (path / "secret").write_text("top")
    for name, target in {
        "to-d": "d",
        "to-f": "d/f",
        "absolute": "/d/e",
        "up": "../../../../etc",
        "to-outside": str(outside),
        "d/e/up-two": "../..",
        "d/e/to-etc": "/etc",
        "d/slashes": ".//e///./g",
        "dangling": "nowhere",
        "loop": "loop2",
        "loop2": "loop",
        "root": "/",
        "dotdot": "..",
        "via": "to-d/e/up-two/absolute",
    }.items():
        (path / name).symlink_to(target)
    os.mkfifo(path / "fifo")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def content(fd: int) -> str:
    with os.fdopen(fd) as stream:
        return stream.read()


def same(fd: int, root: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path, dir_fd=root))
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", [b"d/f", b"d//f", b"./d/./f"])
@pytest.mark.parametrize("open_", [open_beneath, open_in_root])
def test_plain_paths_are_opened(root: int, open_: Open, path: bytes) -> None:
    assert content(open_(root, path, os.O_RDONLY)) == "d/f"


@pytest.mark.parametrize("path", [b"", b".", b"./", b"d/..", b"d/e/../.."])
@pytest.mark.parametrize("open_", [open_beneath, open_in_root])
def test_the_root_itself(root: int, open_: Open, path: bytes) -> None:
    assert same(open_(root, path, os.O_RDONLY | os.O_DIRECTORY), root, ".")


@pytest.mark.parametrize("open_", [open_beneath, open_in_root])
def test_dotdot_inside_the_root(root: int, open_: Open) -> None:
    assert content(open_(root, b"d/e/../f", os.O_RDONLY)) == "d/f"


@pytest.mark.parametrize("path", [b"to-d/f", b"to-f", b"absolute", b"dangling", b"loop", b"to-d/", b"d/e/up-two/d"])
def test_beneath_follows_no_link_anywhere(root: int, path: bytes) -> None:
    with pytest.raises(UnsafePath):
        open_beneath(root, path, os.O_RDONLY)


@pytest.mark.parametrize("path", [b"..", b"d/../..", b"/", b"/d/f", b"../root/d/f"])
def test_beneath_refuses_to_leave_the_root(root: int, path: bytes) -> None:
    with pytest.raises(UnsafePath, match="out of the root"):
        open_beneath(root, path, os.O_RDONLY)


def test_beneath_opens_a_link_itself_as_a_path_descriptor(root: int) -> None:
    assert same(open_beneath(root, b"to-d", PATH), root, "to-d")
    assert same(open_beneath(root, b"d/e/up-two", PATH), root, "d/e/up-two")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"to-d/f", "d/f"),
        (b"to-f", "d/f"),
        (b"/to-f", "d/f"),
        (b"absolute/g", "d/e/g"),
        (b"up/secret", "etc/secret"),
        (b"d/e/up-two/secret", "secret"),
        (b"d/e/to-etc/secret", "etc/secret"),
        (b"d/slashes", "d/e/g"),
        (b"root/root/d/f", "d/f"),
        (b"dotdot/secret", "secret"),
        (b"../../../etc/secret", "etc/secret"),
        (b"/../secret", "secret"),
        (b"via/g", "d/e/g"),
        (b"to-d/../secret", "secret"),
        (b"absolute/../f", "d/f"),
    ],
)
def test_in_root_follows_links_as_if_the_root_were_slash(root: int, path: bytes, expected: str) -> None:
    assert same(open_in_root(root, path, os.O_RDONLY), root, expected)


def test_in_root_absolute_link_to_outside_stays_inside(root: int) -> None:
    with pytest.raises(FileNotFoundError):
        open_in_root(root, b"to-outside/secret", os.O_RDONLY)


def test_in_root_loop_is_unsafe(root: int) -> None:
    with pytest.raises(UnsafePath):
        open_in_root(root, b"loop", os.O_RDONLY)


@pytest.mark.parametrize("links", [40, 41])
def test_in_root_follows_as_many_links_as_the_kernel(root: int, links: int) -> None:
    os.symlink("d/f", "chain0", dir_fd=root)
    for number in range(1, links):
        os.symlink(f"chain{number - 1}", f"chain{number}", dir_fd=root)
    last = b"chain%d" % (links - 1)
    if links <= 40:
        assert same(open_in_root(root, last, os.O_RDONLY), root, "d/f")
    else:
        with pytest.raises(UnsafePath):
            open_in_root(root, last, os.O_RDONLY)


def test_in_root_last_link_can_be_opened_itself(root: int) -> None:
    assert same(open_in_root(root, b"to-d", PATH | os.O_NOFOLLOW), root, "to-d")
    assert same(open_in_root(root, b"to-d/../dangling", PATH | os.O_NOFOLLOW), root, "dangling")


def test_in_root_last_link_that_may_not_be_followed_is_unsafe(root: int) -> None:
    with pytest.raises(UnsafePath):
        open_in_root(root, b"to-f", os.O_RDONLY | os.O_NOFOLLOW)


def test_a_link_is_no_directory_but_unsafe_beneath(root: int) -> None:
    with pytest.raises(NotADirectoryError):
        open_in_root(root, b"to-d", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    with pytest.raises(UnsafePath):
        open_beneath(root, b"to-d", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


@pytest.mark.parametrize("path", [b"to-d/", b"to-d/.", b"absolute/"])
def test_in_root_trailing_slash_means_the_directory(root: int, path: bytes) -> None:
    expected = "d/e" if path.startswith(b"abs") else "d"
    assert same(open_in_root(root, path, PATH | os.O_NOFOLLOW), root, expected)


@pytest.mark.parametrize("path", [b"d/f/", b"d/f/.", b"d/f/x", b"d/f/..", b"to-f/"])
def test_a_file_is_no_directory(root: int, path: bytes) -> None:
    with pytest.raises(NotADirectoryError):
        open_in_root(root, path, os.O_RDONLY)


@pytest.mark.parametrize("path", [b"d/f/", b"d/f/x", b"d/f/.."])
def test_a_file_is_no_directory_beneath(root: int, path: bytes) -> None:
    with pytest.raises(NotADirectoryError):
        open_beneath(root, path, os.O_RDONLY)


@pytest.mark.parametrize("path", [b"d/none", b"none/f", b"none/..", b"dangling", b"dangling/x"])
def test_missing_paths_are_not_found(root: int, path: bytes) -> None:
    with pytest.raises(FileNotFoundError):
        open_in_root(root, path, os.O_RDONLY)


@pytest.mark.parametrize("open_", [open_beneath, open_in_root])
def test_flags_of_the_last_component_are_honoured(root: int, open_: Open) -> None:
    with pytest.raises(NotADirectoryError):
        open_(root, b"d/f", os.O_RDONLY | os.O_DIRECTORY)
    fd = open_(root, b"fifo", os.O_RDONLY | os.O_NONBLOCK)
    os.close(fd)


@pytest.mark.parametrize("open_", [open_beneath, open_in_root])
def test_a_path_with_nul_is_refused(root: int, open_: Open) -> None:
    with pytest.raises(UnsafePath, match="NUL"):
        open_(root, b"d\0/f", os.O_RDONLY)


@pytest.mark.parametrize("open_", [open_beneath, open_in_root])
def test_a_component_that_is_too_long_is_an_error(root: int, open_: Open) -> None:
    with pytest.raises(OSError) as caught:
        open_(root, b"n" * 256, os.O_RDONLY)
    assert caught.value.errno == errno.ENAMETOOLONG


@pytest.mark.parametrize("open_", [open_beneath, open_in_root])
def test_descriptors_are_closed_on_exec_and_none_is_left(root: int, open_: Open) -> None:
    held = Held()
    fd = open_(root, b"d/e/g", os.O_RDONLY)
    assert not os.get_inheritable(fd)
    os.close(fd)
    for path in (b"d/none", b"loop/x", b"d/f/x"):
        with pytest.raises((OSError, UnsafePath)):
            open_(root, path, os.O_RDONLY)
    assert not held.new()


def test_names_that_are_not_utf8(root: int) -> None:
    os.mkdir(b"\xff\n", dir_fd=root)
    os.symlink(b"/\xff\n", b"l\xfe", dir_fd=root)
    assert same(open_in_root(root, b"l\xfe", PATH), root, os.fsdecode(b"\xff\n"))


class Kernel:
    """Answers the first calls of openat2(2) with these errors, and passes on the others."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.calls = 0

    def syscall(self, *args: object) -> int:
        self.calls += 1
        if self.errors:
            ctypes.set_errno(self.errors.pop(0))
            return -1
        answer: int = real.syscall(*args)
        return answer


real = resolve._libc


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kernel]:
    def answers(*errors: int) -> Kernel:
        found = Kernel(*errors)
        monkeypatch.setattr(resolve, "_libc", found)
        monkeypatch.setattr(resolve, "_kernel_has_openat2", True)
        return found

    return answers


@pytest.mark.parametrize("way", ["walk"], indirect=True)
@pytest.mark.parametrize(("code", "calls"), [(errno.ENOSYS, 1), (errno.EPERM, 2)])
def test_a_kernel_without_openat2_is_asked_once_and_one_that_forbids_it_again(
    root: int, kernel: Callable[..., Kernel], code: int, calls: int
) -> None:
    """A seccomp profile answers EPERM, and so does the kernel for a single file."""
    asked = kernel(code, code)
    for _ in range(2):
        assert content(open_in_root(root, b"absolute/g", os.O_RDONLY)) == "d/e/g"
    assert asked.calls == calls


@pytest.mark.parametrize("way", ["openat2"], indirect=True)
def test_a_resolution_that_was_interrupted_is_tried_again(root: int, kernel: Callable[..., Kernel]) -> None:
    asked = kernel(errno.EAGAIN, errno.EINTR)
    assert content(open_in_root(root, b"to-f", os.O_RDONLY)) == "d/f"
    assert asked.calls == 3


@pytest.mark.parametrize("way", ["openat2"], indirect=True)
def test_another_error_of_the_kernel_is_one(root: int, kernel: Callable[..., Kernel]) -> None:
    kernel(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        open_in_root(root, b"d/f", os.O_RDONLY)


@pytest.mark.parametrize("way", ["walk"], indirect=True)
def test_a_path_that_is_too_long_for_the_kernel_is_opened_all_the_same(
    root: int, kernel: Callable[..., Kernel]
) -> None:
    asked = kernel()
    assert content(open_beneath(root, b"d/" + b"e/../" * 1000 + b"f", os.O_RDONLY)) == "d/f"
    assert asked.calls == 1
