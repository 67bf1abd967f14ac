"""eStargz layers: stargz-snapshotter's library reads files alone, all others the whole tar, with two more files."""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from layerfarm.jobs.compress.estargz.plain import without_own
from layerfarm.jobs.image import PackedLayer, append_layer, resolve, unpack_rootfs
from layerfarm.jobs.image.validate import validate_image, validate_layout
from layerfarm.jobs.store import Layout
from tests.fuzz.archive_tar import ALONE
from tests.interop.conftest import CACHE, Layerfarm, alone
from tests.interop.podman import Podman
from tests.interop.pushed import SECOND, Pushed, as_podman_leaves_it, contents, made, pushing
from tests.trees import Node, file, read_tree

Program = Callable[[str], str]
Run = Callable[..., str]
Read = Callable[..., list[dict[str, Any]]]
DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
OWN: Final = {b"stargz.index.json", b".no.prefetch.landmark"}
LANDMARK: Final = ".no.prefetch.landmark"
PACKAGES: Final = (
    "golang-github-containerd-stargz-snapshotter-dev",
    "golang-github-opencontainers-go-digest-dev",
    "golang-github-klauspost-compress-dev",
    "golang-github-vbatts-tar-split-dev",
    "golang-github-cespare-xxhash-dev",
    "golang-golang-x-sync-dev",
)
"""stargz-snapshotter's library and what it imports, as source."""
KINDS: Final = {"dir": "dir", "file": "reg", "link": "symlink", "char": "char", "fifo": "fifo"}


@pytest.fixture(scope="session")
def stargz(as_root: None) -> Path:
    """A program of stargz-snapshotter's library (estargz.go), built of Debian's packages."""
    place = CACHE / "estargz"
    with alone(place.name):
        source = Path(__file__).with_name("estargz.go")
        program = place / sha256(source.read_bytes()).hexdigest()[:16]
        if not program.exists():
            place.mkdir(exist_ok=True)
            download = ["apt-get", "-qq", "download", *PACKAGES]
            if subprocess.run(download, cwd=place, stderr=subprocess.DEVNULL, check=False).returncode:
                subprocess.run(["apt-get", "-qq", "update"], check=True)
                subprocess.run(download, cwd=place, check=True)
            for package in place.glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", package, place / "root"], check=True)
            environment = {"GOPATH": str(place / "root/usr/share/gocode"), "GOCACHE": str(place / "build")}
            command = ["go", "build", "-o", place / "unfinished", source]
            subprocess.run(command, env=os.environ | ALONE | environment, check=True)
            (place / "unfinished").rename(program)
    return program


@pytest.fixture
def read(program: Program, stargz: Path, run: Run) -> Read:
    """Return what the library finds in the layers of an image, by path."""
    program("go")

    def call(layout: Layout, tag: str) -> list[dict[str, Any]]:
        arguments: list[str | Path] = []
        for layer in resolve(layout, tag).manifest.layers:
            arguments += [layout.blob_path(layer.digest), (layer.annotations or {})[DIGEST]]
        return [json.loads(line) for line in run(stargz, "read", *arguments).splitlines()]

    return call


