"""``layerfarm config show``, and what the settings file means to every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerfarm.jobs.limits import PREFIX
from tests.unit.cli.conftest import Ran, Run


@pytest.fixture(autouse=True)
def _limits_are_of_one_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the environment of this process after a command."""
    monkeypatch.setenv(f"{PREFIX}ENTRIES", "1")
    monkeypatch.delenv(f"{PREFIX}ENTRIES")


def test_lists_settings_and_limits_with_their_sources(
    layerfarm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text('farm = "redis://:hunter2@h"\n[limits]\nentries = "2K"\n')
    monkeypatch.setenv("LAYERFARM_CONFIG", "c.toml")
    monkeypatch.setenv("LAYERFARM_LEASE", "9")
    done = layerfarm("config", "show")
    rows = {row[0]: row[1:] for line in done.out.splitlines() if (row := line.split())}
    assert (done.code, done.err) == (0, "")
    assert rows["farm"] == ["redis://:***@h", "c.toml"]
    assert rows["lease"] == ["9.0", "LAYERFARM_LEASE"]
    assert rows["deliveries"] == ["3", "default"]
    assert rows["limits.entries"] == ["2048", "c.toml"]
    listed = json.loads(layerfarm("config", "show", "--json").out)
    assert {"name": "lease", "value": "9.0", "source": "LAYERFARM_LEASE"} in listed


def test_it_has_a_help_like_any_other_command(layerfarm: Run) -> None:
    done = layerfarm("help", "config", "show")
    assert (done.code, done.err) == (0, "")
    assert done.out == layerfarm("config", "show", "--help").out
    assert layerfarm("help", "config", "nonsense").code == 2


def test_limits_of_the_file_hold_for_any_command(
    layerfarm: Run, store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text("[limits]\nentries = 1\n")
    (tmp_path / "tree/deep/deeper").mkdir(parents=True)
    assert layerfarm("insert", "--image", "store", "tree", "/x").code == 1  # no such tag yet
    assert layerfarm("new", "--image", "store") == Ran(0, "", "")
    assert layerfarm("insert", "--image", "store", "tree", "/x") == Ran(0, "", "")
    monkeypatch.setenv("LAYERFARM_CONFIG", "c.toml")
    done = layerfarm("unpack", "--image", "store", "bundle")
    assert done.code == 1 and "limit 'entries'" in done.err
    assert layerfarm("--limit", "entries=10", "unpack", "--image", "store", "bundle") == Ran(0, "", "")


def test_a_wrong_file_is_one_line(layerfarm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("leese = 3\n")
    monkeypatch.setenv("LAYERFARM_CONFIG", "c.toml")
    assert layerfarm("config", "show") == Ran(
        1, "", "layerfarm: unknown setting 'leese': c.toml (did you mean lease?)\n"
    )
