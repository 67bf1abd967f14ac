"""A layout of another user: the content of its private directory leads nowhere else, and stops no command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfarm.jobs.errors import NotALayout, UnsafePath
from layerfarm.jobs.flows.base import WorkDirectory
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.gc import collect
from layerfarm.jobs.store.leases import Leases
from layerfarm.jobs.store.result_cache import read_result, write_result
from layerfarm.jobs.store.retention import read_ending, write_ending
from tests.alarm import no_hanging

A = Descriptor.model_validate({"mediaType": "a/b", "digest": "sha256:" + "a" * 64, "size": 1})
HEX = "a" * 64
OLD = (1, 1)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of another user with old files, in the forms in which a layout keeps its own."""
    top = tmp_path / "victim"
    for name in ("file", "1/lease", "1-a/sha256/" + HEX, "kind/note", "sha256_" + HEX + ".mtree", "JOB/f", "0/JOB"):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"precious")
    for path in [top, *top.rglob("*")]:
        os.utime(path, OLD)
    return top


@pytest.fixture(autouse=True)
def _no_hanging() -> Iterator[None]:
    with no_hanging(20):
        yield


def seen(top: Path) -> dict[str, tuple[float, bytes]]:
    return {
        str(path.relative_to(top)): (path.lstat().st_mtime, path.read_bytes() if path.is_file() else b"")
        for path in sorted([top, *top.rglob("*")])
    }


def private(layout: Layout) -> Path:
    return layout.path / ".layerfarm"


ACTS: dict[str, Callable[[Layout], object]] = {
    "gc": lambda layout: collect(layout, 0),
    "put": lambda layout: layout.put(b"x", "a/b"),
    "tag": lambda layout: layout.tag("t", A),
    "lease": lambda layout: Leases(layout.path).add("1", 10.0, [A.digest]),
    "release": lambda layout: Leases(layout.path).release("1"),
    "touch": lambda layout: Leases(layout.path).touch("1"),
    "read note": lambda layout: read_result(layout, "kind", "note"),
    "write note": lambda layout: write_result(layout, "kind", "note", b"new"),
    "read ending": lambda layout: read_ending(layout.path, "JOB"),
    "ending": lambda layout: write_ending(layout.path, "OTHER", "new"),
    "work": lambda layout: WorkDirectory(layout.path, "JOB").create(),
    "clean": lambda layout: WorkDirectory(layout.path, "JOB").remove(),
    "has": lambda layout: layout.has(A),
}
KINDS = (
    *("ingest", "next-index", "work", "unpack", "doomed", "leases", "leases-of-others", "tagging", "trash", "notes"),
    "ended",
    "committed",
)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_behind_a_link_in_it_is_read_or_changed(layout: Layout, victim: Path, kind: str) -> None:
    place = private(layout) / kind
    if place.exists():
        place.rmdir()
    place.symlink_to(victim)
    before = seen(victim)
    for name, act in ACTS.items():
        try:
            found = act(layout)
        except UnsafePath as error:
            assert f".layerfarm/{kind}" in str(error), name
        else:
            assert name not in ("read note", "read ending", "has") or not found, name
        assert seen(victim) == before, name


def test_nor_behind_the_directory_itself(layout: Layout, victim: Path) -> None:
    private(layout).rename(layout.path / "before")
    private(layout).symlink_to(victim)
    before = seen(victim)
    for name, act in ACTS.items():
        if name in ("read note", "clean"):
            assert act(layout) is None
        else:
            with pytest.raises(UnsafePath, match=r"\.layerfarm"):
                act(layout)
    assert seen(victim) == before


@pytest.mark.parametrize(
    "place",
    [
        "ingest/x",
        "next-index/x",
        "work/x",
        "leases/x",
        "leases/1/lease",
        "leases/1/sha256_" + HEX,
        "tagging/x",
        f"trash/1-a/sha256/{HEX}",
        "trash/1-a",
        "notes/kind/note",
        "notes/kind",
        "ended/0/JOB",
        "committed/0/x",
        "work/JOB",
        "index.lock",
    ],
)
def test_a_fifo_in_it_is_not_waited_for(layout: Layout, place: str) -> None:
    path = private(layout) / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    for name, act in ACTS.items():
        try:
            found = act(layout)
        except (UnsafePath, OSError) as error:
            assert place in str(error) or isinstance(error, FileExistsError), name
        else:
            assert name not in ("read note", "read ending", "has") or not found, name


def test_a_fifo_in_a_lease_does_not_keep_others_from_tagging(layout: Layout) -> None:
    """It was opened while the index was locked."""
    lease = private(layout) / "leases" / "1"
    lease.mkdir(parents=True)
    os.mkfifo(lease / "lease")
    collect(layout, 0)
    layout.tag("t", A)
    assert layout.tags() == ["t"]


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
def test_a_fifo_for_a_file_of_the_spec_is_not_waited_for(layout: Layout, name: str) -> None:
    (layout.path / name).rename(layout.path / "before")
    os.mkfifo(layout.path / name)
    with pytest.raises(NotALayout, match=f"no {name}"):
        Layout.open(layout.path)
    if name == "index.json":
        with pytest.raises(UnsafePath, match="not a regular file"):
            layout.index()


def test_links_for_what_the_spec_names_are_read_as_umoci_and_skopeo_do(layout: Layout, tmp_path: Path) -> None:
    blob = layout.put(b"x", "a/b")
    layout.tag("t", blob)
    farm = tmp_path / "farm"
    (farm / "blobs" / "sha256").mkdir(parents=True)
    for path in ("oci-layout", "index.json", f"blobs/sha256/{blob.digest[7:]}"):
        (farm / path).symlink_to(layout.path / path)
    linked = Layout.open(farm)
    assert linked.read(linked.find("t")[0]) == b"x"


def test_a_layout_itself_may_be_reached_through_a_link(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(layout.path)
    linked = Layout.open(tmp_path / "link")
    blob = linked.put(b"x", "a/b")
    linked.tag("t", blob)
    collect(linked, 0)
    assert layout.tags() == ["t"] and layout.read(blob) == b"x"


def test_a_second_name_of_a_strangers_file_is_not_given_away_as_the_lock(layout: Layout, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    stranger.touch()
    lock = private(layout) / "index.lock"
    lock.unlink(missing_ok=True)
    os.link(stranger, lock)
    os.chown(layout.path, 1234, 1234)
    layout.tag("t", A)
    assert stranger.stat().st_uid == os.geteuid()
