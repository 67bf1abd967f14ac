"""A short form of ``make torture``: a few faults, once each."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from layerfarm.worker.engine.failpoints import STEPS
from tests.farm.harms import FAULTS
from tests.farm.torture import run_trial

SHORT = (
    "SIGKILL at stage.opened",
    "SIGKILL at work.done",
    "redis restarted",
    "redis restarted without its last second",
    "redis restarted empty",
    "host cut off",
    "store full",
    "disk fails to sync",
    "clocks off by 5 min",
    "new format",
)


@pytest.mark.parametrize("fault", SHORT)
def test_nothing_is_lost_or_left_by(as_root: None, fault: str, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    counts = run_trial(fault, tmp_path / "trial", seed)
    assert counts.clean, f"SEED={seed}: {counts}"
    assert counts.right + counts.failed == (6 if fault == "redis restarted empty" else 3)


def test_every_step_is_tortured() -> None:
    assert {f"SIGKILL at {step}" for step in STEPS} <= set(FAULTS)


def test_the_documentation_states_the_promise_for_every_fault() -> None:
    page = (Path(__file__).parents[2] / "docs" / "faults.md").read_text()
    said = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert sorted(said) == sorted({re.sub("^SIGKILL at .*", "SIGKILL at …", name) for name in FAULTS})
