"""Tars and layers merged of others, unpacked by programs that do it entry by entry, and by users without rights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfarm.jobs.store import Layout
from tests.interop.conftest import Run
from tests.ordinary_user import GID, UID, OrdinaryUser, ordinary_user
from tests.trees import Node, in_seconds, read_tree
from tests.unit.image.images import image
from tests.unit.layer.archives import archive, entry


def _layer(number: int, *members: tuple[str, str, int] | tuple[str, str, str]) -> bytes:
    """Entries of the user's, each with a time of its own."""
    entries = []
    for at, (name, kind, how) in enumerate(members):
        fields = {"mode": how} if isinstance(how, int) else {"link": how}
        content = f"{number} {name}".encode() if kind == "file" else b""
        mtime = 1_300_000_000 + 1000 * number + at
        entries.append(entry(name, kind, content, uid=UID, gid=GID, mtime=mtime, **fields))  # type: ignore[arg-type]
    return archive(*entries)


LAYERS = [
    _layer(
        1,
        (".", "dir", 0o555),
        ("a", "dir", 0o555),
        ("a/b", "dir", 0o500),
        ("a/b/file", "file", 0o400),
        ("a/z", "file", 0o644),
        ("z", "dir", 0o555),
        ("z/low", "file", 0o644),
    ),
    _layer(2, ("a/b/new", "file", 0o644), ("a/middle", "file", 0o644), ("z/low", "file", 0o600), ("z/d", "dir", 0o555)),
    _layer(
        3,
        ("z/d/file", "file", 0o644),
        ("z/d/hard", "hardlink", "a/b/file"),
        ("z/d/soft", "link", "/z/low"),
        ("a.txt", "file", 0o644),
    ),
]
"""Read-only directories, and files that an upper layer puts into a directory of a lower one."""

COMMANDS = {
    "gnu": ("tar", "-xf"),
    "gnu-all-rights": ("tar", "-xpf"),
    "bsd": ("bsdtar", "-xf"),
    "bsd-all-rights": ("bsdtar", "-xpf"),
}


@pytest.fixture
def user() -> Iterator[OrdinaryUser]:
    with ordinary_user() as him:
        yield him


@pytest.fixture
def tars(as_root: None, user: OrdinaryUser, run: Run) -> dict[str, Path]:
    """The tree as a tar, and as the one layer of an image, in the home of the user, whose files they hold."""
    layout = Layout.create(user.home / "store")
    image(layout, LAYERS)
    run("layerfarm", "flatten", "--tar", "--image", f"{layout.path}:t", user.home / "flat.tar")
    run("layerfarm", "squash", "--image", f"{layout.path}:t", "--target", f"{layout.path}:s", "--compress=none")
    manifest = json.loads(run("skopeo", "inspect", "--raw", f"oci:{layout.path}:s"))
    (layer,) = manifest["layers"]
    return {"tar": user.home / "flat.tar", "layer": layout.blob_path(layer["digest"])}


def wanted(user: OrdinaryUser, run: Run) -> dict[bytes, Node]:
    run("umoci", "raw", "unpack", "--image", f"{user.home}/store:t", user.home / "wanted")
    return in_seconds(read_tree(user.home / "wanted"))


@pytest.mark.parametrize("kind", ["tar", "layer"])
@pytest.mark.parametrize("how", COMMANDS)
@pytest.mark.parametrize("who", ["root", "user"])
def test_tree_is_whole(tars: dict[str, Path], user: OrdinaryUser, run: Run, who: str, how: str, kind: str) -> None:
    """Modes, times and owners, those of the root directory too.

    But bsdtar sets the times of a directory that is there already at once, if its mode at all: of any tar the root's
    are lost.
    """
    place = user.home / "place"
    place.mkdir(mode=0o755)
    user.own(place)
    os.chmod(tars[kind], 0o644)
    command = (*COMMANDS[how], tars[kind], "-C", place)
    user.run(*command) if who == "user" else run(*command)
    found, expected = in_seconds(read_tree(place)), wanted(user, run)
    if how.startswith("bsd"):
        expected[b"."] = found[b"."]
    assert found == expected


def test_squashed_image_is_the_same_tree_to_umoci(tars: dict[str, Path], user: OrdinaryUser, run: Run) -> None:
    run("umoci", "raw", "unpack", "--image", f"{user.home}/store:s", user.home / "squashed")
    assert in_seconds(read_tree(user.home / "squashed")) == wanted(user, run)


def test_order_is_that_of_a_walk(tars: dict[str, Path], run: Run) -> None:
    names = ["./", "./a/", "./a/b/", "./a/b/file", "./a/b/new", "./a/middle", "./a/z", "./a.txt"]
    names += ["./z/", "./z/d/", "./z/d/file", "./z/d/hard", "./z/d/soft", "./z/low"]
    for path in tars.values():
        assert run("tar", "-tf", path).splitlines() == names
