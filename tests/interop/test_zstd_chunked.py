"""zstd:chunked layers: podman of Debian 13 pulls what it lacks, that of Debian 12 pulls whole, both get the tree."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfarm.jobs.image import resolve
from layerfarm.jobs.image.validate import validate_image, validate_layout
from layerfarm.jobs.store import Layout
from tests.debian import bootstrap
from tests.interop.conftest import CACHE, Layerfarm, alone
from tests.interop.podman import Podman
from tests.interop.pushed import Pushed, as_podman_leaves_it, contents, made, pushing
from tests.trees import read_tree, tree
from tests.unit.compress.chunked_reader import Blob, toc_of

Program = Callable[[str], str]
Run = Callable[..., str]
SECOND = 10**9


@pytest.fixture(scope="module")
def images(program: Program, as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(program, tmp_path_factory.mktemp("images"), "zstd:chunked", contents(True))


@pytest.fixture
def pushed(program: Program, images: Path, tmp_path: Path) -> Iterator[Pushed]:
    with pushing(program, images, tmp_path) as tags:
        yield tags


@pytest.fixture(scope="session")
def debian13(as_root: None) -> Path:
    """A minbase of Debian 13 with podman. Read only."""
    found = CACHE / "trixie-podman"
    with alone(found.name):
        if not found.exists():
            bootstrap("trixie", found, "--include=podman")
    return found


def test_podman_of_debian_13_fetches_the_files_and_parts_that_it_lacks(
    pushed: Pushed, debian13: Path, tmp_path: Path
) -> None:
    podman = Podman(tmp_path / "podman", debian13)
    assert podman.version >= (5,)
    for tag, rootfs in zip(("1", "2"), pushed.trees, strict=True):
        podman.pull(pushed.reference(tag))
        assert as_podman_leaves_it(podman.tree_of(pushed.reference(tag))) == as_podman_leaves_it(rootfs)
    sizes = []
    for tag in ("1", "2"):
        (layer,) = pushed.image(tag).manifest.layers
        answers = pushed.registry.served(layer.digest)
        assert {status for status, _ in answers} == {206}
        sizes.append(sum(size for _, size in answers) / layer.size)
    assert 0.9 < sizes[0] < 1.01
    assert sizes[1] < 0.05


def test_layers_of_every_command_are_pulled_in_part(
    pushed: Pushed, debian13: Path, layerfarm: Layerfarm, tmp_path: Path
) -> None:
    """Podman compares each entry with the header in the tar, and the tar that it makes with the diff_id."""
    store = pushed.layout.path
    (tmp_path / "more").mkdir()
    (tmp_path / "more/file").write_bytes(b"x" * 5000)

    def run(*arguments: str | Path) -> None:
        code, _, error = layerfarm(*arguments)
        assert code == 0, error

    run("unpack", "--image", f"{store}:1", tmp_path / "bundle")
    (tmp_path / "bundle/rootfs/d/f03").unlink()
    (tmp_path / "bundle/rootfs/new").write_bytes(b"new" * 1000)
    run("repack", "--image", f"{store}:repack", tmp_path / "bundle")
    run("insert", "--image", f"{store}:repack", "--tag", "insert", "--opaque", tmp_path / "more", "/d")
    run("squash", "--image", f"{store}:insert", "--target", f"{store}:squash")
    run("rechunk", "--image", f"{store}:repack", "--target", f"{store}:rechunk")
    run("strip", "--image", f"{store}:repack", "--target", f"{store}:strip", "/d/f0*")
    podman = Podman(tmp_path / "podman", debian13)
    for tag in ("repack", "insert", "squash", "rechunk", "strip"):
        pushed.registry.put(store, tag, f"team/app:{tag}")
        podman.pull(pushed.reference(tag))
        for layer in pushed.image(tag).manifest.layers:
            assert {status for status, _ in pushed.registry.served(layer.digest)} == {206}, tag
    assert validate_layout(store).errors == 0


DIALECTS = (
    ("tar", "--format=v7"),
    ("tar", "--format=ustar"),
    ("tar", "--format=oldgnu"),
    ("tar", "--format=gnu"),
    ("tar", "--format=pax", "--xattrs"),
    ("bsdtar", "--format=gnutar"),
    ("bsdtar", "--format=pax"),
)


def test_tars_of_other_programs_are_pulled_in_part(
    program: Program, pushed: Pushed, debian13: Path, layerfarm: Layerfarm, tmp_path: Path
) -> None:
    source = tree(tmp_path / "source", contents(True))
    store = pushed.layout.path
    image = f"{store}:dialects"
    assert layerfarm("new", "--image", image)[0] == 0
    for number, (name, *options) in enumerate(DIALECTS):
        archive = tmp_path / f"{number}.tar"
        subprocess.run([program(name), *options, "-C", source, "-cf", archive, "d", "large", "empty"], check=True)
        added = layerfarm("raw", "add-layer", "--image", image, "--compress=zstd:chunked", archive)
        assert (added[0], added[2]) == (0, ""), options
    assert validate_image(store, "dialects").findings == []
    pushed.registry.put(store, "dialects", "team/app:dialects")
    Podman(tmp_path / "podman", debian13).pull(pushed.reference("dialects"))
    layers = pushed.image("dialects").manifest.layers
    assert len(layers) == len(DIALECTS)
    for layer in layers:
        assert {status for status, _ in pushed.registry.served(layer.digest)} == {206}


def test_podman_of_this_machine_gets_the_tree(program: Program, pushed: Pushed, tmp_path: Path) -> None:
    """Debian 12's podman reads only the first draft of the format, which layerfarm does not write; it pulls whole."""
    program("podman")
    podman = Podman(tmp_path / "podman")
    for tag, rootfs in zip(("1", "2"), pushed.trees, strict=True):
        podman.pull(pushed.reference(tag))
        assert as_podman_leaves_it(podman.tree_of(pushed.reference(tag))) == as_podman_leaves_it(rootfs)
    (layer,) = pushed.image("2").manifest.layers
    whole = pushed.registry.served(layer.digest) == [(200, layer.size)]
    assert whole is (podman.version < (5,))


