"""Fixtures of the tests of deploy/."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.conftest import debian

__all__ = ["debian"]


@pytest.fixture(scope="session")
def deploy() -> Path:
    """The directory under test."""
    return Path(__file__).resolve().parents[2] / "deploy"
