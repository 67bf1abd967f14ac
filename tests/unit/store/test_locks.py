"""The lock keeps threads and processes apart, and dies with its holder."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.store.atomic_file import pauses
from layerfarm.jobs.store.locks import Lock, exclusive, lock_if_free
from tests.leaks import Held


def is_free(path: Path) -> bool:
    with Lock(path, path.parent) as lock:
        return lock.take_if_free()


def test_threads_are_apart_whatever_they_call_the_file(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "same").hardlink_to(tmp_path / "lock")
    with exclusive(tmp_path / "lock", tmp_path):
        found: list[bool] = []
        thread = threading.Thread(target=lambda: found.append(is_free(tmp_path / "same")))
        thread.start()
        thread.join()
        assert found == [False]
        # Opened and closed elsewhere in the process: a lock of the process would be lost now.
        (tmp_path / "lock").read_bytes()
        assert not is_free(tmp_path / "lock")
    assert is_free(tmp_path / "lock")


def test_a_child_forked_while_it_was_held_does_not_keep_it(tmp_path: Path) -> None:
    holder = os.fork()
    if holder == 0:
        with exclusive(tmp_path / "lock", tmp_path):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(holder, 0)
    deadline = time.monotonic() + 20
    while not is_free(tmp_path / "lock"):  # the child closes it as soon as it runs
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_child_does_not_free_what_its_parent_holds(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock", tmp_path) as _:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert not is_free(tmp_path / "lock")


def test_a_child_that_leaves_the_block_does_not_free_it_either(tmp_path: Path) -> None:
    with ExitStack() as block:
        block.enter_context(exclusive(tmp_path / "lock", tmp_path))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                block.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert not is_free(tmp_path / "lock")
    assert is_free(tmp_path / "lock")


def test_a_waiter_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    order: list[str] = []

    def wait() -> None:
        with exclusive(tmp_path / "lock", tmp_path):
            order.append("waiter")

    thread = threading.Thread(target=wait)
    with exclusive(tmp_path / "lock", tmp_path):
        thread.start()
        time.sleep(0.05)
        order.append("holder")
    thread.join(20)
    assert order == ["holder", "waiter"]


def test_a_wait_that_another_ends_asks_less_and_less_often() -> None:
    eager = list(itertools.islice(pauses(), 1000))
    assert min(eager) > 0
    assert max(eager) <= 0.03
    waits, waited, asked = pauses(0.5), 0.0, 0
    while waited < 60:
        wait = next(waits)
        assert wait <= 1.5 * max(0.02, min(waited / 20, 0.5))
        waited += wait
        asked += 1
    assert asked < 300


def test_a_file_that_cannot_be_opened_leaves_none_open(tmp_path: Path) -> None:
    held = Held()
    with pytest.raises(OSError), exclusive(tmp_path / "missing" / "lock", tmp_path):
        pass
    assert not held.new()


def test_no_delegation_of_the_file_is_requested(tmp_path: Path) -> None:
    """With O_DIRECT Linux' NFS client requests none; the holder of one would not tell the server of its locks."""
    lock = tmp_path / "lock"
    for _ in ("created", "opened"):
        held = Held()
        with exclusive(lock, tmp_path):
            ((fd, path),) = held.new()
            assert path == str(lock)
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT


@pytest.mark.parametrize("creates", [True, False])
def test_filesystem_without_o_direct_has_locks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, creates: bool
) -> None:
    """It refuses the flag, but may have created the file by then."""
    real = os.open

    def refusing(path: Any, flags: int, *args: Any, **places: Any) -> int:
        if flags & os.O_DIRECT:
            if creates:
                os.close(real(path, flags & ~os.O_DIRECT, *args, **places))
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, *args, **places)

    monkeypatch.setattr(os, "open", refusing)
    for _ in ("created", "opened"):
        with exclusive(tmp_path / "lock", tmp_path):
            assert not is_free(tmp_path / "lock")
        assert is_free(tmp_path / "lock")


def test_a_lock_that_another_holds_is_not_taken_and_not_left_open(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock", tmp_path):
        held = Held()
        assert lock_if_free(tmp_path / "lock", tmp_path) is None
        assert not held.new()
    lock = lock_if_free(tmp_path / "lock", tmp_path)
    assert lock is not None
    with lock:
        assert not is_free(tmp_path / "lock")
    assert is_free(tmp_path / "lock")