def test_chunks_are_those_of_podman_and_its_layers_are_valid(
    pushed: Pushed, debian13: Path, tmp_path: Path, run: Run
) -> None:
    podman = Podman(tmp_path / "podman", debian13)
    podman.pull(pushed.reference("1"))
    theirs = f"{pushed.registry.host}/theirs:1"
    podman.push(pushed.reference("1"), theirs, "--force-compression", "--compression-format=zstd:chunked")
    run("skopeo", "copy", "--src-tls-verify=false", f"docker://{theirs}", f"oci:{pushed.layout.path}:theirs")
    assert validate_image(pushed.layout.path, "theirs").findings == []
    large = []
    for tag in ("1", "theirs"):
        (layer,) = pushed.image(tag).manifest.layers
        blob = Blob(pushed.layout.blob_path(layer.digest).read_bytes(), layer.annotations or {}, [])
        chunks = [entry for entry in toc_of(blob)["entries"] if entry["name"] == "large"]
        large.append([(c.get("chunkOffset", 0), c["chunkSize"], c["chunkDigest"], c.get("chunkType")) for c in chunks])
    assert len(large[0]) > 100
    assert large[0] == large[1]


def test_a_bundle_is_that_of_any_other_compression(pushed: Pushed, layerfarm: Layerfarm, tmp_path: Path) -> None:
    code, _, error = layerfarm("unpack", "--image", f"{pushed.layout.path}:1", tmp_path / "bundle")
    assert code == 0, error
    assert read_tree(tmp_path / "bundle/rootfs") == read_tree(pushed.trees[0])


def test_skopeo_copies_such_a_layer_as_it_is(pushed: Pushed, tmp_path: Path, run: Run) -> None:
    run("skopeo", "copy", "--src-tls-verify=false", f"docker://{pushed.reference('1')}", f"oci:{tmp_path}/copy:1")
    copied = resolve(Layout.open(tmp_path / "copy"), "1")
    assert copied.descriptor.digest == pushed.image("1").descriptor.digest
    assert os.path.exists(Layout.open(tmp_path / "copy").blob_path(copied.manifest.layers[0].digest))
