"""An NFS client repeats a rename whose answer was lost, and gets ENOENT: every command takes it for done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.gc import collect
from layerfarm.jobs.store.leases import Leases
from tests.trees import file, read_tree, tree
from tests.unit.cli.conftest import Run


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of what was renamed, each time twice."""
    real, found = os.rename, set[str]()

    def rename(source: Any, target: Any, **places: Any) -> None:
        real(source, target, **places)
        found.add(os.path.basename(os.fsdecode(target)))
        real(source, target, **places)

    monkeypatch.setattr(os, "rename", rename)
    return found


def test_commands_survive_repeated_renames(tmp_path: Path, layerfarm: Run, renamed: set[str]) -> None:
    root = tree(tmp_path / "root", {"a/b": file(b"1"), "c": file(b"2")})

    def do(*words: str | Path) -> None:
        ran = layerfarm(*words)
        assert ran.code == 0, (words, ran.err)

    do("init", "--layout", "store")
    do("build", "--rootfs", root, "--image", "store:first", "--processes=1")
    do("unpack", "--image", "store:first", "--processes=1", "bundle")
    (tmp_path / "bundle/rootfs/c").write_bytes(b"changed")
    do("repack", "--image", "store:second", "--refresh-bundle", "--processes=1", "bundle")
    (tmp_path / "bundle/rootfs/a/b").unlink()
    do("revert", "--layout", "store", "bundle")
    assert (tmp_path / "bundle/rootfs/a/b").read_bytes() == b"1"
    (tmp_path / "empty").mkdir()
    do("unpack", "--image", "store:second", "--processes=1", "empty")
    do("recompress", "--image", "store:second", "--target=store:zstd", "--compress=zstd", "--processes=1")
    do("squash", "--image", "store:second", "--target=store:squashed", "--processes=1")
    do("flatten", "--image", "store:squashed", "flat")
    do("flatten", "--image", "store:squashed", "--tar", "flat.tar")
    assert read_tree(tmp_path / "flat").keys() == read_tree(root).keys()
    do("rm", "--image", "store:zstd")
    do("gc", "--layout", "store", "--grace=0s")
    do("validate", "--layout", "store")
    assert {"index.json", "umoci.json", "rootfs", "b", "flat", "flat.tar"} <= renamed
    assert not [*tmp_path.glob(".*"), *tmp_path.glob("store/.layerfarm/ingest/*")]


def test_blob_in_the_trash_is_counted_and_restored(tmp_path: Path, renamed: set[str]) -> None:
    layout = Layout.create(tmp_path / "store")
    blob = layout.put(b"unneeded", "text/plain")
    os.utime(layout.blob_path(blob.digest), (1, 1))
    assert collect(layout).blobs == [(blob.digest, blob.size)]
    assert not layout.blob_path(blob.digest).exists()
    Leases(layout.path).add("holder", 60, [blob.digest])
    assert collect(layout).restored == [blob.digest]
    assert layout.read(blob) == b"unneeded"
    assert blob.digest.partition(":")[2] in renamed
