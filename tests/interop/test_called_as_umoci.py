"""A link named ``umoci`` to layerfarm, and small habits of scripts, each beside the real umoci."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.tools import LAYERFARM, Tool


@pytest.fixture
def tools(tmp_path: Path, program: Callable[[str], str]) -> tuple[Tool, Tool]:
    """umoci, and layerfarm under its name, each beside a layout with an empty image ``s:t``."""
    link = tmp_path / "bin/umoci"
    link.parent.mkdir()
    link.symlink_to(LAYERFARM)
    pair = (Tool(program("umoci"), tmp_path / "theirs"), Tool(str(link), tmp_path / "ours"))
    for tool in pair:
        for args in (["init", "--layout=s"], ["new", "--image=s:t"]):
            assert tool(*args).code == 0
    return pair


def test_the_version_is_found_where_scripts_look_for_it(tools: tuple[Tool, Tool]) -> None:
    found = [re.match(r"umoci version (\d+)\.(\d+)\.(\d+)", tool("--version").out) for tool in tools]
    assert all(found)
    assert found[1] is not None and found[1].group() == "umoci version 0.6.0"


def test_gc_leaves_nothing_that_no_tag_leads_to(tools: tuple[Tool, Tool]) -> None:
    for tool in tools:
        assert tool("rm", "--image=s:t").code == 0
        assert tool("gc", "--layout=s").code == 0
        assert os.listdir(tool.directory / "s/blobs/sha256") == []


@pytest.mark.parametrize(
    "args",
    [
        ["--log", "WARN", "ls", "--layout=s"],
        ["raw", "help"],
        ["raw", "help", "unpack"],
        ["config", "--image=s:t", "--architecture=", "--os="],
    ],
    ids=" ".join,
)
def test_it_is_taken_by_both(tools: tuple[Tool, Tool], args: list[str]) -> None:
    for tool in tools:
        assert tool(*args).code == 0, tool.program


def test_an_empty_platform_is_written_as_umoci_writes_it(tools: tuple[Tool, Tool]) -> None:
    configs = []
    for tool in tools:
        assert tool("config", "--image=s:t", "--architecture=", "--os=").code == 0
        (entry,) = json.loads((tool.directory / "s/index.json").read_bytes())["manifests"]
        blobs = tool.directory / "s/blobs"
        manifest = json.loads((blobs / entry["digest"].replace(":", "/")).read_bytes())
        configs.append(json.loads((blobs / manifest["config"]["digest"].replace(":", "/")).read_bytes()))
    assert [(config["architecture"], config["os"]) for config in configs] == [("", ""), ("", "")]


def test_only_the_specified_files_are_made_for_an_empty_layout(tools: tuple[Tool, Tool]) -> None:
    for tool in tools:
        assert tool("init", "--layout=empty").code == 0
        for args in (["ls", "--layout=empty"], ["stat", "--image=empty:t"]):
            tool(*args)
        assert sorted(os.listdir(tool.directory / "empty")) == ["blobs", "index.json", "oci-layout"]
