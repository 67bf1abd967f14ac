"""The fixtures of each version, unpacked into a directory of the test."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.compatibility.write import PLACE

HERE = Path(__file__).parent
VERSIONS = sorted(path.parent for path in HERE.glob("*/expected.json"))


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def written(request: pytest.FixtureRequest) -> Path:
    """The directory of a version."""
    assert isinstance(request.param, Path)
    return request.param


@pytest.fixture
def expected(written: Path, disk: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((written / "expected.json").read_text().replace(PLACE, str(disk)))
    return found


@pytest.fixture
def disk(written: Path, tmp_path: Path) -> Path:
    """Trees, bundle, stores, catalog and cache as that version left them."""
    place = tmp_path / "allowed"
    place.mkdir()
    subprocess.run(["tar", "--xattrs", "-xzf", written / "disk.tar.gz", "-C", place], check=True)
    return place
