"""A layer that several processes read is the same, and a helper that ends early is an error, never a hang."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from layerfarm.jobs.errors import LayerError, LayerfarmError, RootfsError, TreeChanged
from layerfarm.jobs.fs import DirectoryCache, Rootfs, Widened
from layerfarm.jobs.layer import GenerateOptions, IdMap, generate_layer
from layerfarm.jobs.layer import segments as room
from layerfarm.jobs.layer.names import walk_key
from layerfarm.jobs.layer.segment_process import _SegmentBuilder, _Slot
from layerfarm.jobs.mtree import Delta
from tests.leaks import Held
from tests.ordinary_user import GID, UID, ordinary_user
from tests.trees import char, directory, fifo, file, hardlink, socket, symlink, tree
from tests.unit.layer.archives import extra, missing, modified

LONG = "n" * 200
SPEC = {
    ".": directory(mode=0o751),
    "a": file(b"small"),
    "big": file(os.urandom(3 << 20)),
    "block": file(bytes(512)),
    "d": directory(xattrs={"user.d": b"1"}),
    "d/\udcff\n": file(b"no UTF-8"),
    f"d/{LONG}": directory(),
    f"d/{LONG}/{LONG}": file(b"PAX", xattrs={"user.x": b"y" * 300}),
    "d/fifo": fifo(),
    "d/link": hardlink("a"),
    "empty": directory(mode=0o1777),
    "entirely": file(bytes(70_000), mtime=-1_500_000_000),
    "null": char(1, 3),
    "socket": socket(),
    "to": symlink("x" * 150),
    "z": directory(),
    **{f"z/{n:03}": file(b"%d" % n * n, mode=0o4755 if n % 7 else 0o600, uid=n) for n in range(400)},
    "z/400": hardlink("z/399"),
}
DELTAS = [*extra(*(path for path in SPEC if path != "a")), *modified("a"), *missing("gone", "z/gone", "no/dir/gone")]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WORTH_IT", 2)
    monkeypatch.setattr(room, "_BATCH", 5)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "root", SPEC)


def layer(root: Path, deltas: list[Delta], processes: int, **more: object) -> tuple[bytes, list[str], int]:
    """The tar, the warnings, and the bytes that were reported as progress."""
    warnings: list[str] = []
    done: list[int] = []
    options = GenerateOptions(processes=processes, warn=warnings.append, advanced=done.append, **more)  # type: ignore[arg-type]
    return b"".join(generate_layer(root, deltas, options)), warnings, sum(done)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("processes", [2, 3, 7])
def test_any_number_of_processes_writes_the_same_layer(root: Path, processes: int) -> None:
    for options in ({}, {"source_date_epoch": 1000, "uid_map": IdMap.of((1000, 0, 1000))}, {"rootless": True}):
        held = Held()
        assert layer(root, DELTAS, processes, **options) == layer(root, DELTAS, 1, **options)
        assert not held.new()


@pytest.mark.parametrize("batch", [1, 128, 1000])
def test_batches_of_any_size_make_the_same_layer(root: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(room, "_BATCH", batch)
    assert layer(root, DELTAS, 3) == layer(root, DELTAS, 1)


def test_a_segment_larger_than_its_slot_is_completed_by_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_BATCH", 128)
    root = tree(tmp_path / "root", {f"{n:03}": file(os.urandom(64 << 10)) for n in range(100)})
    deltas = extra(*(f"{n:03}" for n in range(100)))
    assert layer(root, deltas, 3) == layer(root, deltas, 1)


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        (extra("d/gone"), TreeChanged),
        (extra("to/a"), TreeChanged),
        (missing("z/007"), TreeChanged),
        (extra("z/.wh.x"), LayerError),
    ],
)
def test_errors_are_those_of_one_process(root: Path, deltas: list[Delta], expected: type[Exception]) -> None:
    tree(root / "z/.wh.x", {".": directory()})
    texts = set()
    for processes in (1, 3):
        held = Held()
        with pytest.raises(expected) as caught:
            layer(root, [*DELTAS, *deltas], processes)
        assert isinstance(caught.value, LayerfarmError)
        texts.add(str(caught.value))
        del caught
        assert not held.new()
    assert len(texts) == 1


def descendants(pid: int) -> set[int]:
    found = set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return found.union(*map(descendants, found))


def all_helpers(pid: int, before: set[int]) -> set[int]:
    """Wait for the process that forks into three helpers, of which the first may answer before the last is there."""
    for _ in range(6000):
        if len(found := descendants(pid) - before) == 4:
            return found
        time.sleep(0.01)
    raise AssertionError("no helpers were started")


def test_helpers_end_with_a_caller_that_is_killed(root: Path) -> None:
    caller = os.fork()
    if caller == 0:
        pieces = generate_layer(root, DELTAS, GenerateOptions(processes=3))
        next(pieces)
        signal.pause()
    helpers = all_helpers(caller, set())
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    for _ in range(6000):
        if not (left := [pid for pid in helpers if is_running(pid)]):
            return
        time.sleep(0.01)
    raise AssertionError(f"still running: {left}")


def is_running(pid: int) -> bool:
    """Return False if there is no such process, or if it is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # The latter if it ends between open(2) and read(2).
        return False


