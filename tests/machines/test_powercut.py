"""The short form of ``make powercut``: a few cuts on each of two filesystems, at moments that a seed chooses."""

from __future__ import annotations

import pytest

from tests.machines.image import missing_for_machines
from tests.machines.powercut import Row, powercut

CUTS = 8
IMAGES = 3
"""Two boots."""
SEED = 20


@pytest.mark.large
def test_store_survives_power_cuts() -> None:
    missing = missing_for_machines()
    if missing:
        pytest.skip(f"needs {missing}")
    disks = [Row("ext4-ordered", "volatile cache"), Row("xfs", "volatile cache")]
    rows = list(powercut(2 * CUTS, SEED, disks, images=IMAGES))
    assert [(row.cuts, row.faults) for row in rows] == [(CUTS, []), (CUTS, [])]
    assert all(row.acknowledged for row in rows)
