"""One rootfs through both tools: what layerfarm writes umoci reads, and the other way round."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.interop.changes import COUNT, change
from tests.interop.conftest import Run
from tests.trees import char, directory, file, hardlink, in_seconds, read_tree, symlink, tree
from tests.unit.layer.archives import links_beside_their_inodes

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""``cap_net_raw+ep``"""
LINKED = {
    ".": directory(),
    "bin/ping": file(b"ping", mode=0o755, uid=7, gid=8, xattrs={"security.capability": CAPABILITY, "user.k": b"v"}),
    "bin/ping4": hardlink("bin/ping"),
    "bin/su": file(b"su", mode=0o4755, uid=7),
    "bin/su2": hardlink("bin/su"),
    "null": char(1, 3, mode=0o666, gid=5),
    "null2": hardlink("null"),
    "to": symlink("bin/su"),
}


def test_built_image_is_the_same_tree_after_umoci_unpack(
    debian_layout: Path, debian: Path, tmp_path: Path, run: Run
) -> None:
    run("umoci", "unpack", "--image", f"{debian_layout}:deb", "bundle")
    assert in_seconds(read_tree(tmp_path / "bundle/rootfs")) == in_seconds(read_tree(debian))


def test_built_image_is_the_same_tree_after_umoci_raw_unpack(
    debian_layout: Path, debian: Path, tmp_path: Path, run: Run
) -> None:
    run("umoci", "raw", "unpack", "--image", f"{debian_layout}:deb", "raw")
    assert in_seconds(read_tree(tmp_path / "raw")) == in_seconds(read_tree(debian))


def test_built_image_is_the_same_tree_after_layerfarm_unpack(
    debian_layout: Path, debian: Path, tmp_path: Path, run: Run
) -> None:
    run("layerfarm", "unpack", "--image", f"{debian_layout}:deb", "bundle")
    assert in_seconds(read_tree(tmp_path / "bundle/rootfs")) == in_seconds(read_tree(debian))


def test_skopeo_copies_the_built_image(debian_layout: Path, tmp_path: Path, run: Run) -> None:
    run("skopeo", "copy", f"oci:{debian_layout}:deb", f"dir:{tmp_path}/copied")
    manifest = json.loads((tmp_path / "copied/manifest.json").read_text())
    assert len(manifest["layers"]) == 1
    assert (tmp_path / "copied" / manifest["layers"][0]["digest"].partition(":")[2]).exists()


@pytest.mark.parametrize("compress", ["gzip", "none", "zstd"])
def test_tar_programs_list_the_layer(debian: Path, tmp_path: Path, run: Run, compress: str) -> None:
    store = _build(debian, tmp_path, run, compress)
    layer = _layers(store, "deb", run)[-1]
    option = {"gzip": "-z", "none": "--no-auto-compress", "zstd": "--zstd"}[compress]
    gnu = run("tar", option, "-tf", layer).splitlines()
    bsd = run("bsdtar", "-tf", layer).splitlines()
    on_disk = int(run("sh", "-c", f"find {debian} | wc -l"))
    assert len(gnu) == len(bsd) == on_disk


def test_hard_links_are_written_as_umoci_writes_them_and_read_by_all(tmp_path: Path, run: Run) -> None:
    rootfs = tree(tmp_path / "rootfs", LINKED)
    said = {}
    for tool in ("umoci", "layerfarm"):
        run(tool, "init", "--layout", tool)
        run(tool, "new", "--image", f"{tool}:t")
        run(tool, "insert", "--image", f"{tool}:t", rootfs, "/")
        (layer,) = _layers(tmp_path / tool, "t", run)
        said[tool] = links_beside_their_inodes(gzip.decompress(layer.read_bytes()))
    assert said["layerfarm"] == said["umoci"]
    assert len(said["umoci"]) == 3
    wanted = in_seconds(read_tree(rootfs))
    run("umoci", "raw", "unpack", "--image", "layerfarm:t", "by-umoci")
    for name, command in {
        "by-tar": ("tar", "--xattrs", "--xattrs-include=*", "-xpzf", layer, "-C"),
        "by-bsdtar": ("bsdtar", "--xattrs", "-xpf", layer, "-C"),
    }.items():
        (tmp_path / name).mkdir()
        run(*command, name)
    assert in_seconds(read_tree(tmp_path / "by-umoci")) == wanted
    assert in_seconds(read_tree(tmp_path / "by-tar")) == wanted
    # bsdtar leaves the directory alone that it extracts to.
    assert in_seconds(read_tree(tmp_path / "by-bsdtar")) | {b".": wanted[b"."]} == wanted


