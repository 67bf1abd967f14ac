"""The manifest flow: the same bytes from any number of shards, everything recorded, nothing left behind."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import pytest

from layerfarm.jobs.errors import MtreeSyntaxError, OutsideAllowedRoots, RequestError, RootfsError, RootfsNotFound
from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.manifest import HEADER, ManifestRequest, ManifestResult, read_tree_file
from layerfarm.jobs.mtree import read_manifest, snapshot
from layerfarm.worker.engine.local import run
from tests.trees import char, directory, fifo, file, hardlink, symlink, tree

SPEC = {
    ".": directory(mode=0o700),
    "a/one": file(b"1" * 5000, xattrs={"user.big": b"x" * 3000}),
    "a/two": hardlink("a/one"),
    "a/b/c": file(b"", mtime=1_500_000_000_123_456_789),
    "dev": char(1, 3, xattrs={"trusted.x": b"on a device"}),
    "link": symlink("a/one"),
    "pipe": fifo(),
    os.fsdecode(b"odd \xff\n*"): file(b"odd"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "root", SPEC)


def manifest(root: Path, output: Path, policy: Policy | None = None, processes: int = 1) -> ManifestResult:
    result = run(ManifestRequest(rootfs=root, output=output), policy, processes)
    assert isinstance(result, ManifestResult)
    return result


def test_any_number_of_shards_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    results = [manifest(root, tmp_path / f"m{n}", Policy(shards=n), processes=2) for n in (1, 2, 3, 50)]
    assert len({(tmp_path / f"m{n}").read_bytes() for n in (1, 2, 3, 50)}) == 1
    assert len({result.mtree for result in results}) == 1
    assert results[0].size == (tmp_path / "m1").stat().st_size
    assert sorted(os.listdir(tmp_path)) == ["m1", "m2", "m3", "m50", "root"]


def test_nothing_is_left_out_and_both_readers_agree(root: Path, tmp_path: Path) -> None:
    result = manifest(root, tmp_path / "m")
    entries = list(snapshot(root))
    assert result.entries == len(entries)
    with (tmp_path / "m").open("rb") as stream:
        assert list(read_tree_file(stream)) == entries
    with (tmp_path / "m").open("rb") as stream:
        # Fields that the general reader cannot know to be recorded are None: links and the like without xattrs.
        assert [entry._replace(xattrs=entry.xattrs or ()) for entry in read_manifest(stream)] == entries


def test_an_older_manifest_is_replaced_in_one_step(root: Path, tmp_path: Path) -> None:
    (tmp_path / "m").write_text("old")
    manifest(root, tmp_path / "m")
    assert (tmp_path / "m").read_bytes().startswith(HEADER)


def test_a_manifest_may_have_a_name_of_255_bytes(root: Path, tmp_path: Path) -> None:
    manifest(root, tmp_path / ("m" * 255))
    assert (tmp_path / ("m" * 255)).read_bytes().startswith(HEADER)


def test_a_failure_leaves_the_old_manifest_and_nothing_else(root: Path, tmp_path: Path) -> None:
    (tmp_path / "m").write_text("old")

    class Vanishing(Policy):
        def check_root(self, path: Path) -> Path:
            if (tmp_path / "m").parent.joinpath("root/a/one").exists() and list(tmp_path.glob(".layerfarm-*/walk")):
                (root / "a/one").unlink()
            return super().check_root(path)

    with pytest.raises(RootfsError):
        manifest(root, tmp_path / "m", Vanishing())
    assert (tmp_path / "m").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["m", "root"]


def test_requests_that_make_no_sense(root: Path, tmp_path: Path) -> None:
    for output in (root / "m", root / "a" / "m", tmp_path, tmp_path / "absent" / "m"):
        with pytest.raises(RequestError):
            manifest(root, output)
    with pytest.raises(RootfsNotFound):
        manifest(tmp_path / "absent", tmp_path / "m")
    assert os.listdir(tmp_path) == ["root"]


def test_only_allowed_directories_are_read_and_written(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for roots in ((root,), (other,)):
        with pytest.raises(OutsideAllowedRoots):
            manifest(root, other / "m", Policy(roots=roots))
    assert manifest(root, other / "m", Policy(roots=(root, other))).entries == len(list(snapshot(root)))


def test_a_foreign_file_is_refused() -> None:
    with pytest.raises(MtreeSyntaxError):
        read_tree_file(BytesIO(b"#mtree\n. type=dir\n"))
