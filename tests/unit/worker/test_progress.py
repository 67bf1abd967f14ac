"""Records, events, the listing and the second look, against a fake Redis with Lua."""

from __future__ import annotations

import time

import fakeredis
import pytest

from jobs.errors import JobNotFound
from jobs.flows.base import State, Unit
from worker.claims import Claim, Claims, Piece
from worker.keys import JobKeys
from worker.ledger import Ledger, Stuck
from worker.owner import Owner
from worker.progress import JobState, Progress

ELSEWHERE = Owner("another-host", 1, 1)


@pytest.fixture
def client() -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis(decode_responses=True)


@pytest.fixture
def ledger(client: fakeredis.FakeRedis) -> Ledger:
    return Ledger(client, job_expires=1000, result_expires=100)


def claimed(client: fakeredis.FakeRedis, piece: Piece, lease: float = 10) -> Claim:
    claim = Claims(client, lease, 3, ELSEWHERE).claim(piece)
    assert isinstance(claim, Claim), claim
    return claim


def open_first(client: fakeredis.FakeRedis, ledger: Ledger, units: int = 2) -> None:
    ledger.submit("job", "toy", '{"a": 1}', 2)
    advance = claimed(client, Piece.advance("job", -1))
    ledger.open_stage(advance, 0, "first", State(), [Unit(params={}, bytes=5)] * units)
    ledger.sent(advance, 0)


