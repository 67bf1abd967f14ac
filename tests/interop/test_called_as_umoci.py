"""A link named ``umoci`` to layerfarm, and small habits of scripts, each beside the real umoci."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def config_of(tool: Tool) -> dict[str, Any]:
    """The config of the only image of ``s``."""
    (entry,) = json.loads((tool.directory / "s/index.json").read_bytes())["manifests"]
    blobs = tool.directory / "s/blobs"
    manifest = json.loads((blobs / entry["digest"].replace(":", "/")).read_bytes())
    config: dict[str, Any] = json.loads((blobs / manifest["config"]["digest"].replace(":", "/")).read_bytes())
    return config


def test_an_empty_platform_is_written_as_umoci_writes_it(tools: tuple[Tool, Tool]) -> None:
    for tool in tools:
        assert tool("config", "--image=s:t", "--architecture=", "--os=").code == 0
    assert [(config["architecture"], config["os"]) for config in map(config_of, tools)] == [("", ""), ("", "")]


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["a", "", "b"], ["a", "b"]),
        (["", "a"], ["a"]),
        (["a", "", ""], ["a", ""]),
        (["", ""], [""]),
        ([""], [""]),
        ([" ", ""], [" "]),
    ],
    ids=str,
)
def test_an_empty_word_beside_others_is_left_out(tools: tuple[Tool, Tool], words: list[str], kept: list[str]) -> None:
    flags = [flag for word in words for flag in ("--config.cmd", word)]
    more = ["--config.env=A=1", "--config.env=", "--config.label", "", "--config.label=k=v", "--config.volume", "/v"]
    for tool in tools:
        assert tool("config", "--image=s:t", *flags, *more, "--config.volume=").code == 0, tool.program
    expected = {"Cmd": kept, "Env": ["A=1"], "Labels": {"k": "v"}, "Volumes": {"/v": {}}}
    assert [config_of(tool)["config"] for tool in tools] == [expected, expected]


@pytest.mark.parametrize(
    "time", ["2020-01-01T00:00:00+00:00", "2020-01-01T00:00:00.500-02:30", "2020-01-01T00:00:00.0Z"]
)
def test_times_are_spelled_as_umoci_spells_them(tools: tuple[Tool, Tool], time: str) -> None:
    for tool in tools:
        assert tool("config", "--image=s:t", "--created", time, "--history.created", time).code == 0
    theirs, ours = map(config_of, tools)
    assert ours["created"] == theirs["created"] == ours["history"][0]["created"] == theirs["history"][0]["created"]


def test_only_the_specified_files_are_made_for_an_empty_layout(tools: tuple[Tool, Tool]) -> None:
    for tool in tools:
        assert tool("init", "--layout=empty").code == 0
        for args in (["ls", "--layout=empty"], ["stat", "--image=empty:t"]):
            tool(*args)
        assert sorted(os.listdir(tool.directory / "empty")) == ["blobs", "index.json", "oci-layout"]