@pytest.fixture(scope="module")
def images(program: Program, as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # No client that is tested compares parts of files.
    changed = contents(False) | {b"d/f07": file(b"changed", uid=7, mtime=7 * SECOND)}
    return made(program, tmp_path_factory.mktemp("images"), "estargz", changed)


@pytest.fixture
def pushed(program: Program, images: Path, tmp_path: Path) -> Iterator[Pushed]:
    with pushing(program, images, tmp_path) as tags:
        yield tags


def as_the_library_says(found: dict[bytes, Node]) -> dict[str, dict[str, Any]]:
    """A tree as a table of contents describes it."""
    del found[b"."]
    return {
        path.decode(): {
            "type": KINDS[node.type],
            "mode": 0o777 if node.type == "link" else node.mode,
            "owner": (node.uid, node.gid),
            "time": node.mtime // SECOND,
            "link": (node.link or b"").decode(),
            "device": node.device or (0, 0),
            "content": "" if node.content is None else f"sha256:{sha256(node.content).hexdigest()}",
            "xattrs": {key: base64.b64encode(value).decode() for key, value in node.xattrs},
        }
        for path, node in found.items()
    }


def comparable(layer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """An entry of the library for each path, without places and the landmark."""
    return {
        path: {
            "type": entry["type"],
            "mode": entry["mode"],
            "owner": (entry["uid"], entry["gid"]),
            "time": entry["time"] // SECOND,
            "link": entry["link"],
            "device": tuple(entry["device"]),
            "content": entry["content"],
            "xattrs": entry["xattrs"] or {},
        }
        for path, entry in layer.items()
        if path != LANDMARK
    }


def test_the_library_of_stargz_snapshotter_finds_the_tree(pushed: Pushed, read: Read) -> None:
    for tag, rootfs in zip(("1", "2"), pushed.trees, strict=True):
        (layer,) = read(pushed.layout, tag)
        assert LANDMARK in layer
        assert comparable(layer) == as_the_library_says(read_tree(rootfs))
        assert layer["large"]["chunks"] == 2


def test_the_library_reads_the_layers_of_every_command(
    pushed: Pushed, read: Read, layerfarm: Layerfarm, tmp_path: Path
) -> None:
    store = pushed.layout.path
    (tmp_path / "more").mkdir()
    (tmp_path / "more/file").write_bytes(b"x" * 5000)

    def run(*arguments: str | Path) -> None:
        code, _, error = layerfarm(*arguments)
        assert (code, "warning" in error) == (0, False), error

    run("unpack", "--image", f"{store}:1", tmp_path / "bundle")
    assert not {os.fsencode(name) for name in os.listdir(tmp_path / "bundle/rootfs")} & OWN
    (tmp_path / "bundle/rootfs/d/f03").unlink()
    (tmp_path / "bundle/rootfs/new").write_bytes(b"new" * 1000)
    run("repack", "--image", f"{store}:repack", tmp_path / "bundle")
    run("insert", "--image", f"{store}:repack", "--tag", "insert", "--opaque", tmp_path / "more", "/d")
    run("squash", "--image", f"{store}:insert", "--target", f"{store}:squash")
    run("rechunk", "--image", f"{store}:repack", "--target", f"{store}:rechunk")
    run("strip", "--image", f"{store}:repack", "--target", f"{store}:strip", "/d/f0*")
    for tag in ("repack", "insert", "squash", "rechunk", "strip"):
        assert len(read(pushed.layout, tag)) == len(pushed.image(tag).manifest.layers)
    assert "d/.wh..wh..opq" in read(pushed.layout, "insert")[-1]
    assert validate_layout(store).errors == 0


def test_files_to_prefetch_are_before_the_landmark(
    pushed: Pushed, read: Read, layerfarm: Layerfarm, tmp_path: Path
) -> None:
    wanted = tmp_path / "wanted"
    wanted.write_text("/d/f33\n\nd/f07\nmissing\n")
    image, target = f"{pushed.layout.path}:1", f"{pushed.layout.path}:p"
    done = layerfarm("recompress", "--image", image, "--target", target, "--compress=estargz", "--prefetch", wanted)
    assert done[0] == 0, done[2]
    (layer,) = read(pushed.layout, "p")
    end = layer[".prefetch.landmark"]["offset"]
    assert layer["d/f33"]["offset"] < layer["d/f07"]["offset"] < end
    before = {path for path, entry in layer.items() if 0 < entry["offset"] < end}
    assert before == {"d/f33", "d/f07"}
    assert LANDMARK not in layer
    code, _, error = layerfarm("diff", image, target)
    assert code == 0, error


@pytest.mark.parametrize("first", [(), ("d/f33", "large")])
def test_layers_of_stargz_snapshotter_are_valid_and_have_the_tree(
    pushed: Pushed, stargz: Path, run: Run, first: tuple[str, ...], tmp_path: Path
) -> None:
    (layer,) = pushed.image("1").manifest.layers
    tar = tmp_path / "plain.tar"
    tar.write_bytes(b"".join(without_own([gzip.decompress(pushed.layout.blob_path(layer.digest).read_bytes())])))
    digest = run(stargz, "write", tar, tmp_path / "blob", *first).strip()
    blob = (tmp_path / "blob").read_bytes()
    put = pushed.layout.put(blob, layer.media_type)
    theirs = PackedLayer(
        descriptor=put.model_copy(update={"annotations": {DIGEST: digest}}),
        diff_id=f"sha256:{sha256(gzip.decompress(blob)).hexdigest()}",
        uncompressed_size=0,
    )
    image = append_layer(pushed.layout, None, theirs, None)
    pushed.layout.tag("theirs", image.path[0])
    assert validate_image(pushed.layout.path, "theirs").findings == []
    assert layer.size <= 1.03 * len(blob)
    unpack_rootfs(pushed.layout, tmp_path / "unpacked", image)
    assert as_podman_leaves_it(tmp_path / "unpacked") == as_podman_leaves_it(pushed.trees[0])


def test_to_all_others_it_is_a_gzip_layer_with_two_more_files(
    pushed: Pushed, program: Program, run: Run, tmp_path: Path
) -> None:
    blob = pushed.layout.blob_path(pushed.image("1").manifest.layers[0].digest)
    listed = run("sh", "-c", f"{program('gzip')} -dc {blob} | {program('tar')} -t").splitlines()
    assert len(listed) == len(set(listed))
    assert {os.fsencode(name) for name in listed} > OWN
    for name, command in {
        "bsdtar": [program("bsdtar"), "-xpf", blob, "-C", "bsdtar"],
        "umoci": [program("umoci"), "raw", "unpack", "--image", f"{pushed.layout.path}:1", "umoci"],
    }.items():
        (tmp_path / name).mkdir()
        run(*command, cwd=tmp_path)
        found = as_podman_leaves_it(tmp_path / name)
        assert {path: found.pop(path) for path in OWN}
        assert found == as_podman_leaves_it(pushed.trees[0]), name


def without_owners(tree: dict[bytes, Node]) -> dict[bytes, Node]:
    """Podman 4 loses owners and times of all that it pulls in part."""
    return {path: replace(node, uid=0, gid=0, mtime=0) for path, node in tree.items()}


def test_podman_of_this_machine_gets_the_tree(pushed: Pushed, program: Program, tmp_path: Path) -> None:
    """Debian 12's podman fetches the file that it lacks. Later versions pull all, without tar-split data."""
    program("podman")
    podman = Podman(tmp_path / "podman")
    shares = []
    for tag, rootfs in zip(("1", "2"), pushed.trees, strict=True):
        podman.pull(pushed.reference(tag))
        found = without_owners(as_podman_leaves_it(podman.tree_of(pushed.reference(tag))))
        for path in OWN if podman.version >= (5,) else ():
            del found[path]
        assert found == without_owners(as_podman_leaves_it(rootfs))
        (layer,) = pushed.image(tag).manifest.layers
        answers = pushed.registry.served(layer.digest)
        assert {status for status, _ in answers} == {206 if podman.version < (5,) else 200}
        shares.append(sum(size for _, size in answers) / layer.size)
    assert 0.9 < shares[0] < 1.1
    assert (shares[1] < 0.05) is (podman.version < (5,))


def test_skopeo_copies_such_a_layer_as_it_is(pushed: Pushed, tmp_path: Path, run: Run) -> None:
    run("skopeo", "copy", "--src-tls-verify=false", f"docker://{pushed.reference('1')}", f"oci:{tmp_path}/copy:1")
    copied = resolve(Layout.open(tmp_path / "copy"), "1")
    assert copied.descriptor.digest == pushed.image("1").descriptor.digest
    assert validate_image(tmp_path / "copy", "1").findings == []
