"""Owners: told from one another, and dead only where that is seen."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from layerfarm.worker.jobstore import owner
from layerfarm.worker.jobstore.owner import Owner, owner_of, this_process


def test_pid_that_is_used_again_is_another_owner() -> None:
    mine = this_process()
    assert not mine.is_known_dead
    assert mine._replace(started=mine.started - 1).is_known_dead
    assert not mine._replace(place="another-host", started=1).is_known_dead
    assert Owner.parse(str(mine)) == mine


def test_this_process_is_distinguished_from_its_parent() -> None:
    assert this_process().pid == os.getpid()
    assert not owner_of(os.getppid()).is_known_dead


def test_process_that_has_ended_is_dead_before_and_after_it_is_waited_for() -> None:
    child = subprocess.Popen(["sleep", "60"])
    its = owner_of(child.pid)
    assert not its.is_known_dead
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert its.is_known_dead
    child.wait()
    assert its.is_known_dead


def test_process_that_proc_hides_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = owner_of(os.getppid())

    def hidden(self: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(owner.Path, "read_text", hidden)
    assert not parent.is_known_dead