@pytest.mark.parametrize("all_of_them", [True, False])
def test_a_helper_that_is_killed_is_an_error(root: Path, all_of_them: bool) -> None:
    held, before = Held(), descendants(os.getpid())
    pieces = generate_layer(root, DELTAS, GenerateOptions(processes=3))
    next(pieces)
    started = sorted(all_helpers(os.getpid(), before))
    for pid in started if all_of_them else started[-1:]:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(LayerError, match="was killed"):
        list(pieces)
    del pieces
    assert not held.new()


def test_a_layer_that_is_not_read_to_its_end_leaves_no_process(root: Path) -> None:
    held = Held()
    with closing(generate_layer(root, DELTAS, GenerateOptions(processes=3))) as pieces:  # type: ignore[type-var]
        next(pieces)
    del pieces
    assert not held.new()


def test_a_cancellation_ends_the_helpers(root: Path) -> None:
    def stop(nbytes: int) -> None:
        raise KeyboardInterrupt

    held = Held()
    with pytest.raises(KeyboardInterrupt):
        list(generate_layer(root, DELTAS, GenerateOptions(processes=3, advanced=stop)))
    assert not held.new()


def test_helpers_that_cannot_be_started_are_not_needed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = layer(root, DELTAS, 1)
    monkeypatch.setattr("layerfarm.jobs.helpers.sys.executable", "/none")
    assert layer(root, DELTAS, 3) == expected


# --- the helper's part, in this process ----------------------------------------------------------------


@pytest.fixture
def directories(root: Path) -> Iterator[DirectoryCache]:
    with Rootfs(root) as rootfs, DirectoryCache(rootfs.fd) as found:
        yield found


def left_to_caller(directories: DirectoryCache, *paths: str) -> list[str]:
    builder = _SegmentBuilder(GenerateOptions(), _Slot(memoryview(bytearray(room.SLOT))))
    answer = builder.segment([walk_key(os.fsencode(path)) for path in paths], directories)
    return [paths[position] for position, _ in answer.ends[:-1]]


def test_what_is_large_linked_warned_of_or_wrong_is_left_to_the_caller(directories: DirectoryCache) -> None:
    assert left_to_caller(directories, *SPEC) == [".", "a", "big", "d/link", "entirely", "socket", "z/399", "z/400"]


@pytest.mark.parametrize("size", [3, 9])
def test_a_file_that_changes_while_it_is_read_is_left_to_the_caller(
    root: Path, directories: DirectoryCache, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    readv = os.readv

    def changed(fd: int, buffers: list[memoryview]) -> int:
        os.truncate(root / "block", size)
        return readv(fd, buffers)

    monkeypatch.setattr(os, "readv", changed)
    assert left_to_caller(directories, "block", "empty", "z/000") == ["block"]


@pytest.mark.usefixtures("as_root")
def test_a_helper_never_widens_a_mode() -> None:
    own = {"uid": UID, "gid": GID}
    with ordinary_user() as user:
        root = tree(
            user.home / "root",
            {
                "dir": directory(mode=0, **own),
                "dir/f": file(b"deep", **own),
                "free": file(b"free", **own),
                "none": file(b"none", mode=0, **own),
            },
        )

        def helped() -> list[str]:
            Widened.forbid()
            with Rootfs(root) as rootfs, DirectoryCache(rootfs.fd) as directories:
                return left_to_caller(directories, "dir", "dir/f", "free", "none")

        assert user.call(helped) == ["dir", "dir/f", "none"]
        with pytest.raises(RootfsError):
            user.call(lambda: _forbidden(root))


def _forbidden(root: Path) -> None:
    Widened.forbid()
    list(generate_layer(root, extra("none")))
