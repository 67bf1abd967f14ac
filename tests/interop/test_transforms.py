"""Transformed images, as umoci and skopeo see them: the same trees, and everything beside them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.store import Layout
from tests.interop.changes import change
from tests.interop.conftest import Run
from tests.trees import Node, read_tree
from tests.unit.image.images import image, tar
from tests.unit.relayer.images import attestation, two_platforms

Trees = Callable[[str], dict[bytes, Node]]
PARTS = ("bin", "sbin", "lib", "lib64", "etc", "usr/bin", "usr/sbin", "usr/lib", "var/lib/dpkg")


@pytest.fixture(scope="module")
def store(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a Debian base and an image of two more layers on it, by which much of it changes.

    Made once: each test has tags of its own.
    """
    place = tmp_path_factory.mktemp("transforms")
    store, root, bundle = place / "store", place / "root", place / "bundle"
    rootfs = bundle / "rootfs"
    for part in PARTS:
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", str(debian / part), str(root / part)], check=True)
    _quietly("layerfarm", "init", "--layout", store)
    _quietly("layerfarm", "build", "--rootfs", root, "--image", f"{store}:base")
    _quietly("layerfarm", "unpack", "--image", f"{store}:base", bundle)
    (rootfs / "etc/first").write_bytes(b"of two names")
    change(rootfs, 7)
    _quietly("layerfarm", "repack", "--image", f"{store}:one", "--refresh-bundle", bundle)
    os.link(rootfs / "etc/first", rootfs / "etc/second")
    subprocess.run(["rm", "-r", str(rootfs / "usr/sbin"), str(rootfs / "sbin")], check=True)
    (rootfs / "sbin").mkdir()
    (rootfs / "sbin/new").write_bytes(b"new")
    _quietly("umoci", "repack", "--image", f"{store}:app", bundle)
    subprocess.run(["rm", "-r", str(root), str(bundle)], check=True)
    return store


