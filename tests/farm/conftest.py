"""One Redis and its workers per test module, or per test where the test does harm to them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

# The workers import the toy flow by this name, and so do the tests.
sys.path.insert(0, str(Path(__file__).parent))

from ground import Ground


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """Redis without a worker."""
    with ExitStack() as stack:
        yield Ground(tmp_path, stack)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Redis and a worker of two processes, for tests that do no harm to either."""
    with ExitStack() as stack:
        made = Ground(tmp_path_factory.mktemp("farm"), stack)
        made.start_worker()
        yield made


@pytest.fixture
def allowed(shared: Ground) -> Path:
    """A fresh directory in which a job of the shared farm leaves its marks."""
    directory = shared.allowed / os.urandom(4).hex()
    directory.mkdir()
    return directory
