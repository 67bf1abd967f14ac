"""Small upper layers are looked at ahead; the bundle is that of applying one layer after the other."""

from __future__ import annotations

import os
import random
import tarfile
from pathlib import Path

import pytest

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.image import layers as room
from layerfarm.jobs.image import resolve, unpack_manifest, unpack_rootfs
from layerfarm.jobs.image.bundle import Bundle
from layerfarm.jobs.store import Layout
from tests.trees import read_tree
from tests.unit.image.images import image, special, tar

NOISE = random.Random(1).randbytes(100_000)
BASE = tar(
    ("etc", None),
    ("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"),
    ("build", None),
    ("build/object", NOISE),
    ("build/program", b"program"),
    special("program", tarfile.LNKTYPE, "build/program"),
    ("etc/old", b"old"),
)
DELETING = tar((".wh.build", b""), ("etc/old", b"new"))
LINKING = tar(special("other", tarfile.LNKTYPE, "program"))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the thread that looks ahead, so that it has seen everything when the first layer is applied."""
    monkeypatch.setattr(room, "_PATIENCE", 30)


def files_of(bundle: Bundle) -> dict[str, bytes]:
    """The bundle's record of its tree, except values that differ in each copy."""
    return {path.name: path.read_bytes() for path in (bundle.mtree, bundle.extra)}


@pytest.mark.usefixtures("patient")
def test_the_bundle_is_that_of_applying_layer_after_layer(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = image(layout, [BASE, DELETING, LINKING])
    assert room.layers_to_scan(made) == [2, 3]
    fast = unpack_manifest(layout, tmp_path / "fast", made)
    monkeypatch.setattr(room, "layers_to_scan", lambda image: [])
    plain = unpack_manifest(layout, tmp_path / "plain", made)
    assert files_of(fast.bundle) == files_of(plain.bundle)
    assert (fast.count, fast.mtree, fast.warnings) == (plain.count, plain.mtree, plain.warnings)
    assert list(fast.entries()) == list(plain.entries())
    assert read_tree(tmp_path / "fast/rootfs") == read_tree(tmp_path / "plain/rootfs")
    # Left out with the directory that is deleted, and written for the names that are not.
    assert (tmp_path / "fast/rootfs/other").read_bytes() == b"program"
    assert (tmp_path / "fast/rootfs/other").stat().st_nlink == 2


@pytest.mark.usefixtures("patient")
def test_deleted_files_are_not_written(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(layout, [BASE, DELETING])
    written = 0
    write = os.write

    def counting(fd: int, data: bytes) -> int:
        nonlocal written
        written += len(data)
        return write(fd, data)

    monkeypatch.setattr(os, "write", counting)
    unpack_rootfs(layout, tmp_path / "rootfs", resolve(layout, "t"))
    assert written == len(b"root:x:0:0::/root:/bin/sh\n" + b"program" + b"new")


def test_only_layers_that_are_small_beside_those_below_are_examined(layout: Layout) -> None:
    assert room.layers_to_scan(image(layout, [DELETING, BASE, DELETING, BASE])) == [3]
    assert room.layers_to_scan(image(layout, [BASE])) == []
    assert room.layers_to_scan(image(layout)) == []


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_layer_that_cannot_be_looked_at_fails_when_it_is_applied(layout: Layout, tmp_path: Path, damage: str) -> None:
    made = image(layout, [BASE, DELETING])
    path = layout.blob_path(made.manifest.layers[1].digest)
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-20])
    elif damage == "changed":
        path.write_bytes(content[:-20] + bytes(20))
    with pytest.raises(LayerfarmError):
        unpack_manifest(layout, tmp_path / "b", made)
    assert not (tmp_path / "b").exists()
