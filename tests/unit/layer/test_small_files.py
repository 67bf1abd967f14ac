from __future__ import annotations

import hashlib
import os
import resource
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from layerfarm.jobs.errors import LayerfarmError, RootfsError
from layerfarm.jobs.fs.remove import remove_tree
from layerfarm.jobs.layer import ExtractOptions, small_files
from layerfarm.jobs.layer.small_files import threads_for
from tests.leaks import Held
from tests.unit.layer.archives import applied_entries, apply, archive, entry

pytestmark = pytest.mark.usefixtures("as_root")
"""Unpacking sets owners, which needs root."""

THREADS = ExtractOptions(writers=3)


def test_files_in_more_directories_than_stay_open_have_their_content(tmp_path: Path) -> None:
    names = [f"d{number % 400}/f{number}" for number in range(2000)]
    layer = archive(*(entry(name, content=name.encode() * 3, mode=0o4710, uid=7) for name in names))
    found = {each.path.decode(): each for each in applied_entries(tmp_path, layer, options=THREADS)}
    for name in names:
        each, status = found[name], (tmp_path / name).stat()
        assert (tmp_path / name).read_bytes() == name.encode() * 3
        assert (status.st_mode & 0o7777, status.st_uid, status.st_size) == (0o4710, 7, len(name) * 3)
        assert (each.mode, each.uid, each.size, each.mtime) == (0o4710, 7, status.st_size, status.st_mtime_ns)
        assert each.sha256 == hashlib.sha256(name.encode() * 3).hexdigest()


@pytest.mark.parametrize("writers", [0, 3])
def test_a_branch_deeper_than_a_process_may_open_is_written(tmp_path: Path, writers: int) -> None:
    """Closed directories are opened again from the top, at the end and after a removal, but never all at once."""
    deep = "/".join("a" * 3000)
    layers = archive(entry("first"), entry(f"{deep}/f", content=b"1")), archive(entry("d/g"), entry(".wh.d"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 300, hard))
    try:
        found = applied_entries(tmp_path, *layers, options=ExtractOptions(writers=writers))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        remove_tree(tmp_path)
    assert max(len(each.path) for each in found) == len(deep) + 2


@pytest.mark.parametrize("after", [0, 1, 1000])
def test_a_file_that_cannot_be_written_is_the_error_of_its_layer(tmp_path: Path, after: int) -> None:
    bad = "d/" + "x" * 300
    files = [entry("first"), entry(bad, content=b"1"), *(entry(f"d/{number}") for number in range(after))]
    held = Held()
    with pytest.raises(RootfsError, match="entry cannot be written, File name too long") as caught:
        apply(tmp_path, archive(*files), options=THREADS)
    assert caught.value.where == bad
    assert not held.new()


def test_an_error_of_the_layer_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    files = [entry(f"d{number}/f", content=b"1") for number in range(100)]
    held = Held()
    with pytest.raises(LayerfarmError, match="link"):
        apply(tmp_path, archive(*files, entry("h", "hardlink", link="none")), options=THREADS)
    assert not held.new()


def test_names_that_come_again_in_a_layer_are_written_in_its_order(tmp_path: Path) -> None:
    files = []
    for number in range(100):
        files += [entry("same", content=b"%d" % number), entry(f"link{number}", "hardlink", link="same")]
    apply(tmp_path, archive(entry("first"), *files), options=THREADS)
    assert (tmp_path / "same").read_bytes() == b"99"
    for number in range(100):
        assert (tmp_path / f"link{number}").read_bytes() == b"%d" % number


def test_no_more_pieces_of_the_layer_are_held_than_batches_may_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each small file is in a piece of its own, between large files."""
    monkeypatch.setattr(small_files, "write", lambda fd, piece: time.sleep(0.002))
    files = [entry(f"{number}", content=bytes((1 << 20) if number % 2 else 10)) for number in range(200)]
    layer = archive(*files)
    tracemalloc.start()
    try:
        apply(tmp_path, layer, options=ExtractOptions(writers=2, content_wanted=lambda path: int(path) % 2 == 0))
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "threads"), [("tmpfs", 0), ("ramfs", 0), ("ext4", 4), ("nfs4", 4), ("", 4)])
def test_threads_are_for_file_systems_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, threads: int
) -> None:
    monkeypatch.setattr(small_files, "filesystem_type", lambda device: kind)
    with (tmp_path / "f").open("w") as file:
        assert threads_for(file.fileno()) == threads
    before = set(threading.enumerate())
    (tmp_path / "root").mkdir()
    seen: list[str] = []
    monkeypatch.setattr(small_files, "write", lambda fd, piece: seen.append(threading.current_thread().name))
    apply(tmp_path / "root", archive(*(entry(f"f{number}", content=b"1") for number in range(40))))
    assert ("write" in seen) is (threads > 0)
    assert set(threading.enumerate()) <= before
