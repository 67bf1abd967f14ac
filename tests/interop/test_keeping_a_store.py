"""gc, validate, diff and revert on a real Debian, beside umoci and skopeo."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.interop.changes import COUNT, change
from tests.interop.conftest import Run
from tests.trees import in_seconds, read_tree


def blobs(store: Path) -> set[str]:
    return {path.name for path in store.glob("blobs/*/*")}


@pytest.mark.parametrize("unpacker", ["layerfarm", "umoci"])
def test_two_hundred_changes_are_reverted(debian_store: Path, tmp_path: Path, run: Run, unpacker: str) -> None:
    run(unpacker, "unpack", "--image", f"{debian_store}:deb", "bundle")
    rootfs = tmp_path / "bundle/rootfs"
    before = read_tree(rootfs)
    assert len(change(rootfs, seed=361)) == COUNT
    changed = read_tree(rootfs)
    inodes = {path: os.lstat(os.fsencode(rootfs) + b"/" + path).st_ino for path in changed}
    run("layerfarm", "revert", "--layout", debian_store, "bundle")
    assert run("layerfarm", "diff", "bundle", f"{debian_store}:deb") == ""
    assert in_seconds(read_tree(rootfs)) == in_seconds(before)
    kept = [path for path in before if before[path] == changed.get(path)]
    assert len(kept) > len(before) / 2
    assert all(os.lstat(os.fsencode(rootfs) + b"/" + path).st_ino == inodes[path] for path in kept)
    run("umoci", "repack", "--image", f"{debian_store}:same", "bundle")
    layers = [
        json.loads(run("skopeo", "inspect", "--raw", f"oci:{debian_store}:{tag}"))["layers"] for tag in ("deb", "same")
    ]
    assert layers[0] == layers[1]


def test_a_killed_revert_is_run_again(debian_store: Path, tmp_path: Path, run: Run) -> None:
    run("layerfarm", "unpack", "--image", f"{debian_store}:deb", "bundle")
    rootfs = tmp_path / "bundle/rootfs"
    before = read_tree(rootfs)
    change(rootfs, seed=172)
    killed = subprocess.Popen(["layerfarm", "revert", "--layout", debian_store, tmp_path / "bundle"])
    # As soon as the image is being staged, or when all is done if that was quicker.
    while killed.poll() is None and not list((tmp_path / "bundle").glob(".layerfarm-revert-*/rootfs/usr")):
        pass
    killed.kill()
    killed.wait()
    run("layerfarm", "revert", "--layout", debian_store, "bundle")
    assert read_tree(rootfs) == before
    assert not list((tmp_path / "bundle").glob(".layerfarm*"))


def test_diff_tells_of_the_changes_and_of_nothing_else(
    debian_store: Path, debian: Path, tmp_path: Path, run: Run
) -> None:
    run("layerfarm", "unpack", "--image", f"{debian_store}:deb", "bundle")
    run("layerfarm", "mtree", "bundle/rootfs", "-o", "before.mtree")
    for old, new in (("before.mtree", "bundle"), (f"{debian_store}:deb", debian), (debian, "bundle")):
        assert run("layerfarm", "diff", old, new) == ""
    before = in_seconds(read_tree(tmp_path / "bundle/rootfs"))
    change(tmp_path / "bundle/rootfs", seed=7)
    after = in_seconds(read_tree(tmp_path / "bundle/rootfs"))
    differing = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    # The content of a replaced directory is gone too.
    silent = {
        path
        for path in differing
        if path not in after and any(after[above].type != "dir" for above in _above(path) if above in after)
    }
    outputs = []
    for old in (f"{debian_store}:deb", "before.mtree", debian):
        done = subprocess.run(
            ["layerfarm", "diff", "--json", old, "bundle"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (1, "")
        outputs.append(json.loads(done.stdout))
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]) == len(differing - silent)


def _above(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]


def test_the_manifest_is_read_by_bsdtar(debian: Path, tmp_path: Path, run: Run) -> None:
    run("layerfarm", "mtree", debian, "-o", "m")
    listed = run("bsdtar", "-tf", "m").splitlines()
    assert len(listed) == int(run("sh", "-c", f"find {debian} | wc -l"))


def test_gc_without_a_grace_leaves_what_umocis_gc_leaves(debian_store: Path, tmp_path: Path, run: Run) -> None:
    run("layerfarm", "unpack", "--image", f"{debian_store}:deb", "bundle")
    for number in range(3):
        (tmp_path / "bundle/rootfs/new").write_text(f"{number}")
        run("layerfarm", "repack", "--image", f"{debian_store}:v{number}", "bundle")
    run("umoci", "tag", "--image", f"{debian_store}:v1", "kept")
    for tag in ("v0", "v1"):
        run("umoci", "rm", "--image", f"{debian_store}:{tag}")
    run("cp", "-a", debian_store, tmp_path / "theirs")
    run("layerfarm", "gc", "--layout", debian_store, "--grace=0s")
    run("umoci", "gc", "--layout", "theirs")
    assert blobs(debian_store) == blobs(tmp_path / "theirs")
    report = json.loads(run("layerfarm", "validate", "--layout", debian_store, "--json"))
    assert (report["findings"], report["unreachable"]) == ([], 0)
    for tag in ("deb", "kept", "v2"):
        run("skopeo", "inspect", f"oci:{debian_store}:{tag}")


def test_images_of_umoci_and_skopeo_are_valid(debian: Path, tmp_path: Path, run: Run) -> None:
    run("umoci", "init", "--layout", "theirs")
    run("umoci", "new", "--image", "theirs:v1")
    run("umoci", "insert", "--image", "theirs:v1", debian / "etc", "/etc")
    run("umoci", "config", "--image", "theirs:v1", "--config.env", "A=1", "--author", "x")
    run("skopeo", "copy", "oci:theirs:v1", "oci:copied:v1")
    for layout in ("theirs", "copied"):
        assert json.loads(run("layerfarm", "validate", "--image", f"{layout}:v1", "--json"))["findings"] == []
    run("umoci", "unpack", "--image", "copied:v1", "bundle")
    assert json.loads(run("layerfarm", "validate", "--bundle", "bundle", "--json"))["findings"] == []
