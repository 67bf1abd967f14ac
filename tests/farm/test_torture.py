"""A short form of ``make torture``: four faults, once each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.farm.torture import FAULTS, run_trial
from worker.steps import STEPS

pytestmark = pytest.mark.timeout(200)

SHORT = ("SIGKILL at stage.opened", "SIGKILL at work.done", "redis restarted", "store full")


@pytest.mark.parametrize("fault", SHORT)
def test_nothing_is_lost_or_left_by(fault: str, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    counts = run_trial(fault, tmp_path / "trial", seed)
    assert counts.clean, f"SEED={seed}: {counts}"
    assert counts.right + counts.failed == 3


def test_every_step_is_tortured() -> None:
    assert {f"SIGKILL at {step}" for step in STEPS} <= set(FAULTS)