@pytest.mark.parametrize(
    ("unpacker", "repacker"),
    [
        pytest.param("umoci", "layerfarm", id="umoci-then-layerfarm"),
        pytest.param("layerfarm", "umoci", id="layerfarm-then-umoci"),
        pytest.param("layerfarm", "layerfarm", id="layerfarm-twice"),
    ],
)
def test_two_hundred_changes_survive_repack(
    debian_store: Path, tmp_path: Path, run: Run, unpacker: str, repacker: str
) -> None:
    run(unpacker, "unpack", "--image", f"{debian_store}:deb", "bundle")
    assert len(change(tmp_path / "bundle/rootfs", seed=2026)) == COUNT
    run(repacker, "repack", "--image", f"{debian_store}:changed", "bundle")
    changed = in_seconds(read_tree(tmp_path / "bundle/rootfs"))
    for reader in ("umoci", "layerfarm"):
        run(reader, "unpack", "--image", f"{debian_store}:changed", f"by-{reader}")
        assert in_seconds(read_tree(tmp_path / f"by-{reader}/rootfs")) == changed, reader


def test_unpacked_by_layerfarm_umoci_sees_no_change(debian_store: Path, tmp_path: Path, run: Run) -> None:
    run("layerfarm", "unpack", "--image", f"{debian_store}:deb", "bundle")
    run("umoci", "repack", "--image", f"{debian_store}:same", "bundle")
    assert _layers(debian_store, "same", run) == _layers(debian_store, "deb", run)


def test_unpacked_by_umoci_layerfarm_sees_no_change(debian_store: Path, tmp_path: Path, run: Run) -> None:
    run("umoci", "unpack", "--image", f"{debian_store}:deb", "bundle")
    run("layerfarm", "repack", "--image", f"{debian_store}:same", "bundle")
    assert _layers(debian_store, "same", run) == _layers(debian_store, "deb", run)


def test_rebuild_on_a_base_packs_only_what_differs(
    debian_copy: Path, debian_store: Path, tmp_path: Path, run: Run
) -> None:
    change(debian_copy, seed=7)
    run(
        "layerfarm",
        "build",
        "--rootfs",
        debian_copy,
        "--image",
        f"{debian_store}:next",
        "--base",
        f"{debian_store}:deb",
    )
    first, second = _layers(debian_store, "next", run)
    assert [first] == _layers(debian_store, "deb", run)
    assert second.stat().st_size < first.stat().st_size / 4
    run("umoci", "unpack", "--image", f"{debian_store}:next", "bundle")
    assert in_seconds(read_tree(tmp_path / "bundle/rootfs")) == in_seconds(read_tree(debian_copy))


def _build(rootfs: Path, tmp_path: Path, run: Run, compress: str = "gzip") -> Path:
    store = tmp_path / "store"
    run("layerfarm", "init", "--layout", store)
    run("layerfarm", "build", "--rootfs", rootfs, "--image", f"{store}:deb", "--compress", compress)
    return store


def _layers(store: Path, tag: str, run: Run) -> list[Path]:
    """The blobs of an image's layers, as skopeo sees them."""
    manifest = json.loads(run("skopeo", "inspect", "--raw", f"oci:{store}:{tag}"))
    return [store / "blobs" / layer["digest"].replace(":", "/") for layer in manifest["layers"]]
