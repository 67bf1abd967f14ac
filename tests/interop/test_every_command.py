"""Every command that umoci 0.4.7 and layerfarm share, on a whole Debian: the same tree, config.json and stat.

``unpack`` and ``repack`` on it: test_roundtrips_with_umoci.py. What differs and why: docs/umoci-differences.md.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.interop.tools import LAYERFARM, Tool, comparable, image
from tests.trees import Node, in_seconds, read_tree

CONFIG = [
    *("--config.user=games:nogroup", "--config.env=A=1", "--config.env", "B=x=y", "--config.workingdir=/usr/lib"),
    *("--config.entrypoint=/bin/sh", "--config.entrypoint=-c", "--config.cmd=id", "--config.volume=/var/cache"),
    *("--config.exposedports=80/tcp", "--config.exposedports=53", "--config.label=a=b", "--config.label=c="),
    *("--config.stopsignal=SIGINT", "--author=Ann <a@b>", "--created=2020-01-02T03:04:05Z", "--os=linux"),
    *("--architecture=arm64", "--manifest.annotation=k=v", "--history.comment=why", "--history.author=Bob"),
]


@pytest.fixture(scope="module")
def made(debian: Path, tmp_path_factory: pytest.TempPathFactory, program: Callable[[str], str]) -> dict[str, Path]:
    """For each tool a directory with the layout ``s``, into whose image ``s:t`` it inserted the Debian."""
    found = {}
    for name, path in (("umoci", program("umoci")), ("layerfarm", LAYERFARM)):
        tool = Tool(path, tmp_path_factory.mktemp("made") / name, epoch="")
        for args in (["init", "--layout=s"], ["new", "--image=s:t"], ["insert", "--image=s:t", str(debian), "/"]):
            assert tool(*args)[:2] == (0, ""), args
        found[name] = tool.directory
    return found


@pytest.fixture
def tools(made: dict[str, Path], tmp_path: Path, program: Callable[[str], str]) -> dict[str, Tool]:
    """Both tools, each with a copy of its own layout."""
    pair = {
        name: Tool(path, tmp_path / name, epoch="")
        for name, path in (("umoci", program("umoci")), ("layerfarm", LAYERFARM))
    }
    for name, tool in pair.items():
        subprocess.run(["cp", "-al", made[name] / "s", tool.directory / "s"], check=True)
    return pair


def ran(tool: Tool, *args: str) -> str:
    done = tool(*args)
    assert done.code == 0, (tool.program, args, done)
    return done.out


def untimed(found: dict[bytes, Node]) -> dict[bytes, Node]:
    return {path: replace(node, mtime=0) for path, node in found.items()}


def test_init_new_and_insert_make_the_same_image_of_the_same_tree(
    debian: Path, made: dict[str, Path], tools: dict[str, Tool], tmp_path: Path
) -> None:
    layouts = [json.loads((tool.directory / "s/oci-layout").read_bytes()) for tool in tools.values()]
    assert layouts[0] == layouts[1]
    assert comparable(image(tools["umoci"], "t")) == comparable(image(tools["layerfarm"], "t"))
    trees = {}
    for writer, reader in (("layerfarm", "umoci"), ("umoci", "layerfarm"), ("umoci", "umoci")):
        root = tmp_path / f"{writer}-{reader}"
        assert ran(_in(tools[reader], made[writer]), "raw", "unpack", "--image=s:t", str(root)) == ""
        trees[writer, reader] = in_seconds(read_tree(root))
        shutil.rmtree(root)
    assert trees["layerfarm", "umoci"] == in_seconds(read_tree(debian))
    assert trees["umoci", "umoci"] == trees["umoci", "layerfarm"]
    # umoci 0.4.7 rounds times where everybody else, umoci since 0.6.0 too, cuts off.
    assert untimed(trees["umoci", "umoci"]) == untimed(read_tree(debian))


def test_config_stat_and_runtime_config_tell_the_same(debian: Path, tools: dict[str, Tool]) -> None:
    seen: dict[str, Any] = {}
    for name, tool in tools.items():
        assert ran(tool, "config", "--image=s:t", "--tag=c", *CONFIG) == ""
        assert ran(tool, "raw", "runtime-config", "--image=s:c", "--rootfs", str(debian), "with.json") == ""
        assert ran(tool, "raw", "config", "--image=s:c", "--rootless", "--rootfs", str(debian), "rootless.json") == ""
        runtime = [json.loads((tool.directory / f"{kind}.json").read_bytes()) for kind in ("with", "rootless")]
        seen[name] = (comparable(image(tool, "c")), [_shared(spec) for spec in runtime])
    assert seen["umoci"][0] == seen["layerfarm"][0]
    assert seen["umoci"][1] == seen["layerfarm"][1]
    assert seen["umoci"][1][0]["process"]["user"] == {"uid": 5, "gid": 65534}
    # Either tool prints the same stat of each store.
    for tool in tools.values():
        theirs, ours = (
            json.loads(ran(_in(tools[name], tool.directory), "stat", "--json", "--image=s:c")) for name in tools
        )
        assert theirs["history"] == ours["history"]


def _in(tool: Tool, directory: Path) -> Tool:
    return Tool(tool.program, directory, epoch="")


def _shared(spec: dict[str, Any]) -> dict[str, Any]:
    """Without what is meant to differ: test_bundle_runtime.py holds each of these against umoci's."""
    for name in ("ociVersion", "hostname"):
        del spec[name]
    spec["linux"]["namespaces"] = [space for space in spec["linux"]["namespaces"] if space != {"type": "cgroup"}]
    spec["mounts"].sort(key=lambda mount: str(mount["destination"]))
    return spec