def _quietly(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.fixture
def trees(store: Path, tmp_path: Path, run: Run) -> Trees:
    """Tree that ``umoci unpack`` makes of a tag, read by a walker that shares nothing with the product."""

    def unpacked(tag: str) -> dict[bytes, Node]:
        bundle = tmp_path / f"umoci-{tag}"
        run("umoci", "unpack", "--image", f"{store}:{tag}", bundle)
        found = read_tree(bundle / "rootfs")
        subprocess.run(["rm", "-r", str(bundle)], check=True)
        return found

    return unpacked


def test_squashed_and_recompressed_images_unpack_to_the_same_tree(store: Path, trees: Trees, run: Run) -> None:
    wanted = trees("app")
    image = f"{store}:app"
    run("layerfarm", "squash", "--image", image, "--target", f"{store}:flat")
    run("layerfarm", "squash", "--image", image, "--base", f"{store}:base", "--target", f"{store}:two")
    run(
        "layerfarm",
        "recompress",
        "--image",
        image,
        "--compress",
        "gzip",
        "--compress-level",
        "9",
        "--target",
        f"{store}:z",
    )
    for tag, layers in (("flat", 1), ("two", 2), ("z", 3)):
        assert len(_manifest(store, tag, run)["layers"]) == layers
        assert trees(tag) == wanted
        assert "proofs: 1, errors: 0, warnings: 0" in run("layerfarm", "verify", "--image", f"{store}:{tag}")
    assert _manifest(store, "two", run)["layers"][0] == _manifest(store, "base", run)["layers"][0]
    assert {"base", "one", "app", "flat", "two", "z"} <= set(run("umoci", "ls", "--layout", store).split())
    # umoci's own collection keeps the proofs, too.
    run("umoci", "gc", "--layout", store)
    assert "proofs: 1, errors: 0" in run("layerfarm", "verify", "--image", f"{store}:flat")


def test_skopeo_takes_what_was_recompressed_and_unpacks_to_the_same_tars(store: Path, tmp_path: Path, run: Run) -> None:
    run("layerfarm", "recompress", "--image", f"{store}:app", "--compress", "zstd", "--target", f"{store}:zstd")
    run("skopeo", "copy", f"oci:{store}:zstd", f"dir:{tmp_path}/dir")
    old, new = (_manifest(store, tag, run) for tag in ("app", "zstd"))
    assert new["config"]["digest"] == old["config"]["digest"]
    for before, after in zip(old["layers"], new["layers"], strict=True):
        tars = [
            run("sh", "-c", f"{program} -dc <{store}/blobs/sha256/{layer['digest'][7:]} | sha256sum")
            for program, layer in (("gzip", before), ("zstd", after))
        ]
        assert tars[0] == tars[1]


def test_a_stripped_image_has_what_is_left_in_every_tool(store: Path, trees: Trees, run: Run) -> None:
    stripped = b"usr/lib/x86_64-linux-gnu/gconv"
    wanted = {}
    for path, node in trees("app").items():
        if not path.startswith(stripped):
            links = tuple(name for name in node.group if not name.startswith(stripped))
            wanted[path] = replace(node, group=links if len(links) > 1 else ())
    run("layerfarm", "strip", "--image", f"{store}:app", "--target", f"{store}:slim", "usr/lib/x86_64-linux-gnu/gconv")
    assert trees("slim") == wanted
    for layer in _manifest(store, "slim", run)["layers"]:
        assert "/gconv/" not in run("tar", "-tzf", store / "blobs/sha256" / layer["digest"][7:])
    run("layerfarm", "flatten", "--image", f"{store}:slim", "--tar", "slim.tar")
    assert run("sh", "-c", "tar -tf slim.tar | wc -l").strip() == str(len(wanted))


def test_a_real_debian_can_be_rebased(store: Path, tmp_path: Path, trees: Trees, run: Run) -> None:
    bases = ("--old-base", f"{store}:base", "--new-base", f"{store}:newer")
    run("layerfarm", "unpack", "--image", f"{store}:base", "base")
    rootfs = tmp_path / "base/rootfs"
    status = (rootfs / "var/lib/dpkg/status").read_text()
    (rootfs / "var/lib/dpkg/status").write_text(status.replace("Package: bash\n", "Package: bash\nX-New: 1\n"))
    (rootfs / "etc/debian_version").write_text("12.99\n")
    run("layerfarm", "repack", "--image", f"{store}:newer", "base")
    checked = json.loads(
        run("layerfarm", "rebase", "--image", f"{store}:app", *bases, "--accept", "refuse", "--check", "--json")
    )
    assert checked["verdict"] in ("safe", "review"), checked
    run("layerfarm", "rebase", "--image", f"{store}:app", *bases, "--accept", "review", "--target", f"{store}:rebased")
    old, new = trees("app"), trees("rebased")
    assert new[b"etc/debian_version"].content == b"12.99\n"
    differ = {path for path in old.keys() | new.keys() if old.get(path) != new.get(path)}
    assert differ <= {b".", b"etc", b"etc/debian_version", b"var/lib/dpkg", b"var/lib/dpkg/status"}


def test_skopeo_copies_a_transformed_index_with_its_attestation(tmp_path: Path, run: Run) -> None:
    layout = Layout.create(tmp_path / "index")
    layers = [tar((name, name.encode() * 999)) for name in ("low", "middle", "high")]
    amd = image(layout, layers, tag="alone")
    two_platforms(layout, layers, "t", attestation(layout, amd))
    run("layerfarm", "squash", "--image", f"{layout.path}:t", "--target", f"{layout.path}:s")
    run("layerfarm", "recompress", "--image", f"{layout.path}:s", "--compress", "zstd", "--target", f"{layout.path}:z")
    other = Layout.create(tmp_path / "other")
    for tag in ("s", "z"):
        run("skopeo", "copy", "--all", f"oci:{layout.path}:{tag}", f"oci:{other.path}:{tag}")
        before, after = (
            json.loads(run("skopeo", "inspect", "--raw", f"oci:{at.path}:{tag}")) for at in (layout, other)
        )
        # skopeo before 1.18 copies the index unchanged; later versions copy the fields they know and annotate zstd.
        for each in after["manifests"]:
            annotations = each.get("annotations", {})
            if annotations.pop("io.github.containers.compression.zstd", None) and not annotations:
                del each["annotations"]
        assert _is_part(after, before)
        for field in ("digest", "size", "platform", "annotations"):
            assert [each.get(field) for each in after["manifests"]] == [each.get(field) for each in before["manifests"]]
        said = before["manifests"][2]["annotations"]
        assert said["vnd.docker.reference.digest"] == before["manifests"][0]["digest"]
        assert "proofs: 2, errors: 0" in run("layerfarm", "verify", "--image", f"{layout.path}:{tag}")


def _is_part(part: Any, whole: Any) -> bool:
    """Return True if all of ``part`` is in ``whole``, in the same place."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and _is_part(value, whole[key]) for key, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) == len(whole) and all(map(_is_part, part, whole))
    return bool(part == whole)


def _manifest(store: Path, tag: str, run: Run) -> dict[str, object]:
    return json.loads(run("skopeo", "inspect", "--raw", f"oci:{store}:{tag}"))  # type: ignore[no-any-return]
