"""A walk by several processes writes the same, and a helper that fails or ends early is replaced by the caller."""

from __future__ import annotations

import io
import os
import pickle
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from layerfarm.jobs.errors import RootfsError, TreeChanged
from layerfarm.jobs.mtree import NO_CLOCK, Clock, Walk, read_clock, walk_tree, walkers
from layerfarm.jobs.mtree.walkers import walk_some
from tests.leaks import Held
from tests.ordinary_user import ordinary_user
from tests.unit.mtree.conftest import Build

COUNTS = [2, 3, 9]
Answering = Callable[[int, object, object], bytes]
"""Answers a request, given the root, the clock and the directories; the helper ends with what is no whole pickle."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers begin at the first directory, and walk a few entries at a time."""
    monkeypatch.setattr(walkers, "WORTH_IT", 0)
    monkeypatch.setattr(walkers, "FEWEST", 2)
    monkeypatch.setattr(walkers, "_LIMIT", 3)
    monkeypatch.setattr(walkers, "_OWN_LIMIT", 2)
    monkeypatch.setattr(walkers, "_MOST_AT_ONCE", 4)


def walked(root: Path, processes: int = 1, clock: Clock = NO_CLOCK) -> tuple[bytes, Walk]:
    out = io.BytesIO(b"before")
    out.seek(0, os.SEEK_END)
    counts = walk_tree(root, out, clock, processes)
    return out.getvalue(), counts


@pytest.mark.parametrize("processes", COUNTS)
def test_several_processes_write_the_same(odd_tree: Path, processes: int) -> None:
    held = Held()
    for clock in (NO_CLOCK, read_clock(odd_tree)):
        assert walked(odd_tree, processes, clock) == walked(odd_tree, 1, clock)
    assert not held.new()


@pytest.mark.parametrize("processes", COUNTS)
def test_links_across_processes_are_counted(build: Build, tmp_path: Path, processes: int) -> None:
    root = build({f"{n % 7}/{n % 3}/{n:03}": b"x" for n in range(200)})
    for n in range(0, 190, 2):
        os.link(root / f"{n % 7}/{n % 3}/{n:03}", root / f"{(n + 3) % 7}/link-{n}")
        os.link(root / f"{n % 7}/{n % 3}/{n:03}", tmp_path / f"outside-{n}")
    assert walked(root, processes) == walked(root)


def test_paths_longer_than_path_max(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    here = os.open(root, os.O_RDONLY)
    for _ in range(120):
        os.mkdir("d" * 50, dir_fd=here)
        os.mkdir("z", dir_fd=here)
        below = os.open("d" * 50, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    held = Held()
    assert walked(root, 3) == walked(root)
    assert not held.new()
    subprocess.run(["rm", "-rf", root], check=True)


@pytest.mark.parametrize("mode", [0, 0o400, 0o100])
def test_an_ordinary_users_own_directories_are_widened_and_restored(mode: int) -> None:
    with ordinary_user() as user:
        for n in range(30):
            (user.home / f"{n % 5}/{n}/below").mkdir(parents=True)
            (user.home / f"{n % 5}/{n}/below/f").touch()
        user.own(user.home)
        for n in range(0, 30, 4):
            (user.home / f"{n % 5}/{n}").chmod(mode)
        assert user.call(lambda: walked(user.home, 3)) == user.call(lambda: walked(user.home))
        assert {(user.home / f"{n % 5}/{n}").stat().st_mode & 0o777 for n in range(0, 30, 4)} == {mode}


@pytest.mark.usefixtures("as_root")
def test_unreadable_directory_is_named() -> None:
    with ordinary_user() as user:
        for n in range(20):
            (user.home / f"{n % 5}/{n}").mkdir(parents=True)
        user.own(user.home)
        os.chown(user.home / "3/8", os.geteuid(), os.getegid())
        (user.home / "3/8").chmod(0)
        with pytest.raises(RootfsError, match="3/8"):
            user.call(lambda: walked(user.home, 3))


# --- helpers that fail -------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answering], None]:
    """Helpers are threads that answer with this function. They are ready before the caller walks."""

    def serve(root: int, caller: socket.socket, answering: Answering) -> None:
        with caller, caller.makefile("rb") as requests:
            clock = pickle.load(requests)
            try:
                while True:
                    answer = answering(root, clock, pickle.load(requests)[0])
                    caller.sendall(answer)
                    if answer[-1:] != pickle.STOP:
                        return
            except (EOFError, OSError):
                pass

    def install(answering: Answering) -> None:
        @contextmanager
        def started(module: str, root: int, *connections: int) -> Iterator[None]:
            callers = [socket.socket(fileno=os.dup(connection)) for connection in connections]
            threads = [threading.Thread(target=serve, args=(root, caller, answering)) for caller in callers]
            for caller, thread in zip(callers, threads, strict=True):
                caller.sendall(pickle.dumps(None))
                thread.start()
            yield
            for thread in threads:
                thread.join()

        monkeypatch.setattr(walkers, "started", started)

    return install


@pytest.fixture
def root(build: Build) -> Path:
    return build({f"{n % 7}/{n % 3}/{n:03}/f": b"x" for n in range(100)})


def good(root: int, clock: object, directories: object) -> bytes:
    return pickle.dumps(walk_some(root, clock, directories, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answering",
    [
        good,
        lambda *request: pickle.dumps(None),
        lambda *request: b"",
        lambda *request: b"no pickle, but something else",
        lambda *request: good(*request)[:-1],
    ],
    ids=["good", "leaves it to the caller", "ends", "garbage", "ends within an answer"],
)
@pytest.mark.parametrize("processes", COUNTS)
def test_the_caller_walks_what_helpers_do_not(
    served: Callable[[Answering], None], root: Path, answering: Answering, processes: int
) -> None:
    served(answering)
    assert walked(root, processes) == walked(root)


def test_a_directory_that_vanishes_while_a_helper_walks_is_named(
    served: Callable[[Answering], None], root: Path
) -> None:
    def vanish(fd: int, clock: object, directories: object) -> bytes:
        (first, *_) = directories  # type: ignore[misc]
        subprocess.run(["rm", "-rf", root / first.path], check=True)
        return pickle.dumps(None)

    served(vanish)
    with pytest.raises(TreeChanged, match="entry was removed during the walk"):
        walked(root, 2)


def test_helpers_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    @contextmanager
    def started(module: str, *fds: int) -> Iterator[None]:
        raise BlockingIOError("Resource temporarily unavailable")
        yield

    held = Held()
    monkeypatch.setattr(walkers, "started", started)
    assert walked(root, 3) == walked(root)
    assert not held.new()


def test_an_error_ends_the_helpers(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    def fail(*request: object) -> object:
        raise RootfsError("directory cannot be read", where=root)

    held = Held()
    monkeypatch.setattr(walkers, "walk_some", fail)
    with pytest.raises(RootfsError):
        walked(root, 3)
    assert not held.new()


@pytest.mark.parametrize(("limit", "value"), [("WORTH_IT", 1000), ("FEWEST", 10)])
def test_a_small_tree_or_few_processors_need_no_helpers(
    monkeypatch: pytest.MonkeyPatch, root: Path, limit: str, value: int
) -> None:
    monkeypatch.setattr(walkers, limit, value)
    monkeypatch.setattr(walkers, "started", lambda *args: pytest.fail("helpers were started"))
    assert walked(root, 9) == walked(root)