def test_raw_add_layer_adds_the_same_layer(debian: Path, tools: dict[str, Tool], tmp_path: Path) -> None:
    subprocess.run(["tar", "-C", debian, "--sort=name", "-cf", tmp_path / "etc.tar", "etc"], check=True)
    diff_id = f"sha256:{hashlib.sha256((tmp_path / 'etc.tar').read_bytes()).hexdigest()}"
    for name, other in (("umoci", "layerfarm"), ("layerfarm", "umoci")):
        ran(tools[name], "new", "--image=s:empty")
        add = ["raw", "add-layer", "--image=s:empty", "--tag=a", "--history.created_by=x", str(tmp_path / "etc.tar")]
        assert ran(tools[name], *add) == ""
        (entry,) = image(tools[name], "a")["history"]
        assert (entry["diff_id"], entry["created_by"]) == (diff_id, "x")
        ran(_in(tools[other], tools[name].directory), "raw", "unpack", "--image=s:a", "x")
        assert in_seconds(read_tree(tools[name].directory / "x/etc")) == in_seconds(read_tree(debian / "etc"))


def test_tag_rm_ls_and_gc_leave_the_same(tools: dict[str, Tool]) -> None:
    for name, tool in tools.items():
        grace = ["--grace=0s"] if name == "layerfarm" else []
        ran(tool, "config", "--image=s:t", "--tag=gone", "--author=nobody")
        for args in (["tag", "--image=s:t", "b/c"], ["rm", "--image=s:gone"], ["remove", "--image=s:gone"]):
            assert ran(tool, *args) == "", args
        assert sorted(ran(tool, "ls", "--layout=s").split()) == sorted(ran(tool, "list", "--layout=s").split())
        assert ran(tool, "gc", "--layout=s", *grace) == ""
    left = {
        name: sorted(path.stat().st_size for path in (tool.directory / "s/blobs/sha256").iterdir())
        for name, tool in tools.items()
    }
    assert [len(sizes) for sizes in left.values()] == [3, 3]  # a manifest, a config and a layer
    tags = [sorted(ran(tool, "ls", "--layout=s").split()) for tool in tools.values()]
    assert tags == [["b/c", "t"]] * 2
    # Neither finds anything to remove in what the other left, nor in its own.
    for name, other in (("umoci", "layerfarm"), ("layerfarm", "umoci")):
        grace = ["--grace=0s"] if name == "layerfarm" else []
        ran(_in(tools[name], tools[other].directory), "gc", "--layout=s", *grace)
        blobs = (tools[other].directory / "s/blobs/sha256").iterdir()
        assert sorted(path.stat().st_size for path in blobs) == left[other]
