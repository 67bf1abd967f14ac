"""Running the command line in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from layerfarm.worker.cli import output
from layerfarm.worker.cli.main import main


class Ran(NamedTuple):
    """Outcome of a call of ``layerfarm``."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def layerfarm(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """``layerfarm(*args)`` in an empty current directory, with no setting in the environment."""
    for name in ("LAYERFARM_FARM", "LAYERFARM_ROOTS", "LAYERFARM_STORES", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*args: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        return Ran(code, *capsys.readouterr())

    yield run
    output.set_level("warn")


@pytest.fixture
def store(layerfarm: Run, tmp_path: Path) -> Path:
    """An empty layout, ``store`` in the current directory."""
    assert layerfarm("init", "--layout", "store") == Ran(0, "", "")
    return tmp_path / "store"
