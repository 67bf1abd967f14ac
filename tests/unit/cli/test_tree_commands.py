"""gc, validate, diff, mtree and revert from the command line: flags, output, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from layerfarm.jobs.store import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor, Index, Layout
from layerfarm.jobs.store.gc import collect
from tests.trees import char, directory, file, symlink, tree
from tests.unit.cli.conftest import Ran, Run

NOTHING = Ran(0, "", "")

SPEC = {
    "etc/passwd": file(b"root:x:0:0::/root:/bin/sh\n"),
    "etc/group": file(b"", mode=0o600),
    "bin/sh": file(b"#!", mode=0o755, xattrs={"user.a": b"1"}),
    "link": symlink("bin/sh"),
    "null": char(1, 3),
    "d": directory(mode=0o700),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "root", SPEC)


@pytest.fixture
def bundle(layerfarm: Run, store: Path, root: Path, tmp_path: Path) -> Path:
    """The bundle ``bundle`` of the image ``store:v1``, which was built of ``root``."""
    assert layerfarm("build", "--rootfs", "root", "--image", "store:v1").code == 0
    assert layerfarm("unpack", "--image", "store:v1", "bundle") == NOTHING
    return tmp_path / "bundle"


# --- gc ------------------------------------------------------------------------------------------


def blobs(store: Path) -> set[str]:
    return {path.name for path in store.glob("blobs/*/*")}


def test_gc_removes_nothing_young_and_says_so(layerfarm: Run, store: Path) -> None:
    layerfarm("new", "--image", "store:v1")
    layerfarm("rm", "--image", "store:v1")
    before = blobs(store)
    done = layerfarm("gc", "--layout", "store")
    assert (done.code, done.out) == (0, "")
    assert "kept 2 unreferenced blobs" in done.err and "--grace=0s" in done.err
    assert blobs(store) == before


def test_gc_skips_what_an_index_names_and_the_layout_does_not_hold(layerfarm: Run, store: Path) -> None:
    layout = Layout.open(store)
    absent = Descriptor(mediaType=MEDIA_TYPE_MANIFEST, digest=f"sha256:{'a' * 64}", size=9)
    layout.tag("sparse", layout.put_document(Index(manifests=[absent]), MEDIA_TYPE_INDEX))
    done = layerfarm("gc", "--layout", "store")
    assert (done.code, done.out) == (0, "")
    assert "this layout does not hold: 1" in done.err and absent.digest in done.err


@pytest.mark.parametrize("how", ["flag", "environment"])
def test_gc_without_a_grace_is_umocis(
    layerfarm: Run, store: Path, bundle: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layerfarm("new", "--image", "store:other")
    layerfarm("rm", "--image", "store:v1")
    if how == "environment":
        monkeypatch.setenv("LAYERFARM_GC_GRACE", "0s")
        assert layerfarm("gc", "--layout", "store") == NOTHING
    else:
        assert layerfarm("gc", "--layout=store", "-grace", "0s") == NOTHING
    assert len(blobs(store)) == 2
    assert layerfarm("stat", "--image", "store:other").code == 0


def test_gc_dry_run_names_what_would_go(layerfarm: Run, store: Path) -> None:
    layerfarm("new", "--image", "store:v1")
    layerfarm("rm", "--image", "store:v1")
    before = blobs(store)
    done = layerfarm("gc", "--layout", "store", "--dry-run", "--grace=0")
    lines = done.out.splitlines()
    assert {line.split()[2].removeprefix("sha256:") for line in lines[:-2]} == before == blobs(store)
    size = sum(path.stat().st_size for path in store.glob("blobs/*/*"))
    assert lines[-2:] == [f"would delete 2 blobs, {size:,} bytes", f"would free {size:,} bytes now"]


@pytest.mark.parametrize("dry", [True, False], ids=["--dry-run", "--verbose"])
def test_gc_counts_what_it_moves_and_deletes_and_when_its_space_is_free(layerfarm: Run, store: Path, dry: bool) -> None:
    layout = Layout.open(store)
    old, new = (layout.put(content, "a/b") for content in (b"old", b"newer"))
    os.utime(layout.blob_path(old.digest), (1, 1))
    collect(layout)
    (trash,) = (store / ".layerfarm" / "trash").iterdir()
    trash.rename(trash.with_name("1-aged"))
    os.utime(layout.blob_path(new.digest), (1, 1))
    left = store / ".layerfarm" / "ingest" / "left"
    left.write_bytes(b"x" * 1234)
    os.utime(left, (1, 1))
    if dry:
        lines, would = layerfarm("gc", "--layout", "store", "--dry-run").out, "would {}"
    else:
        lines, would = layerfarm("--verbose", "gc", "--layout", "store").err, "layerfarm: {}d"
    move, delete, free = map(would.format, ("move", "delete", "free"))
    assert lines.splitlines() == [
        f"{move} {new.digest} 5 to the trash",
        f"{delete} {old.digest} 3",
        f"{delete} .layerfarm/ingest/left 1234",
        f"{move} 1 blob, 5 bytes, to the trash",
        f"{delete} 1 blob, 3 bytes",
        f"{delete} 1 leftover file or directory, 1,234 bytes",
        f"{free} 1,237 bytes now; 5 bytes stay in the trash for up to 2 h",
    ]
    assert left.exists() == dry


def test_gc_refuses_a_damaged_layout(layerfarm: Run, store: Path) -> None:
    layerfarm("new", "--image", "store:v1")
    digest = json.loads((store / "index.json").read_text())["manifests"][0]["digest"]
    (store / "blobs" / digest.replace(":", "/")).unlink()
    done = layerfarm("gc", "--layout", "store", "--grace=0s")
    assert (done.code, done.out) == (1, "")
    assert "nothing was removed" in done.err and digest in done.err
    assert len(blobs(store)) == 1


@pytest.mark.parametrize("span", ["", "5", "-1s", "1x", "h", "1 h", "1h "])
def test_gc_takes_time_spans_only(layerfarm: Run, store: Path, span: str) -> None:
    assert layerfarm("gc", "--layout", "store", f"--grace={span}").code == 2


@pytest.mark.parametrize("span", ["0", "0s", "90m", "1h30m", "1.5h", "2d", "500ms"])
def test_gc_takes_gos_time_spans(layerfarm: Run, store: Path, span: str) -> None:
    assert layerfarm("gc", "--layout", "store", "--grace", span) == NOTHING


# --- validate ------------------------------------------------------------------------------------


def test_validate_says_how_much_was_read(layerfarm: Run, store: Path, bundle: Path) -> None:
    assert layerfarm("validate", "--image", "store:v1").out.startswith("errors: 0, warnings: 0, reachable: 3, ")
    assert layerfarm("validate", "--bundle", "bundle") == Ran(0, "errors: 0, warnings: 0\n", "")


def test_validate_reports_in_text_and_json_and_fails(layerfarm: Run, store: Path, bundle: Path) -> None:
    layer = max(store.glob("blobs/sha256/*"), key=lambda path: path.stat().st_size)
    layer.write_bytes(b"x" * layer.stat().st_size)
    done = layerfarm("validate", "--layout", "store")
    assert done.code == 1
    assert f"error: sha256:{layer.name}: " in done.out
    done = layerfarm("validate", "--layout", "store", "--json")
    found = json.loads(done.out)
    assert (done.code, found["errors"]) == (1, 1)
    (error,) = (row for row in found["findings"] if row["severity"] == "error")
    assert error.keys() == {"severity", "code", "where", "message"}
    assert error["where"] == f"sha256:{layer.name}"


@pytest.mark.parametrize("args", [[], ["--image", "store:v1", "--layout", "store"], ["--layout", "a:b"]])
def test_validate_wants_one_thing(layerfarm: Run, store: Path, args: list[str]) -> None:
    assert layerfarm("validate", *args).code == 2


# --- mtree and diff ------------------------------------------------------------------------------


def test_mtree_writes_to_a_file_or_to_stdout(layerfarm: Run, root: Path, tmp_path: Path) -> None:
    assert layerfarm("mtree", "root", "-o", "m") == NOTHING
    text = (tmp_path / "m").read_text()
    assert text.startswith("#mtree\n")
    done = layerfarm("mtree", "root", "--output", "n", "--json", "--shards", "3")
    assert json.loads(done.out)["entries"] == len(text.splitlines()) - 3
    assert (tmp_path / "n").read_text() == text
    assert sorted(os.listdir(tmp_path)) == ["m", "n", "root"]


def test_mtree_on_stdout_is_the_same(layerfarm: Run, root: Path, tmp_path: Path) -> None:
    assert layerfarm("mtree", "root", "-o", "m") == NOTHING
    command = [
        sys.executable,
        "-c",
        "from layerfarm.worker.cli.main import main; raise SystemExit(main())",
        "mtree",
        "root",
    ]
    done = subprocess.run(command, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == ((tmp_path / "m").read_bytes(), b"")
    assert layerfarm("mtree", "root", "--json").code == 2


@pytest.mark.large
def test_diff_of_equal_images_is_empty(layerfarm: Run, bundle: Path) -> None:
    layerfarm("mtree", "root", "-o", "m")
    (umoci,) = bundle.glob("*.mtree")
    sides = ["root", "m", "bundle", "store:v1", umoci]
    for old in sides:
        for new in sides:
            assert layerfarm("diff", old, new) == NOTHING, (old, new)
    assert layerfarm("diff", "--json", "root", "m") == Ran(0, "[]\n", "")


def change(root: Path) -> None:
    os.chmod(root / "bin/sh", 0o700)
    os.setxattr(root / "bin/sh", "user.a", b"2")
    os.setxattr(root / "bin/sh", "user.b", b"3")
    (root / "etc/group").unlink()
    (root / "link").unlink()
    (root / "link").symlink_to("ba\nd")
    (root / "d").rmdir()
    (root / "d").write_text("file")
    (root / "null").unlink()
    os.mknod(root / "null", 0o020600, os.makedev(1, 5))
    with open(os.fsencode(root) + b"/\xffodd\n", "wb"):
        pass
    (root / "etc/caf\u00e9").mkdir()
    for path in ("link", "null", "d", "etc", "."):
        os.utime(root / path, (1_500_000_000, 1_500_000_000), follow_symlinks=False)


def test_diff_in_lines(layerfarm: Run, bundle: Path) -> None:
    change(bundle / "rootfs")
    done = layerfarm("diff", "store:v1", "bundle")
    assert (done.code, done.err) == (1, "")
    assert sorted(done.out.splitlines()) == sorted(
        [
            "+ \\377odd\\012",
            "+ etc/caf\u00e9/",
            "- etc/group",
            "~ bin/sh  mode 0755 -> 0700, xattr.user.a changed, xattr.user.b added",
            "~ d  type dir -> file, mode 0700 -> 0644",
            "~ link  size 6 -> 4, link bin/sh -> ba\\012d",
            "~ null  device 1:3 -> 1:5",
        ]
    )


def test_diff_in_json(layerfarm: Run, bundle: Path) -> None:
    change(bundle / "rootfs")
    done = layerfarm("diff", "--json", "store:v1", "bundle")
    assert done.code == 1
    found = {row["path"]: row for row in json.loads(done.out)}
    assert found["bin/sh"] == {
        "kind": "modified",
        "path": "bin/sh",
        "type": "file",
        "changes": {
            "mode": {"old": "0755", "new": "0700"},
            "xattr.user.a": {"old": "MQ==", "new": "Mg=="},
            "xattr.user.b": {"old": None, "new": "Mw=="},
        },
    }
    assert found["\ufffdodd\n"] == {"kind": "extra", "path": "\ufffdodd\n", "path_base64": "/29kZAo=", "type": "file"}
    assert found["etc/group"] == {"kind": "missing", "path": "etc/group", "type": "file"}


@pytest.mark.parametrize(
    "args",
    [
        ["root", "nowhere"],
        ["root", ""],
        ["store:none", "root"],
        ["nowhere:v1", "root"],
        ["root"],
        ["root", "root", "root"],
        ["garbage", "root"],
        ["damaged", "root"],
    ],
)
def test_diff_says_trouble_by_exit_code_2(layerfarm: Run, store: Path, root: Path, args: list[str]) -> None:
    Path("garbage").write_bytes(b"\x00\x01")
    Path("damaged").mkdir()
    Path("damaged/umoci.json").write_text("{")
    done = layerfarm("diff", *args)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1


def test_diff_of_an_image_ignores_attributes_that_no_layer_holds(layerfarm: Run, bundle: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("bundle/rootfs/sock")
    os.utime(bundle / "rootfs", (1_500_000_000, 1_500_000_000))
    assert layerfarm("diff", "store:v1", "bundle") == NOTHING
    assert layerfarm("diff", "root", "bundle") == Ran(1, "+ sock\n", "")


# --- revert --------------------------------------------------------------------------------------


def test_revert_leaves_no_difference(layerfarm: Run, bundle: Path) -> None:
    change(bundle / "rootfs")
    shutil.rmtree(bundle / "rootfs/etc")
    assert layerfarm("revert", "--layout", "store", "bundle") == NOTHING
    assert layerfarm("diff", "store:v1", "bundle") == NOTHING
    done = layerfarm("--verbose", "revert", "bundle", "--layout=store")
    assert done == Ran(0, "", "layerfarm: removed: 0, restored: 0, metadata restored: 0\n")


def test_revert_of_a_directory_that_is_no_bundle_fails(layerfarm: Run, store: Path, root: Path) -> None:
    assert layerfarm("revert", "--layout", "store", "root").code == 1
    assert layerfarm("revert", "root").code == 2
