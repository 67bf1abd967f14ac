from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.store import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "store")
