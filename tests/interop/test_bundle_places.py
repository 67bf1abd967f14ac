"""Places to which a bundle or a root filesystem may be unpacked: those that umoci takes, whose content is kept."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.tools import LAYERFARM, Tool, image
from tests.ordinary_user import ordinary_user

LONG = "b" * 250


@pytest.fixture
def tools(tmp_path: Path, program: Callable[[str], str]) -> tuple[Tool, Tool]:
    """umoci and layerfarm, each beside a layout with one image."""
    pair = (Tool(program("umoci"), tmp_path / "umoci"), Tool(LAYERFARM, tmp_path / "layerfarm"))
    for tool in pair:
        (tool.directory / "tree/sub").mkdir(parents=True)
        (tool.directory / "tree/sub/file").write_text("content")
        for args in (
            ["init", "--layout=s"],
            ["new", "--image=s:t"],
            ["insert", "--history.created=2020-01-01T00:00:00Z", "--image=s:t", "tree", "/app"],
        ):
            assert tool(*args).code == 0
    return pair


def names(root: Path) -> list[str]:
    """Paths below ``root``, without what layerfarm alone keeps in a bundle, and without digests."""
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    return [
        "mtree" if name.endswith(".mtree") else name for name in found if not name.endswith((".layerfarm", ".stat"))
    ]


@contextmanager
def mounted(place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(
    ("command", "place"),
    [(["unpack"], "new"), (["unpack"], "no/such/bundle"), (["unpack"], LONG), (["raw", "unpack"], "new")],
    ids=["bundle", "below missing directories", "long name", "rootfs"],
)
def test_a_new_place_is_made_with_the_directories_above_it(
    tools: tuple[Tool, Tool], command: list[str], place: str
) -> None:
    for tool in tools:
        done = tool(*command, "--image=s:t", place)
        assert (done.code, done.out) == (0, ""), (tool.program, done)
    theirs, ours = (tool.directory / place for tool in tools)
    assert names(ours) == names(theirs)
    for path in (ours, *ours.parents[: place.count("/")]):
        like = theirs.parents[ours.parents.index(path)] if path != ours else theirs
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(like.stat().st_mode), path
    assert sorted(os.listdir(tools[1].directory)) == sorted(os.listdir(tools[0].directory))


def test_raw_unpack_below_a_missing_directory_fails_with_either_tool(tools: tuple[Tool, Tool]) -> None:
    for tool in tools:
        assert tool("raw", "unpack", "--image=s:t", "no/such/rootfs").code == 1
        assert not (tool.directory / "no").exists()


@pytest.mark.parametrize("command", [["unpack"], ["raw", "unpack"]], ids=" ".join)
@pytest.mark.parametrize("kind", ["empty", "not empty", "mktemp", "a link", "long name"])
def test_a_directory_that_is_there_is_filled_and_stays_the_same_directory(
    as_root: None, tools: tuple[Tool, Tool], command: list[str], kind: str
) -> None:
    for tool in tools:
        place = tool.directory / (LONG if kind == "long name" else "place")
        place.mkdir(mode=0o700 if kind == "mktemp" else 0o755)
        os.chown(place, 1000, 100)
        os.setxattr(place, "user.mine", b"kept")
        if kind == "not empty":
            (place / "mine").write_text("kept")
        name = place.name
        if kind == "a link":
            name = "link"
            (tool.directory / name).symlink_to("place")
        inode = place.stat().st_ino
        done = tool(*command, "--image=s:t", name)
        assert (done.code, done.out) == (0, ""), (tool.program, done)
        assert place.stat().st_ino == inode
    theirs, ours = (tool.directory / place.name for tool in tools)
    assert names(ours) == names(theirs)
    if kind != "a link":  # umoci changes the owner of the link
        found = [(stat.S_IMODE(p.st_mode), p.st_uid, p.st_gid) for p in (ours.stat(), theirs.stat())]
        assert found[0] == found[1]
    assert os.listxattr(ours) == os.listxattr(theirs)
    if command == ["unpack"]:
        assert (ours.stat().st_uid, os.getxattr(ours, "user.mine")) == (1000, b"kept")
        for tool, other in zip(tools, reversed(tools), strict=True):
            # Nothing has changed since, whichever tool looks.
            assert tool("repack", f"--image={other.directory}/s:same", str(other.directory / place.name)).code == 0
            assert len(image(other, "same")["manifest"]["blob"]["layers"]) == 1


@pytest.mark.parametrize("command", [["unpack"], ["raw", "unpack"]], ids=" ".join)
def test_the_working_directory_of_a_shell_is_filled(tools: tuple[Tool, Tool], command: list[str]) -> None:
    for tool in tools:
        (tool.directory / "here").mkdir()
        rootless = " --rootless" if os.geteuid() != 0 else ""
        script = f'cd here && "$0" {" ".join(command)}{rootless} --image="$1/s:t" . && ls'
        done = subprocess.run(
            ["sh", "-ec", script, tool.program, tool.directory],
            cwd=tool.directory,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ("rootfs" in done.stdout.split()) == (command == ["unpack"]), tool.program
    assert names(tools[1].directory / "here") == names(tools[0].directory / "here")


@pytest.mark.parametrize("command", [["unpack"], ["raw", "unpack"]], ids=" ".join)
def test_a_mount_point_is_filled(as_root: None, tools: tuple[Tool, Tool], command: list[str]) -> None:
    found = []
    for tool in tools:
        place = tool.directory / "mounted"
        place.mkdir()
        with mounted(place):
            done = tool(*command, "--image=s:t", "mounted")
            assert (done.code, done.out) == (0, ""), (tool.program, done)
            found.append(names(place))
        assert os.listdir(place) == []
    assert found[0] == found[1]


@pytest.mark.parametrize("command", [["unpack"], ["raw", "unpack"]], ids=" ".join)
def test_a_failed_unpack_leaves_an_empty_directory_as_it_was(tools: tuple[Tool, Tool], command: list[str]) -> None:
    layerfarm = tools[1]
    place = layerfarm.directory / "place"
    place.mkdir()
    os.setxattr(place, "user.mine", b"kept")
    place.chmod(0o751)
    os.utime(place, (5, 5))
    before = place.stat()
    blobs = sorted(
        (layerfarm.directory / "s/blobs/sha256").iterdir(), key=lambda path: path.read_bytes()[:2] != b"\x1f\x8b"
    )
    blobs[0].write_bytes(blobs[0].read_bytes()[:-1] + b"\xff")
    for name, like in (("place", "place"), ("no/such/place", "no")):
        assert layerfarm(*command, "--image=s:t", name).code == 1
        assert (layerfarm.directory / like).exists() == (like == "place")
    after = place.stat()
    assert (os.listdir(place), os.listxattr(place)) == ([], ["user.mine"])
    assert (after.st_ino, after.st_mode, after.st_uid, after.st_mtime) == (
        before.st_ino,
        before.st_mode,
        before.st_uid,
        before.st_mtime,
    )
    assert sorted(os.listdir(layerfarm.directory)) == ["place", "s", "tree"]


@pytest.mark.parametrize("command", [["unpack"], ["raw", "unpack"]], ids=" ".join)
def test_a_directory_below_one_that_the_user_may_not_write_is_filled(
    program: Callable[[str], str], command: list[str]
) -> None:
    with ordinary_user() as user:
        for name, tool in (("umoci", program("umoci")), ("layerfarm", LAYERFARM)):
            above, tree = user.home / name, user.home / f"tree-{name}"
            (above / "place").mkdir(parents=True)
            (tree / "sub").mkdir(parents=True)
            (tree / "sub/file").write_text("content")
            user.own(above / "place")
            user.own(tree)
            above.chmod(0o555)
            store = user.home / f"store-{name}"
            user.run(tool, "init", f"--layout={store}")
            user.run(tool, "new", f"--image={store}:t")
            user.run(tool, "insert", "--rootless", f"--image={store}:t", str(tree), "/app")
            try:
                user.run(tool, *command, "--rootless", f"--image={store}:t", str(above / "place"))
                assert os.listdir(above) == ["place"]
            finally:
                above.chmod(0o755)
        assert names(user.home / "layerfarm/place") == names(user.home / "umoci/place")
