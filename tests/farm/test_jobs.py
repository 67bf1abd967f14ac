"""Jobs through real prefork workers: stages, progress, failure, cancel, refusal, records."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ground import Ground, running, until
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import JobCancelled, JobFailed, JobNotFound, JobTimeout, RequestError
from layerfarm.jobs.flows.base import Request
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.jobstore.model import Item
from layerfarm.worker.model import JobState

KEYS = Keys()


def marks(directory: Path, name: str) -> int:
    return len(list(directory.glob(f"{name}.*")))


def test_job_goes_through_its_stages_to_the_result(shared: Ground, allowed: Path) -> None:
    job = shared.farm().submit(ToyRequest(directory=allowed, numbers=10))

    assert job.result(90) == ToyResult(total=3 * 45)
    assert [marks(allowed, name) for name in ("begin", "join", "clean-True", "clean-False")] == [1, 3, 1, 0]
    assert [marks(allowed, f"run-{number}") for number in range(10)] == [3] * 10
    assert not (allowed / "staged").exists()


def test_stage_without_units_is_joined_at_once(shared: Ground, allowed: Path) -> None:
    assert shared.farm().submit(ToyRequest(directory=allowed, rounds=1)).result(90) == ToyResult(total=6)
    assert marks(allowed, "join") == 3


def test_job_without_any_unit_ends(shared: Ground, allowed: Path) -> None:
    assert shared.farm().submit(ToyRequest(directory=allowed, numbers=0)).result(90) == ToyResult(total=0)


def test_watch_shows_units_and_bytes_up_to_the_end(shared: Ground, allowed: Path) -> None:
    job = shared.farm().submit(ToyRequest(directory=allowed, numbers=3, rounds=2, sleep=1.2, unit_bytes=6000))
    seen = list(job.watch())

    assert seen[-1].state is JobState.SUCCEEDED
    # The watcher may start too late to see the job queued.
    assert {(p.stage, p.stage_number) for p in seen} - {("", 0)} == {("first", 1), ("second", 2)}
    first = [p for p in seen if p.stage == "first"]
    assert {(p.units_total, p.bytes_total, p.stages) for p in first} == {(3, 18000, 3)}
    assert [p.units_done for p in first] == sorted(p.units_done for p in first)
    assert [p.bytes_done for p in first] == sorted(p.bytes_done for p in first)
    assert first[-1].bytes_done == 18000
    # The beat tells of bytes inside a unit, not only of units that ended.
    assert any(0 < p.bytes_done < 6000 for p in first)


def test_watching_a_job_that_has_ended_shows_its_end(shared: Ground, allowed: Path) -> None:
    job = shared.farm().submit(ToyRequest(directory=allowed))
    job.result(90)
    assert [p.state for p in shared.farm().job(job.id).watch()] == [JobState.SUCCEEDED]


def test_error_of_a_unit_is_the_error_of_the_job(shared: Ground, allowed: Path) -> None:
    job = shared.farm().submit(ToyRequest(directory=allowed, trouble="error"))

    with pytest.raises(JobFailed, match="number one is odd: unit 1") as caught:
        job.result(90)
    assert caught.value.error_type == "RequestError"
    assert job.record().state is JobState.FAILED
    assert marks(allowed, "clean-False") == 1
    assert not (allowed / "staged").exists()


def test_failed_unit_stops_the_others(shared: Ground, allowed: Path) -> None:
    job = shared.farm().submit(ToyRequest(directory=allowed, numbers=2, trouble="error", sleep=120))
    # Long before the other unit would have ended by itself; a busy machine may take its time.
    with pytest.raises(JobFailed):
        job.result(60)
    assert marks(allowed, "stopped") == 1


def test_unexpected_error_says_internal_error_and_is_logged_with_its_traceback(shared: Ground, allowed: Path) -> None:
    job = shared.farm().submit(ToyRequest(directory=allowed, trouble="bug"))

    with pytest.raises(JobFailed, match=r"internal error \(ZeroDivisionError\)") as caught:
        job.result(90)
    assert "secret detail" not in str(caught.value)
    logged = [line for line in shared.log().splitlines() if job.id in line and "ZeroDivisionError" in line]
    assert "_misbehave" in logged[0]


@pytest.mark.parametrize("trouble", ["begin-error", "finish-bug"])
def test_error_outside_the_units_fails_the_job(shared: Ground, allowed: Path, trouble: str) -> None:
    job = shared.farm().submit(ToyRequest(directory=allowed, trouble=trouble))
    with pytest.raises(JobFailed):
        job.result(90)
    assert not (allowed / "staged").exists()


def test_error_while_cleaning_does_not_change_the_outcome(shared: Ground, allowed: Path) -> None:
    assert shared.farm().submit(ToyRequest(directory=allowed, trouble="clean-bug")).result(90) == ToyResult(total=18)


def test_cancel_stops_running_units_and_cleans_up(shared: Ground, allowed: Path) -> None:
    job = shared.farm().submit(ToyRequest(directory=allowed, numbers=20, sleep=100))
    until(lambda: marks(allowed, "run-0") + marks(allowed, "run-1") == 2)
    assert (allowed / "staged").exists()

    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.result(50)  # half of what a unit would take
    assert marks(allowed, "stopped") == 2
    assert marks(allowed, "clean-False") == 1
    assert not (allowed / "staged").exists()
    assert not job.cancel()


def test_farm_runs_other_jobs_after_a_cancel(shared: Ground, allowed: Path) -> None:
    cancelled = shared.farm().submit(ToyRequest(directory=allowed, numbers=50, sleep=5))
    running(cancelled)
    cancelled.cancel()
    assert shared.farm().submit(ToyRequest(directory=allowed)).result(60) == ToyResult(total=18)


def test_cancel_of_an_ended_job_changes_nothing(shared: Ground, allowed: Path) -> None:
    job = shared.farm().submit(ToyRequest(directory=allowed))
    job.result(90)
    assert not job.cancel()
    assert job.record().state is JobState.SUCCEEDED


def test_worker_refuses_a_path_outside_its_roots(shared: Ground, tmp_path: Path) -> None:
    job = shared.farm().submit(ToyRequest(directory=tmp_path))
    with pytest.raises(JobFailed, match="outside the worker's allowed roots") as caught:
        job.result(90)
    assert caught.value.error_type == "OutsideAllowedRoots"
    assert list(tmp_path.iterdir()) == []


def test_symlink_out_of_the_roots_is_refused(shared: Ground, allowed: Path, tmp_path: Path) -> None:
    (allowed / "link").symlink_to(tmp_path)
    job = shared.farm().submit(ToyRequest(directory=allowed / "link"))
    with pytest.raises(JobFailed, match="outside the worker's allowed roots"):
        job.result(90)
    assert list(tmp_path.iterdir()) == []


def test_result_that_does_not_come_in_time_is_a_timeout_and_the_job_goes_on(shared: Ground, allowed: Path) -> None:
    job = shared.farm().submit(ToyRequest(directory=allowed, numbers=1, rounds=1, sleep=1.5))
    with pytest.raises(JobTimeout):
        job.result(0.3)
    assert job.result(60) == ToyResult(total=0)


class Unknown(Request):
    """A request that no flow serves."""


def test_request_of_an_unknown_type_is_refused_by_submit(shared: Ground) -> None:
    with pytest.raises(RequestError, match="no flow serves"):
        shared.farm().submit(Unknown())


def test_request_made_without_validation_is_refused_by_submit(shared: Ground, allowed: Path) -> None:
    before = len(shared.farm().jobs())
    with pytest.raises(RequestError, match="trouble"):
        shared.farm().submit(ToyRequest(directory=allowed).model_copy(update={"trouble": "unheard of"}))
    with pytest.raises(RequestError, match="more than 65536"):
        shared.farm().submit(ToyRequest(directory=Path("/" + "x" * 70000)))
    assert len(shared.farm().jobs()) == before


@pytest.mark.parametrize(
    ("kind", "request_text", "message"),
    [
        ("unheard-of", "{}", "does not know the kind of job: unheard-of"),
        ("toy", "{}", "not a valid toy request: directory: missing"),
        ("toy", "not json", "not a valid toy request"),
        ("toy", '{"directory": "/", "extra": 1}', "extra: unknown field"),
        ("toy", f'{{"directory": "/{"x" * 70_000}"}}', "request has 700[0-9]+ characters, more than 65536"),
    ],
)
def test_job_with_an_invalid_request_is_refused_by_the_worker(
    shared: Ground, kind: str, request_text: str, message: str
) -> None:
    farm = shared.farm()
    stranger = f"stranger-{os.urandom(4).hex()}"
    farm.store.submit(stranger, kind, request_text, 3)
    farm.sender.send([Item(stranger, 1, "advance")])
    with pytest.raises(JobFailed, match=message):
        farm.job(stranger).result(90)


def test_foreign_message_does_no_harm(shared: Ground, allowed: Path) -> None:
    farm = shared.farm()
    for name, fields in [
        ("layerfarm.unit", {"job": "../../etc", "stage": 0, "index": 0}),
        ("layerfarm.unit", {"job": "aa", "stage": "0", "index": 0}),
        ("layerfarm.unit", {}),
        ("layerfarm.advance", {"job": "never-submitted", "stage": -1}),
        ("layerfarm.unheard", {"job": "aa"}),
    ]:
        farm._app.send_task(name, kwargs=fields, queue="layerfarm.control")
    farm._app.send_task("layerfarm.unit", args=[1, 2], queue="layerfarm.control")
    assert farm.submit(ToyRequest(directory=allowed)).result(90) == ToyResult(total=18)
    assert shared.log().count("message refused") >= 4


def test_duplicate_messages_change_nothing(shared: Ground, allowed: Path) -> None:
    farm = shared.farm()
    job = farm.submit(ToyRequest(directory=allowed, numbers=6, rounds=3, sleep=0.1))
    farm.sender.send([Item(job.id, 1, "advance")] * 3)
    running(job)
    units = [[Item(job.id, 1, "unit", stage, index) for index in range(6)] for stage in range(3)]
    for stage in range(3):
        farm.sender.send([Item(job.id, 1, "advance", stage), *units[stage]])
    farm.sender.send([Item(job.id, 1, "close")])
    assert job.result(90) == ToyResult(total=45)
    farm.sender.send([Item(job.id, 1, "advance", 2), *units[2]])
    assert farm.submit(ToyRequest(directory=allowed / "..")).result(90) == ToyResult(total=18)

    counted = ("begin", "join", "clean-True", "clean-False")
    assert [marks(allowed, name) for name in counted] == [1, 3, 1, 0]
    assert [marks(allowed, f"run-{number}") for number in range(6)] == [3] * 6


def test_jobs_are_listed_newest_first(shared: Ground, allowed: Path) -> None:
    farm = shared.farm()
    submitted = [farm.submit(ToyRequest(directory=allowed)) for _ in range(3)]
    for job in submitted:
        job.result(90)
    listed = farm.jobs(limit=3)
    assert [record.id for record in listed] == [job.id for job in reversed(submitted)]
    assert all(r.kind == "toy" and r.started and r.ended and r.submitted <= r.started <= r.ended for r in listed)
    assert listed[0].request["directory"] == str(allowed)


def test_job_that_was_never_submitted_is_not_found(shared: Ground) -> None:
    for job_id in ("nope", "../../etc/passwd", ""):
        with pytest.raises(JobNotFound):
            shared.farm().job(job_id)


def test_ended_job_keeps_only_its_record_and_events_in_redis(shared: Ground, allowed: Path) -> None:
    farm = shared.farm()
    job = farm.submit(ToyRequest(directory=allowed, numbers=20))
    job.result(90)
    keys = KEYS.job(job.id)
    client = farm.client
    assert client.exists(keys.claims, keys.units) == 0
    assert not client.sismember(keys.active, job.id)
    assert 0 < client.ttl(keys.job) <= 24 * 3600
    assert 0 < client.ttl(keys.events) <= 24 * 3600


def test_workers_say_what_they_allow(shared: Ground) -> None:
    (info,) = shared.farm().workers()
    assert (info.concurrency, info.roots, info.stores) == (2, (shared.allowed,), (shared.allowed,))
    assert "toy" in info.kinds
