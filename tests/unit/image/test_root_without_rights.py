"""Uid 0 without the right to pass over modes, as in a container that drops it: what its modes forbid is widened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from layerfarm.jobs.store import Layout
from tests.trees import read_tree

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="gives up rights that only root has"
)

_COMMANDS = """
import json, sys
from layerfarm.worker.cli.main import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    if code:
        sys.exit(f"{arguments} ended with {code}")
"""
DROPPED = ("-dac_override,-dac_read_search", "-all")
"""Sets of capabilities; what is left in the first are those to change owners and modes."""


def layerfarm(dropped: str, *commands: list[str]) -> None:
    done = subprocess.run(
        ["setpriv", f"--bounding-set={dropped}", sys.executable, "-c", _COMMANDS, json.dumps(commands)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def locked_tree(top: Path) -> None:
    for name in ("read-only/below/file", "closed/file", "unsearchable/file", "writable/closed-file"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    os.setxattr(top / "writable/closed-file", b"user.kept", b"value")
    for name, mode in {
        "read-only/below": 0o555,
        "read-only": 0o555,
        "closed": 0,
        "unsearchable": 0o600,
        "writable/closed-file": 0,
    }.items():
        (top / name).chmod(mode)


def change(rootfs: Path) -> None:
    """Content and names, without the modes."""
    (rootfs / "read-only/below/file").write_text("changed")
    (rootfs / "read-only/new").write_text("new")
    (rootfs / "closed/file").unlink()
    (rootfs / "unsearchable/file").write_text("changed")
    os.removexattr(rootfs / "writable/closed-file", b"user.kept")


@pytest.mark.large
@pytest.mark.parametrize("dropped", DROPPED)
def test_a_tree_of_locked_directories_goes_all_ways(layout: Layout, tmp_path: Path, dropped: str) -> None:
    tree, bundle, again = (tmp_path / name for name in ("tree", "bundle", "again"))
    locked_tree(tree)
    tags = [f"--image={layout.path}:{tag}" for tag in ("v1", "v2")]
    layerfarm(dropped, ["build", tags[0], f"--rootfs={tree}"], ["unpack", tags[0], str(bundle)])
    before = read_tree(bundle / "rootfs")
    change(bundle / "rootfs")
    changed = read_tree(bundle / "rootfs")
    layerfarm(
        dropped,
        ["repack", tags[1], str(bundle)],
        ["unpack", tags[1], str(again)],
        ["revert", f"--layout={layout.path}", str(bundle)],
        ["diff", f"{layout.path}:v1", str(bundle)],
        ["diff", f"{layout.path}:v2", str(again)],
    )
    assert read_tree(bundle / "rootfs") == before
    assert {path: node.content for path, node in read_tree(again / "rootfs").items()} == {
        path: node.content for path, node in changed.items()
    }


@pytest.mark.large
@pytest.mark.parametrize("dropped", DROPPED)
def test_layers_are_applied_over_a_tree_with_locked_directories(layout: Layout, tmp_path: Path, dropped: str) -> None:
    """The upper layer writes into directories that the lower one has closed."""
    tree = tmp_path / "tree"
    locked_tree(tree)
    tags = [f"--image={layout.path}:{tag}" for tag in ("v1", "v2")]
    layerfarm(dropped, ["build", tags[0], f"--rootfs={tree}"])
    change(tree)
    layerfarm(
        dropped,
        ["build", tags[1], f"--base={layout.path}:v1", f"--rootfs={tree}"],
        ["raw", "unpack", tags[1], str(tmp_path / "out")],
    )
    assert {path: (node.content, node.mode) for path, node in read_tree(tmp_path / "out").items()} == {
        path: (node.content, node.mode) for path, node in read_tree(tree).items()
    }