def test_record_follows_the_life_of_the_job(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    ledger.submit("job", "toy", '{"a": 1}', 2)
    queued = ledger.record("job")
    assert (queued.state, queued.kind, queued.request, queued.stages) == (JobState.QUEUED, "toy", {"a": 1}, 2)
    assert queued.started is None and abs(queued.submitted - time.time()) < 5

    advance = claimed(client, Piece.advance("job", -1))
    assert ledger.record("job").state is JobState.RUNNING
    ledger.open_stage(advance, 1, "second", State(), [Unit(params={}, bytes=5)] * 2)
    running = ledger.record("job")
    assert (running.stage, running.stage_number, running.units_total, running.bytes_total) == ("second", 2, 2, 10)

    ledger.end("job", JobState.SUCCEEDED, result='{"digest": "x"}', claim=advance)
    assert ledger.record("job").ending is JobState.SUCCEEDED
    ledger.closed("job", claimed(client, Piece.close("job")))
    ended = ledger.record("job")
    assert (ended.state, ended.ending, ended.result) == (JobState.SUCCEEDED, None, {"digest": "x"})
    assert ended.started is not None and ended.ended is not None and ended.started <= ended.ended


def test_events_tell_each_change_once(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    open_first(client, ledger)
    claims = Claims(client, 10, 3, ELSEWHERE)
    after = ledger.last_event("job")
    claim = claimed(client, Piece.unit("job", 0, 0))
    claims.beat(claim, 0)
    claims.beat(claim, 3)
    claims.record(claim, {})
    events = [progress for _, progress in ledger.events("job", after, 0.01)]
    running = Progress(JobState.RUNNING, "toy", "first", 1, 2, units_total=2, bytes_total=10)
    assert [(e.units_done, e.bytes_done) for e in events] == [(0, 3), (1, 5)]
    assert {(e.state, e.stage, e.stage_number, e.stages, e.units_total, e.bytes_total) for e in events} == {
        (running.state, "first", 1, 2, 2, 10)
    }
    assert ledger.events("job", ledger.last_event("job"), 0.01) == []


def test_events_are_capped(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    open_first(client, ledger, units=1)
    claims = Claims(client, 100, 3, ELSEWHERE)
    claim = claimed(client, Piece.unit("job", 0, 0), lease=100)
    for _ in range(1500):
        claims.beat(claim, 1)
    assert client.xlen(JobKeys.of("job").events) < 1500


def test_everything_of_a_job_expires(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    open_first(client, ledger)
    keys = JobKeys.of("job")
    assert {0 < client.ttl(key) <= 1000 for key in (keys.job, keys.events, keys.units)} == {True}
    ledger.end("job", JobState.CANCELLED)
    ledger.closed("job", claimed(client, Piece.close("job")))
    assert {0 < client.ttl(key) <= 100 for key in (keys.job, keys.events)} == {True}
    assert client.exists(keys.units, keys.claims) == 0


def test_listing_is_newest_first_and_forgets_what_expired(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    for name in ("a", "b", "c", "d"):
        ledger.submit(name, "toy", "{}", 1)
        time.sleep(0.003)
    client.delete(JobKeys.of("b").job)
    assert [record.id for record in ledger.records(10)] == ["d", "c", "a"]
    assert [record.id for record in ledger.records(2)] == ["d", "c"]
    assert client.zcard("layerfarm:jobs") == 3


@pytest.mark.parametrize("job_id", ["", "../x", "A", "a" * 64, "a:b", "a b", "a\n"])
def test_text_that_is_no_job_id_names_no_key(ledger: Ledger, job_id: str) -> None:
    with pytest.raises(JobNotFound):
        ledger.record(job_id)


def test_request_that_is_not_json_does_not_hide_the_record(ledger: Ledger) -> None:
    ledger.submit("job", "toy", "not json", 1)
    assert ledger.record("job").request == {}


# --- the second look -------------------------------------------------------------------------------


def test_job_that_is_worked_on_is_not_stuck(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    open_first(client, ledger)
    claimed(client, Piece.unit("job", 0, 0))
    assert ledger.stuck("job", quiet=-1) == []


def test_quiet_job_is_not_stuck_before_its_time(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    open_first(client, ledger)
    assert ledger.stuck("job", quiet=60) == []


def test_lost_first_message_is_found(ledger: Ledger) -> None:
    ledger.submit("job", "toy", "{}", 1)
    assert ledger.stuck("job", quiet=-1) == [Stuck("advance", -1, 0)]


def test_lost_units_are_found(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    open_first(client, ledger, units=3)
    claims = Claims(client, 10, 3, ELSEWHERE)
    claims.record(claimed(client, Piece.unit("job", 0, 1)), {})
    assert ledger.stuck("job", quiet=-1) == [Stuck("unit", 0, 0), Stuck("unit", 0, 2)]


def test_unit_whose_holder_vanished_is_found_at_once_and_once(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    open_first(client, ledger)
    claimed(client, Piece.unit("job", 0, 1), lease=0.01)
    time.sleep(0.03)
    assert ledger.stuck("job", quiet=60) == [Stuck("unit", 0, 1)]
    assert ledger.stuck("job", quiet=60) == []


def test_complete_stage_that_nobody_joins_is_found(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    open_first(client, ledger, units=1)
    Claims(client, 10, 3, ELSEWHERE).record(claimed(client, Piece.unit("job", 0, 0)), {})
    assert ledger.stuck("job", quiet=-1) == [Stuck("advance", 0, 0)]


def test_stage_whose_units_were_never_sent_is_found(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    ledger.submit("job", "toy", "{}", 1)
    advance = claimed(client, Piece.advance("job", -1), lease=0.05)
    ledger.open_stage(advance, 0, "first", State(), [Unit(params={})])
    time.sleep(0.1)
    assert ledger.stuck("job", quiet=60) == [Stuck("advance", -1, 0)]
    assert ledger.stuck("job", quiet=-1) == [Stuck("advance", -1, 0)]


def test_end_that_nobody_completes_is_found(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    open_first(client, ledger)
    claimed(client, Piece.unit("job", 0, 0), lease=0.01)
    ledger.end("job", JobState.CANCELLED)
    time.sleep(0.03)
    assert ledger.stuck("job", quiet=-1) == [Stuck("close", -1, 0)]


def test_ended_and_expired_jobs_leave_the_active_ones(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    ledger.submit("job", "toy", "{}", 1)
    ledger.submit("gone", "toy", "{}", 1)
    client.delete(JobKeys.of("gone").job)
    ledger.end("job", JobState.CANCELLED)
    assert ledger.active() == ["gone"]
    assert ledger.stuck("gone", quiet=-1) == []
    assert ledger.active() == []
