from __future__ import annotations

from pathlib import Path

import pytest

from layerfarm.jobs.store import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Empty, with the private directories of one that was written to before."""
    layout = Layout.create(tmp_path / "store")
    for name in ("ingest", "next-index"):
        (layout.path / ".layerfarm" / name).mkdir(parents=True)
    return layout
