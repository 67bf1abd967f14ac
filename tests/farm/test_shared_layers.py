"""Layers that images share, done once by workers that are killed, in short; at full size: ``make torture``."""

from __future__ import annotations

import os
from pathlib import Path

from tests.farm.shared_layers import recompress_all


def test_killed_workers_cost_takeovers_and_change_nothing(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    outcome = recompress_all(tmp_path, images=10, layers=4, workers=2, size=400_000, seed=seed)
    assert outcome.clean, f"SEED={seed}: {outcome}"
    assert (outcome.jobs, outcome.layers) == (10, 4)
    assert outcome.killed_workers + outcome.killed_processes
