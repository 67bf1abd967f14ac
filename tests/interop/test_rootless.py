"""Rootless, really: an ordinary user unpacks, changes, repacks, shows and validates an image, beside umoci."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.flows import FLOWS
from layerfarm.jobs.flows.base import Context
from layerfarm.jobs.flows.requests import ImageRef, UnpackRequest
from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import Layout
from tests.interop.conftest import Run
from tests.ordinary_user import GID, UID, OrdinaryUser, ordinary_user
from tests.trees import MTIME, Node, directory, file, in_seconds, read_tree, symlink, tree
from tests.unit.image.images import image
from tests.unit.layer.archives import archive, entry

SECOND = 10**9
LAYER = archive(
    entry(".", "dir"),
    entry("etc/passwd", content=b"root:x:0:0::/root:/bin/sh\nbob:x:1000:100::/home/bob:/bin/sh\n"),
    entry("etc/group", content=b"root:x:0:\nusers:x:100:\nwheel:x:10:bob\n"),
    entry("etc/shadow", content=b"secret", mode=0, gid=42),
    entry("locked", "dir", mode=0, uid=5, gid=6, xattrs={"user.d": b"dir"}),
    entry("locked/none", content=b"nobody may", mode=0, uid=5, gid=6, xattrs={"user.x": b"kept"}),
    entry("locked/again", "hardlink", link="locked/none"),
    entry("locked/dir", "dir", mode=0o100, uid=7),
    entry("locked/dir/deep", content=b"deep", mode=0o200, gid=8),
    entry("home/bob", "dir", mode=0o700, uid=1000, gid=100),
    entry("home/bob/f", content=b"bob's", mode=0o600, uid=1000, gid=100),
    entry("bin/su", content=b"#!", mode=0o6755),
    entry("link", "link", link="locked/none"),
    entry("dev/null", "char", device=(1, 3), mode=0o666),
    entry("dev/sda", "block", device=(8, 0), mode=0o660, gid=6),
    entry("fifo", "fifo", mode=0o640),
    entry("tmp", "dir", mode=0o1777),
)


@pytest.fixture
def user(as_root: None) -> Iterator[OrdinaryUser]:
    with ordinary_user() as found:
        if found.run("layerfarm", "--version", check=False).returncode:
            pytest.skip("other users cannot enter the directory of this checkout or of its virtual environment")
        yield found


def store(user: OrdinaryUser, *layers: bytes, **config: Any) -> Path:
    """A layout of the user's own, with an image of these layers under the tag ``t``."""
    path = user.home / "store"
    image(Layout.create(path), layers or (LAYER,), config=config)
    user.own(path)
    return path


def as_root(run: Run, layout: Path, tag: str, place: Path) -> dict[bytes, Node]:
    """The tree that root gets of an image: with owners, devices and modes as they were meant."""
    run("layerfarm", "raw", "unpack", "--image", f"{layout}:{tag}", place)
    return in_seconds(read_tree(place))


def layers_of(layout: Path, tag: str) -> int:
    return len(resolve(Layout.open(layout), tag).manifest.layers)


CHANGES = f"""
import os
os.chdir("bundle/rootfs")
os.chmod("locked", 0o700)
os.chmod("locked/none", 0o600)
with open("locked/none", "ab") as out:
    out.write(b" read this")
os.utime("locked/none", ns=({MTIME}, {MTIME}))
os.chmod("locked/none", 0)
os.remove("home/bob/f")
os.mkdir("home/bob/new", 0o755)
with open("home/bob/new/mine", "wb") as out:
    out.write(b"made without root")
os.chmod("home/bob/new/mine", 0)
for path in ("home/bob/new/mine", "home/bob/new", "home/bob", "locked"):
    os.utime(path, ns=({MTIME}, {MTIME}))
os.chmod("locked", 0)
"""


def changed(before: dict[bytes, Node]) -> dict[bytes, Node]:
    """Tree of the image after CHANGES, as root sees it: owners as they were, new entries root's."""
    after = dict(before)
    for path in (b"locked/none", b"locked/again"):
        after[path] = replace(after[path], content=b"nobody may read this", mtime=MTIME)
    del after[b"home/bob/f"]
    for path in (b"home/bob", b"locked"):
        after[path] = replace(after[path], mtime=MTIME)
    after[b"home/bob/new"] = directory()
    after[b"home/bob/new/mine"] = Node("file", 0, content=b"made without root")
    return after


