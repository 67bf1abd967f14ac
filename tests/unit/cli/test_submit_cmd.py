"""``layerfarm submit``: documents of other languages' clients, and the lines that those read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import layerfarm.worker.client
from layerfarm.jobs.errors import JobFailed, JobTimeout
from layerfarm.jobs.flows.base import Request
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef
from layerfarm.worker.model import JobError, JobRecord, JobState, Progress
from tests.unit.cli.conftest import Ran, Run

BUILD = {"kind": "build", "request": {"rootfs": "/r", "image": {"store": "/s", "tag": "v1"}}}
REQUEST = BuildRequest(rootfs=Path("/r"), image=ImageRef(store=Path("/s"), tag="v1"))
FARM = ("--farm", "redis://f")


class FakeFarm:
    """A farm with one job, whose end the test chooses."""

    id = "j1"
    submitted: list[Request] = []
    cancelled: list[str] = []
    ending: BaseException | None = None
    record_of_end = JobRecord(
        id="j1", kind="build", request={}, state=JobState.SUCCEEDED, submitted=1.0, result={"manifest": "sha256:1"}
    )

    def __init__(self, url: str) -> None:
        assert url == "redis://f"

    def submit(self, request: Request, **options: Any) -> FakeFarm:
        self.submitted.append(request)
        return self

    def watch(self, *, timeout: float | None = None) -> Iterator[Progress]:
        yield Progress(JobState.QUEUED, "build")
        yield Progress(JobState.RUNNING, "build", "hash", 1, 2, 0, 4, 5, 10)
        if isinstance(self.ending, KeyboardInterrupt | JobTimeout):
            raise self.ending
        yield Progress(self.record_of_end.state, "build")

    def record(self) -> JobRecord:
        return self.record_of_end

    def result(self, timeout: float | None) -> None:
        if self.ending is not None:
            raise self.ending

    def cancel(self) -> None:
        self.cancelled.append(self.id)


@pytest.fixture
def farm(monkeypatch: pytest.MonkeyPatch) -> type[FakeFarm]:
    for name in ("submitted", "cancelled"):
        monkeypatch.setattr(FakeFarm, name, [])
    monkeypatch.setattr(FakeFarm, "ending", None)
    monkeypatch.setattr(layerfarm.worker.client, "Farm", FakeFarm)
    return FakeFarm


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(BUILD))
    return path


def test_submit_prints_the_id_of_the_job(layerfarm: Run, farm: type[FakeFarm], file: Path) -> None:
    assert layerfarm("submit", "--request", file, *FARM) == Ran(0, "j1\n", "")
    assert farm.submitted == [REQUEST]


def test_document_may_come_from_stdin(layerfarm: Run, farm: type[FakeFarm], file: Path) -> None:
    before = os.dup(0)
    with file.open("rb") as opened:
        os.dup2(opened.fileno(), 0)
    try:
        assert layerfarm(*FARM, "submit", "--request", "-") == Ran(0, "j1\n", "")
        assert "standard input" in layerfarm(*FARM, "submit", "--request", "-").err, "it is at its end"
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert farm.submitted == [REQUEST]


def test_json_without_wait_is_one_line_with_the_state(layerfarm: Run, farm: type[FakeFarm], file: Path) -> None:
    (line,) = layerfarm("submit", "--json", "--request", file, *FARM).out.splitlines()
    assert json.loads(line)["job"] == "j1"


def test_json_with_wait_is_a_line_for_each_change_and_the_last_has_the_result(
    layerfarm: Run, farm: type[FakeFarm], file: Path
) -> None:
    done = layerfarm("submit", "--wait", "--json", "--request", file, *FARM)
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [(line["job"], line["state"], line["stage"]) for line in lines] == [
        ("j1", "queued", ""),
        ("j1", "running", "hash"),
        ("j1", "succeeded", ""),
    ]
    assert (lines[1]["units_total"], lines[1]["bytes_done"], lines[1]["bytes_total"]) == (4, 5, 10)
    assert [line["result"] for line in lines] == [None, None, {"manifest": "sha256:1"}]
    assert (done.code, done.err) == (0, "")


def test_failure_is_the_last_line_and_the_exit_code(
    layerfarm: Run, farm: type[FakeFarm], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = JobError(type="TreeChanged", message="it moved")
    failed = farm.record_of_end.model_copy(update={"state": JobState.FAILED, "result": None, "error": error})
    monkeypatch.setattr(farm, "record_of_end", failed)
    monkeypatch.setattr(farm, "ending", JobFailed("it moved"))
    done = layerfarm("submit", "--wait", "--json", "--request", file, *FARM)
    last = json.loads(done.out.splitlines()[-1])
    assert (last["state"], last["error"]) == ("failed", {"type": "TreeChanged", "message": "it moved"})
    assert (done.code, done.err) == (1, "layerfarm: it moved\n")


def test_interrupt_cancels_the_job_and_a_timeout_does_not(
    layerfarm: Run, farm: type[FakeFarm], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farm, "ending", JobTimeout("job has not ended within 5 s", where="j1"))
    assert layerfarm("submit", "--wait", "--timeout=5s", "--request", file, *FARM).code == 1
    assert farm.cancelled == []
    monkeypatch.setattr(farm, "ending", KeyboardInterrupt())
    assert layerfarm("submit", "--wait", "--request", file, *FARM).code == 130
    assert farm.cancelled == ["j1"]


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ("", "JSON"),
        ("[]", "not an object"),
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        ('{"kind": "build"}', "request: missing"),
        ('{"kind": "bake", "request": {}}', "write one of analyze, build"),
        (json.dumps(BUILD | {"colour": 1}), "colour: unknown field"),
        (json.dumps({"kind": "build", "request": {"rootfs": "/r"}}), "not a valid build request: image: missing"),
        (json.dumps({"kind": "build", "request": BUILD["request"] | {"rootfs": "r"}}), "path must be absolute"),  # type: ignore[operator]
        ('{"kind": "build", "request": {"rootfs": NaN, "image": {"store": "/s"}}}', "rootfs: not a path"),
        ("\0" * (1 << 20) + "1", "more than 1048576 bytes"),
    ],
)
def test_wrong_document_is_one_line_that_names_the_fault_and_the_file(
    layerfarm: Run, farm: type[FakeFarm], tmp_path: Path, document: str, named: str
) -> None:
    (tmp_path / "wrong.json").write_text(document)
    done = layerfarm("submit", "--request=wrong.json", *FARM)
    assert (done.code, done.out, done.err.count("\n"), farm.submitted) == (1, "", 1, [])
    assert named in done.err and "wrong.json" in done.err


def test_missing_file_and_missing_farm_are_errors(layerfarm: Run, file: Path) -> None:
    assert layerfarm("submit", "--request=none.json", *FARM).err == "layerfarm: No such file or directory: none.json\n"
    done = layerfarm("submit", "--request", file)
    assert (done.code, "no farm" in done.err) == (2, True)
