"""A store shared by many, in short; at full size: ``make torture-store``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.farm.shared_store import crowd


def test_nothing_is_lost_or_torn_between_16_writers_gc_and_readers(tmp_path: Path) -> None:
    seen = crowd(tmp_path / "store", writers=16, tags=30, seed=int.from_bytes(os.urandom(4), "big"))
    assert seen.clean, seen.notes
    assert seen.tags == 16 * 30
    assert seen.collections and seen.reads and seen.reads_by_others


def test_nor_when_the_writers_are_on_four_hosts(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("namespaces are made by root")
    seen = crowd(tmp_path / "store", writers=8, tags=20, hosts=4, seed=int.from_bytes(os.urandom(4), "big"))
    assert seen.clean, seen.notes
    assert seen.tags == 8 * 20
