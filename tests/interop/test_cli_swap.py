"""A script that calls umoci calls layerfarm instead: the same output, the same exit code, the same image."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.conftest import Run
from tests.interop.tools import LAYERFARM, Tool, comparable, image

SCRIPT: list[list[str]] = [
    ["init", "--layout", "s"],
    ["new", "--image=s:base"],
    ["insert", "--image", "s:base", "--history.created=2020-01-01T00:00:00Z", "tree", "/opt/app"],
    ["insert", "-image", "s:base", "--no-history", "--whiteout", "/opt/app/gone"],
    ["tag", "--image=s:base", "v1"],
    ["unpack", "bundle", "--image", "s:v1"],
    ["repack", "--image=s:same", "--history.comment=nothing changed", "bundle"],
    ["config", "--image=s:v1", "--config.user", "55:66", "--config.env=A=1,2", "-config.env", "B=", "--author=Ann"],
    ["config", "--image=s:v1", "--tag=v2", "--clear=config.env", "--config.cmd", "-c", "--config.label=k=v=w"],
    ["raw", "add-layer", "--image=s:v2", "--tag", "v3", "extra.tar"],
    ["raw", "unpack", "--image=s:v3", "rootfs"],
    ["raw", "config", "--image=s:v3", "config.json"],
    ["rm", "--image=s:base"],
    ["remove", "--image=s:never-was"],
]
FAILING: list[list[str]] = [
    ["init", "--layout", "s"],
    ["tag", "--image=s:none", "x"],
    ["tag", "--image=s:v1", "not a tag"],
    ["stat", "--image=s:none"],
    ["unpack", "--image=s:v1", "bundle"],
    ["config", "--image=s:v1", "--config.env=A"],
    ["ls", "--layout=nowhere"],
    ["gc", "--layout=tree"],
    ["rm", "--image=s:not a tag"],
    ["new", "--image=s:a//b"],
    ["insert", "--image=s:v1", "no-such-file", "/x"],
    ["insert", "--image=s:v1", "tree/gone", "/.wh.x"],
    ["raw", "add-layer", "--image=s:v1", "--tag", "not a tag", "extra.tar"],
    ["repack", "--image=s:new", "tree"],
    ["repack", "--image=s:new", "no-such-bundle"],
    ["config", "--image=s:v1", "--config.label=A"],
]
USAGE: list[list[str]] = [
    ["stat"],
    ["stat", "--image=s:v1", "extra"],
    ["unpack", "--image=s:v1"],
    ["tag", "--image=s:v1"],
    ["unpack", "--image=s:v1", "--uid-map=x", "b2"],
    ["ls", "--layout", ""],
    ["config", "--image=s:v1", "--tag", ""],
    ["config", "--image=s:v1", "--clear=rootfs.diffids"],
    ["insert", "--image=s:v1", "tree"],
    ["insert", "--image=s:v1", "--whiteout", "a", "b"],
    ["repack", "--image=s:new", "--no-history", "--history.author=a", "bundle"],
    ["--log=loud", "ls", "--layout=s"],
    ["--verbose", "--log=info", "ls", "--layout=s"],
]


@pytest.fixture
def tools(tmp_path: Path, program: Callable[[str], str]) -> tuple[Tool, Tool]:
    """Both tools, each beside the same input."""
    pair = (Tool(program("umoci"), tmp_path / "umoci"), Tool(LAYERFARM, tmp_path / "layerfarm"))
    for tool in pair:
        (tool.directory / "tree" / "sub").mkdir(parents=True)
        (tool.directory / "tree" / "sub" / "file").write_text("content")
        (tool.directory / "tree" / "gone").write_text("x")
        for path in ("tree/sub/file", "tree/gone", "tree/sub", "tree"):
            os.utime(tool.directory / path, (1000, 1000))
        subprocess.run(
            ["tar", "--sort=name", "--mtime=@1000", "-cf", "extra.tar", "tree"], cwd=tool.directory, check=True
        )
    return pair


def paths(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_a_whole_script_runs_with_either_tool(tools: tuple[Tool, Tool]) -> None:
    umoci, layerfarm = tools
    for args in SCRIPT:
        theirs, ours = umoci(*args), layerfarm(*args)
        assert (ours.code, ours.out) == (theirs.code, theirs.out) == (0, ""), (args, theirs, ours)
    assert sorted(umoci("ls", "--layout=s").out.split()) == layerfarm("list", "--layout=s").out.split()
    for tag in ("v1", "v2", "v3", "same"):
        assert comparable(image(layerfarm, tag)) == comparable(image(umoci, tag)), tag
    for tree in ("bundle/rootfs", "rootfs"):
        assert paths(layerfarm.directory / tree) == paths(umoci.directory / tree)
    configs = [json.loads((tool.directory / "config.json").read_bytes()) for tool in tools]
    assert configs[0]["process"]["user"] == configs[1]["process"]["user"] == {"uid": 55, "gid": 66}
    assert configs[0]["process"]["args"] == configs[1]["process"]["args"]


def test_commands_that_fail_with_umoci_fail_with_layerfarm_in_one_line(tools: tuple[Tool, Tool]) -> None:
    umoci, layerfarm = tools
    for args in SCRIPT:
        umoci(*args)
        layerfarm(*args)
    for args in FAILING:
        theirs, ours = umoci(*args), layerfarm(*args)
        assert (theirs.code, ours.code, ours.out) == (1, 1, ""), (args, theirs, ours)
        assert ours.err.startswith("layerfarm: ")
        assert ours.err.count("\n") == 1
    for args in USAGE:
        theirs, ours = umoci(*args), layerfarm(*args)
        assert (theirs.code, ours.code, ours.out) == (1, 2, ""), (args, theirs, ours)
        assert ours.err.count("\n") == 1


def test_each_tool_reads_what_the_other_wrote(as_root: None, tools: tuple[Tool, Tool]) -> None:
    umoci, layerfarm = tools
    for args in SCRIPT[:5]:
        umoci(*args)
        layerfarm(*args)
    umoci.directory, layerfarm.directory = layerfarm.directory, umoci.directory
    for tool in tools:
        for args in SCRIPT[5:]:
            done = tool(*args)
            assert (done.code, done.out) == (0, ""), (tool.program, args, done)
        assert tool("stat", "--image=s:v3").code == 0
    assert comparable(image(umoci, "v2"))["config"] == comparable(image(layerfarm, "v2"))["config"]
    for tree in ("bundle/rootfs", "rootfs"):
        assert paths(layerfarm.directory / tree) == paths(umoci.directory / tree)


def test_stat_tells_umocis_history_with_umocis_names(tools: tuple[Tool, Tool]) -> None:
    umoci, layerfarm = tools
    for args in SCRIPT:
        umoci(*args)
    layerfarm.directory = umoci.directory
    for tag in ("v1", "v2", "v3"):
        theirs = json.loads(umoci("stat", "--json", f"--image=s:{tag}").out)
        ours = json.loads(layerfarm("stat", "--json", f"--image=s:{tag}").out)
        assert ours["history"] == theirs["history"]
        text = layerfarm("stat", f"--image=s:{tag}").out
        table = text.partition("== HISTORY ==\n")[2]
        assert [line.split() for line in table.splitlines()] == [
            line.split() for line in umoci("stat", f"--image=s:{tag}").out.splitlines()
        ]


def test_volumes_are_hidden_by_a_tmpfs_unless_switched_off(tmp_path: Path, run: Run) -> None:
    run("layerfarm", "init", "--layout", "store")
    run("layerfarm", "new", "--image", "store:t")
    run("layerfarm", "config", "--image", "store:t", "--config.volume", "/data")
    for name, options in (("hidden", ()), ("shown", ("--volumes=none",))):
        run("layerfarm", "unpack", *options, "--image", "store:t", name)
        run("layerfarm", "raw", "runtime-config", *options, "--image", "store:t", f"{name}.json")
        for file in (f"{name}/config.json", f"{name}.json"):
            mounts = json.loads((tmp_path / file).read_text())["mounts"]
            assert [m["type"] for m in mounts if m["destination"] == "/data"] == (["tmpfs"] if name == "hidden" else [])