def xattrs(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


# --- unpack ----------------------------------------------------------------------------------------


def test_B5_unpack_keeps_modes_and_notes_owners(user: OrdinaryUser) -> None:
    layout = store(user)
    done = user.run("layerfarm", "unpack", "--rootless", "--image", f"{layout}:t", "bundle")
    assert "devices cannot be created without privileges" in done.stderr
    found = read_tree(user.home / "bundle/rootfs")
    assert {(node.uid, node.gid) for node in found.values()} == {(UID, GID)}
    modes = {path: node.mode for path, node in found.items() if node.type != "link"}
    assert modes == {
        b".": 0o755, b"etc": 0o755, b"etc/passwd": 0o644, b"etc/group": 0o644, b"etc/shadow": 0,
        b"locked": 0, b"locked/none": 0, b"locked/again": 0, b"locked/dir": 0o100, b"locked/dir/deep": 0o200,
        b"home": 0o755, b"home/bob": 0o700, b"home/bob/f": 0o600, b"bin": 0o755, b"bin/su": 0o6755,
        b"dev": 0o755, b"dev/null": 0o666, b"dev/sda": 0o660, b"fifo": 0o640, b"tmp": 0o1777,
    }  # fmt: skip
    rootfs = user.home / "bundle/rootfs"
    owner = "user.rootlesscontainers"
    assert xattrs(rootfs / "locked") == {"user.d": b"dir", owner: bytes.fromhex("08051006")}
    assert xattrs(rootfs / "locked/none") == {"user.x": b"kept", owner: bytes.fromhex("08051006")}
    assert xattrs(rootfs / "locked/dir") == {owner: bytes.fromhex("080710ffffffff0f")}
    assert xattrs(rootfs / "locked/dir/deep") == {owner: bytes.fromhex("08ffffffff0f1008")}
    assert xattrs(rootfs / "home/bob") == {owner: bytes.fromhex("08e8071064")}
    assert xattrs(rootfs / "etc/shadow") == {owner: bytes.fromhex("08ffffffff0f102a")}
    assert xattrs(rootfs / "etc/passwd") == {}


def test_B3_10_devices_are_empty_files_and_fifos_are_fifos(user: OrdinaryUser) -> None:
    user.run("layerfarm", "unpack", "--rootless", "--image", f"{store(user)}:t", "bundle")
    found = read_tree(user.home / "bundle/rootfs")
    assert [(found[path].type, found[path].content) for path in (b"dev/null", b"dev/sda", b"fifo")] == [
        ("file", b""),
        ("file", b""),
        ("fifo", None),
    ]


def test_without_rootless_the_error_names_it_and_nothing_is_left(user: OrdinaryUser) -> None:
    layout = store(user)
    done = user.run("layerfarm", "unpack", "--image", f"{layout}:t", "bundle", check=False)
    assert done.returncode == 1 and "--rootless" in done.stderr and len(done.stderr.splitlines()) == 1
    assert sorted(os.listdir(user.home)) == ["store"]


def test_a_rootless_unpack_that_fails_leaves_nothing(user: OrdinaryUser) -> None:
    broken = archive(entry("locked/new", content=b"x"), entry("h", "hardlink", link="nowhere"))
    layout = store(user, LAYER, broken)
    done = user.run("layerfarm", "unpack", "--rootless", "--image", f"{layout}:t", "bundle", check=False)
    assert done.returncode == 1 and "hard link to a file that does not exist" in done.stderr
    assert sorted(os.listdir(user.home)) == ["store"]


def test_upper_layers_write_below_directories_of_mode_000(user: OrdinaryUser) -> None:
    upper = archive(entry("locked/dir/deep", content=b"new", mode=0), entry("locked/.wh.none"))
    layout = store(user, LAYER, upper)
    user.run("layerfarm", "unpack", "--rootless", "--image", f"{layout}:t", "bundle")
    found = read_tree(user.home / "bundle/rootfs")
    assert found[b"locked/dir/deep"].content == b"new" and b"locked/none" not in found
    assert (found[b"locked"].mode, found[b"locked/dir"].mode) == (0, 0o100)


# --- repack ----------------------------------------------------------------------------------------


def test_nothing_changed_is_nothing_to_pack_and_the_bundle_is_as_it_was(user: OrdinaryUser) -> None:
    layout = store(user)
    user.run("layerfarm", "unpack", "--rootless", "--image", f"{layout}:t", "bundle")
    before = read_tree(user.home / "bundle/rootfs")
    user.run("layerfarm", "repack", "--image", f"{layout}:new", "bundle")
    assert layers_of(layout, "new") == 1
    assert read_tree(user.home / "bundle/rootfs") == before


def test_changes_are_repacked_with_the_owners_that_root_would_see(user: OrdinaryUser, run: Run, tmp_path: Path) -> None:
    layout = store(user)
    user.run("layerfarm", "unpack", "--rootless", "--image", f"{layout}:t", "bundle")
    user.run("python3", "-c", CHANGES)
    before = read_tree(user.home / "bundle/rootfs")
    user.run("layerfarm", "repack", "--refresh-bundle", "--image", f"{layout}:new", "bundle")
    assert read_tree(user.home / "bundle/rootfs") == before
    old, new = as_root(run, layout, "t", tmp_path / "old"), as_root(run, layout, "new", tmp_path / "new")
    assert new == changed(old)
    # The image has none, and none is begun above layers without.
    assert json.loads(user.run("layerfarm", "stat", "--json", "--image", f"{layout}:new").stdout)["history"] == []
    user.run("layerfarm", "repack", "--image", f"{layout}:same", "bundle")
    assert layers_of(layout, "same") == layers_of(layout, "new") == 2


@pytest.mark.parametrize("tool", ["umoci", "layerfarm"])
def test_files_of_other_users_are_roots_in_the_layer(as_root: None, run: Run, tmp_path: Path, tool: str) -> None:
    """By root, since umoci 0.4.7 reads no file of another user as an ordinary one."""
    layout = Layout.create(tmp_path / "store")
    image(layout, [archive(entry(".", "dir"), entry("etc", "dir"))])
    run(tool, "unpack", "--rootless", "--image", f"{layout.path}:t", "bundle")
    spec = {"f": file(b"1", uid=1000, gid=100), "g": file(b"2", gid=7), "h": symlink("f", uid=5)}
    tree(tmp_path / "bundle/rootfs/new", spec)
    run(tool, "repack", "--image", f"{layout.path}:repacked", "bundle")
    run(tool, "insert", "--rootless", "--image", f"{layout.path}:t", "--tag=inserted", "bundle/rootfs/new", "/new")
    for tag in ("repacked", "inserted"):
        layer = resolve(layout, tag).manifest.layers[-1]
        # umoci 0.4.7's insert leaves out the end of the tar.
        with tarfile.open(fileobj=io.BytesIO(layout.read(layer)), ignore_zeros=True) as archived:
            owners = {info.name: (info.uid, info.gid) for info in archived if "new/" in info.name}
        assert owners == {"new/f": (0, 0), "new/g": (0, 0), "new/h": (0, 0)}, tag
    if tool == "layerfarm":
        assert run(tool, "diff", "bundle", f"{layout.path}:repacked") == ""


def test_the_user_validates_diffs_and_builds(user: OrdinaryUser) -> None:
    layout = store(user)
    user.run("layerfarm", "unpack", "--rootless", "--image", f"{layout}:t", "bundle")
    user.run("layerfarm", "validate", "--image", f"{layout}:t")
    user.run("layerfarm", "validate", "--layout", layout)
    user.run("layerfarm", "validate", "--bundle", "bundle")
    user.run("python3", "-c", CHANGES)
    user.run("layerfarm", "unpack", "--rootless", "--image", f"{layout}:t", "other")
    differing = user.run("layerfarm", "diff", "other", "bundle", check=False).stdout
    assert "locked/none" in differing and "home/bob/new/mine" in differing
    user.run("layerfarm", "build", "--rootfs", "bundle/rootfs", "--image", f"{layout}:built")
    user.run("layerfarm", "validate", "--layout", layout)


# --- umoci as peer, both ways ----------------------------------------------------------------------

# umoci 0.4.7 sets user.rootlesscontainers after chmod and so loses the owner of what has mode 000 (B5's BUG).
PEER = archive(
    entry(".", "dir"),
    entry("etc/passwd", content=b"root:x:0:0::/root:/bin/sh\n"),
    entry("d", "dir", uid=5, gid=6),
    entry("d/f", content=b"five", mode=0o640, uid=5, gid=6),
    entry("d/user", content=b"5", uid=5),
    entry("d/group", content=b"7", gid=7),
    entry("d/same", "hardlink", link="d/group"),
    entry("none", content=b"root's own", mode=0),
    entry("locked", "dir", mode=0),
    entry("locked/f", content=b"x", mode=0),
    entry("dev", "char", device=(1, 3), mode=0o666),
    entry("fifo", "fifo"),
    entry("link", "link", link="d/f"),
)
TOUCH = f"""
import os
os.chdir("bundle/rootfs")
with open("d/f", "ab") as out:
    out.write(b" and more")
os.utime("d/f", ns=({MTIME}, {MTIME}))
os.remove("fifo")
os.utime(".", ns=({MTIME}, {MTIME}))
"""


def touched(before: dict[bytes, Node]) -> dict[bytes, Node]:
    after = dict(before)
    after[b"d/f"] = replace(after[b"d/f"], content=b"five and more", mtime=MTIME)
    del after[b"fifo"]
    after[b"."] = replace(after[b"."], mtime=MTIME)
    return after


@pytest.mark.parametrize(("unpacks", "repacks"), [("umoci", "layerfarm"), ("layerfarm", "umoci")])
def test_one_unpacks_and_the_other_repacks(
    user: OrdinaryUser, run: Run, tmp_path: Path, unpacks: str, repacks: str
) -> None:
    layout = store(user, PEER)
    user.run(unpacks, "unpack", "--rootless", "--image", f"{layout}:t", "bundle")
    user.run(repacks, "repack", "--image", f"{layout}:same", "bundle")
    assert layers_of(layout, "same") == 1
    user.run("python3", "-c", TOUCH)
    user.run(repacks, "repack", "--image", f"{layout}:new", "bundle")
    old, new = as_root(run, layout, "t", tmp_path / "old"), as_root(run, layout, "new", tmp_path / "new")
    assert new == touched(old)


def test_the_trees_and_the_configs_of_both_are_the_same(user: OrdinaryUser) -> None:
    layout = store(user, PEER, Env=["A=b"], User="0")
    user.run("layerfarm", "unpack", "--rootless", "--image", f"{layout}:t", "ours")
    user.run("umoci", "unpack", "--rootless", "--image", f"{layout}:t", "theirs")
    ours, theirs = read_tree(user.home / "ours/rootfs"), read_tree(user.home / "theirs/rootfs")
    # B3.2: umoci gives a parent that has no entry the time at which it was made, and so touches the one above.
    for path in (b".", b"etc"):
        theirs[path] = replace(theirs[path], mtime=ours[path].mtime)
    assert ours == theirs
    mine, other = (json.loads((user.home / name / "umoci.json").read_text()) for name in ("ours", "theirs"))
    assert mine["map_options"] == other["map_options"]


# --- the runtime -----------------------------------------------------------------------------------


def test_C_the_rootless_conversion_of_config_json(user: OrdinaryUser) -> None:
    layout = store(user, User="bob", Volumes={"/data": {}})
    user.run("layerfarm", "unpack", "--rootless", "--image", f"{layout}:t", "bundle")
    spec = json.loads((user.home / "bundle/config.json").read_text())
    linux = spec["linux"]
    assert "resources" not in linux
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": UID, "size": 1}]
    assert linux["gidMappings"] == [{"containerID": 0, "hostID": GID, "size": 1}]
    kinds = [namespace["type"] for namespace in linux["namespaces"]]
    assert kinds.count("user") == 1 and "network" not in kinds
    assert spec["process"]["user"] == {"uid": 1000, "gid": 100}
    mounts = {mount["destination"]: mount for mount in spec["mounts"]}
    assert mounts["/sys"]["type"] == "bind" and mounts["/sys"]["options"][0] == "rbind"
    assert not [path for path in mounts if path.startswith("/sys/")]
    options = [option for mount in spec["mounts"] for option in mount.get("options", [])]
    assert not [option for option in options if option.startswith(("uid=", "gid="))]


def _true(debian: Path) -> bytes:
    """A layer with /bin/true and the libraries that it needs, of a Debian."""
    listed = subprocess.run(
        ["chroot", debian, "/usr/bin/ldd", "/usr/bin/true"], capture_output=True, text=True, check=True
    ).stdout
    needed = ["/usr/bin/true", *(word for word in listed.split() if word.startswith("/"))]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path in needed:
            # Resolved in the Debian: absolute links must not lead into the host.
            inside = subprocess.check_output(["chroot", debian, "realpath", path], text=True).strip()
            real = debian / inside.lstrip("/")
            info = tarfile.TarInfo(path.lstrip("/"))
            info.mode, info.size = 0o755, real.stat().st_size
            with real.open("rb") as stream:
                tar.addfile(info, stream)
    return out.getvalue()


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_the_runtime_runs_true_as_the_user(user: OrdinaryUser, debian: Path, program: Any, runtime: str) -> None:
    path = program(runtime)
    layout = store(user, _true(debian), LAYER, Cmd=["/usr/bin/true"])
    user.run("layerfarm", "unpack", "--rootless", "--image", f"{layout}:t", "bundle")
    config = user.home / "bundle/config.json"
    spec = json.loads(config.read_text())
    spec["process"]["terminal"] = False
    config.write_text(json.dumps(spec))
    command = [path, "--root", user.home / "state", "run", "--bundle", "bundle", "c1"]
    within: tuple[str, ...] = ()
    if runtime == "crun":
        command[1:1] = ["--cgroup-manager=disabled"]
        if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
            # crun refuses a host with a hybrid of both versions of cgroups.
            mount = 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'
            within = ("unshare", "--mount", "sh", "-c", mount, "sh")
    done = user.run(*command, check=False, within=within)
    if done.returncode and _forbidden(user):
        pytest.skip(f"this machine lets no ordinary user run a container: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr


def _forbidden(user: OrdinaryUser) -> bool:
    """A container needs a proc of its own, which a machine with masked mounts refuses to every ordinary user."""
    command = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "true")
    return user.run(*command, check=False).returncode != 0


# --- id maps, as root ------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["layerfarm", "umoci"])
def test_B3_14_ids_are_mapped_on_the_way_out_and_back(run: Run, tmp_path: Path, tool: str) -> None:
    layout = Layout.create(tmp_path / "store")
    layer = archive(
        entry(".", "dir"),
        entry("root", content=b"0"),
        entry("bob", content=b"1000", uid=1000, gid=100),
        entry("high", "dir", uid=65000, gid=65000),
    )
    image(layout, [layer])
    maps = ["--uid-map", "0:100000:1000", "--uid-map", "1000:5:1", "--uid-map", "1001:200000:65000"]
    maps += ["--gid-map", "0:300000:65536"]
    run("layerfarm", "unpack", *maps, "--image", f"{layout.path}:t", "bundle")
    found = read_tree(tmp_path / "bundle/rootfs")
    owners = {path: (node.uid, node.gid) for path, node in found.items()}
    assert owners == {
        b".": (100000, 300000),
        b"root": (100000, 300000),
        b"bob": (5, 300100),
        b"high": (200000 + 63999, 365000),
    }
    spec = json.loads((tmp_path / "bundle/config.json").read_text())
    assert spec["linux"]["uidMappings"][1] == {"containerID": 1000, "hostID": 5, "size": 1}
    (tmp_path / "bundle/rootfs/new").write_bytes(b"n")
    os.chown(tmp_path / "bundle/rootfs/new", 5, 300007)
    run(tool, "repack", "--image", f"{layout.path}:new", "bundle")
    unpacked = as_root(run, layout.path, "new", tmp_path / "again")
    assert (unpacked[b"new"].uid, unpacked[b"new"].gid) == (1000, 7)
    assert (unpacked[b"bob"].uid, unpacked[b"bob"].gid) == (1000, 100)
    assert (unpacked[b"high"].uid, unpacked[b"high"].gid) == (65000, 65000)


def test_B3_14_an_id_without_a_place_is_an_error_that_leaves_nothing(run: Run, tmp_path: Path) -> None:
    layout = Layout.create(tmp_path / "store")
    image(layout, [archive(entry("f", uid=70000))])
    command = ["layerfarm", "unpack", "--uid-map", "0:1000:65536", "--image", f"{layout.path}:t", "bundle"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "container id 70000 cannot be mapped" in done.stderr
    assert os.listdir(tmp_path) == ["store"]


def test_staging_of_an_interrupted_unpack_is_removed_regardless_of_modes(user: OrdinaryUser) -> None:
    layout = store(user)
    request = UnpackRequest(image=ImageRef(store=layout, tag="t"), bundle=user.home / "bundle", rootless=True)
    own = {"uid": UID, "gid": GID}
    staged = tree(user.home / ".layerfarm-job", {".": directory(**own), "a": directory(mode=0, **own)})
    tree(staged / "a/b", {".": directory(mode=0, **own), "f": file(mode=0, **own)})
    user.call(lambda: FLOWS["unpack"].clean(Context("job"), request, False))
    assert sorted(os.listdir(user.home)) == ["store"]
