"""``layerfarm top`` where the output is narrower than its tables."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from layerfarm.worker.cli import top_cmd
from layerfarm.worker.model import JobRecord, JobState
from layerfarm.worker.monitoring.census import Census
from tests.unit.cli.conftest import Run

LONG = JobRecord(
    id="0123456789ab",
    kind="recompress",
    submitter="somebody-with-a-long-name@build-host-17.example.com",
    request={},
    state=JobState.RUNNING,
    stage="recompress",
    stage_number=1,
    stages=3,
    submitted=1.0,
)


class Farm:
    address = "redis://queue/0"

    def census(self) -> Census:
        return Census()

    def jobs(self, most: int) -> list[JobRecord]:
        return [LONG]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(top_cmd, "farm_of", lambda session: Farm())
    monkeypatch.setenv("COLUMNS", "60")
    yield


def test_once_cuts_nothing(layerfarm: Run) -> None:
    (row,) = [line for line in layerfarm("top", "--once").out.splitlines() if line.split()[:1] == [LONG.id]]
    assert row.split()[-1] == LONG.submitter


def test_ids_stay_whole_on_a_narrow_terminal() -> None:
    out = io.StringIO()
    Console(width=60, file=out).print(top_cmd._jobs([LONG], 5.0))
    assert any(line.split()[:1] == [LONG.id] for line in out.getvalue().splitlines())


def test_requested_cancel_of_a_running_job_is_shown() -> None:
    out = io.StringIO()
    Console(width=200, file=out).print(top_cmd._jobs([LONG.model_copy(update={"ending": JobState.CANCELLED})], 5.0))
    assert "running, cancel requested" in out.getvalue()
