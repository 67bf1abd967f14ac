"""Claims against a fake Redis with Lua: leases, fencing, take-over, poison, one recorded effect."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

import fakeredis
import pytest

from jobs.errors import JobCancelled, JobNotFound
from jobs.flows.base import State, Unit
from worker.claims import Claim, Claims, Piece, Pulse, Refusal, Refused
from worker.heart import Heart, Watched
from worker.ledger import Ledger
from worker.owner import Owner, this_process
from worker.progress import JobError, JobState

ELSEWHERE = Owner("another-host", 1, 1)


class Numbers(State):
    total: int = 0


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return fakeredis.FakeServer()


@pytest.fixture
def client(server: fakeredis.FakeServer) -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis(server=server, decode_responses=True)


@pytest.fixture
def ledger(client: fakeredis.FakeRedis) -> Ledger:
    return Ledger(client, job_expires=1000, result_expires=100)


def claims_of(client: fakeredis.FakeRedis, owner: Owner = ELSEWHERE, lease: float = 10, deliveries: int = 3) -> Claims:
    return Claims(client, lease, deliveries, owner)


@pytest.fixture
def opened(client: fakeredis.FakeRedis, ledger: Ledger) -> str:
    """A job whose first stage of three units of 10 bytes is open."""
    ledger.submit("job", "toy", "{}", 2)
    advance = claims_of(client).claim(Piece.advance("job", -1))
    assert isinstance(advance, Claim)
    assert ledger.open_stage(advance, 0, "first", Numbers(), [Unit(params={"n": n}, bytes=10) for n in range(3)])
    ledger.sent(advance, 0)
    return "job"


def claimed(claims: Claims, piece: Piece) -> Claim:
    claim = claims.claim(piece)
    assert isinstance(claim, Claim), claim
    return claim


def refused(claims: Claims, piece: Piece) -> Refused:
    answer = claims.claim(piece)
    assert isinstance(answer, Refused), answer
    return answer


def test_claim_gives_the_unit(client: fakeredis.FakeRedis, opened: str) -> None:
    assert claimed(claims_of(client), Piece.unit(opened, 0, 2)).unit == Unit(params={"n": 2}, bytes=10)


def test_second_claim_of_a_living_holder_is_refused(client: fakeredis.FakeRedis, opened: str) -> None:
    piece = Piece.unit(opened, 0, 1)
    claimed(claims_of(client), piece)
    assert refused(claims_of(client, Owner("a-third", 1, 1)), piece).why is Refusal.BUSY


def test_claim_whose_lease_ran_out_is_taken_over_with_a_greater_token(client: fakeredis.FakeRedis, opened: str) -> None:
    piece = Piece.unit(opened, 0, 1)
    first = claimed(claims_of(client, lease=0.02), piece)
    time.sleep(0.05)
    second = claimed(claims_of(client, Owner("a-third", 1, 1)), piece)
    assert second.token > first.token
    assert claims_of(client).beat(first, 5) is Pulse.LOST
    assert claims_of(client).beat(second, 5) is Pulse.OK


def test_beats_keep_a_claim_past_its_lease(client: fakeredis.FakeRedis, opened: str) -> None:
    piece = Piece.unit(opened, 0, 1)
    claims = claims_of(client, lease=0.3)
    claim = claimed(claims, piece)
    for _ in range(5):
        time.sleep(0.1)
        assert claims.beat(claim, 0) is Pulse.OK
    assert refused(claims_of(client, Owner("a-third", 1, 1)), piece).why is Refusal.BUSY


def test_claim_of_a_dead_process_of_this_host_is_taken_over_at_once(client: fakeredis.FakeRedis, opened: str) -> None:
    child = subprocess.Popen(["sleep", "60"])
    dead = this_process()._replace(pid=child.pid, started=_started(child.pid))
    piece = Piece.unit(opened, 0, 1)
    claimed(claims_of(client, dead), piece)
    assert refused(claims_of(client, this_process()), piece).why is Refusal.BUSY
    child.kill()
    child.wait()
    claimed(claims_of(client, this_process()), piece)


def test_pid_that_is_used_again_is_another_owner() -> None:
    mine = this_process()
    assert not mine.is_known_dead
    assert mine._replace(started=mine.started - 1).is_known_dead
    assert not mine._replace(place="another-host", started=1).is_known_dead
    assert Owner.parse(str(mine)) == mine


def test_unit_is_poison_after_the_allowed_deliveries(client: fakeredis.FakeRedis, opened: str) -> None:
    piece = Piece.unit(opened, 0, 1)
    claims = claims_of(client, lease=0.01, deliveries=2)
    for _ in range(2):
        claimed(claims, piece)
        time.sleep(0.03)
    assert refused(claims, piece).why is Refusal.POISON


def test_two_results_of_one_unit_are_recorded_once(client: fakeredis.FakeRedis, ledger: Ledger, opened: str) -> None:
    piece = Piece.unit(opened, 0, 1)
    first = claimed(claims_of(client, lease=0.01), piece)
    time.sleep(0.03)
    second = claimed(claims_of(client, Owner("a-third", 1, 1)), piece)

    assert claims_of(client).record(first, {"n": "first"}).first
    assert not claims_of(client).record(second, {"n": "second"}).first
    record = ledger.record(opened)
    assert (record.units_done, record.bytes_done) == (1, 10)


def test_last_result_completes_the_stage(client: fakeredis.FakeRedis, ledger: Ledger, opened: str) -> None:
    claims = claims_of(client)
    complete = [claims.record(claimed(claims, Piece.unit(opened, 0, n)), {"n": n}).complete for n in (2, 0, 1)]
    assert complete == [False, False, True]
    assert ledger.results(opened, 3) == [{"n": 0}, {"n": 1}, {"n": 2}]
    again = refused(claims, Piece.unit(opened, 0, 1))
    assert (again.why, again.due) == (Refusal.DONE, True)


def test_bytes_of_an_attempt_that_died_are_taken_back(client: fakeredis.FakeRedis, ledger: Ledger, opened: str) -> None:
    piece = Piece.unit(opened, 0, 1)
    first = claims_of(client, lease=0.05)
    first.beat(claimed(first, piece), 7)
    assert ledger.record(opened).bytes_done == 7
    time.sleep(0.1)
    second = claims_of(client)
    claim = claimed(second, piece)
    assert ledger.record(opened).bytes_done == 0
    second.beat(claim, 4)
    second.record(claim, {})
    assert ledger.record(opened).bytes_done == 10


def test_unit_of_another_stage_is_stale(client: fakeredis.FakeRedis, opened: str) -> None:
    assert refused(claims_of(client), Piece.unit(opened, 1, 0)).why is Refusal.STALE


@pytest.mark.parametrize("stage", [-1, 0, 1])
def test_advance_without_a_purpose_is_stale(client: fakeredis.FakeRedis, opened: str, stage: int) -> None:
    assert refused(claims_of(client), Piece.advance(opened, stage)).why is Refusal.STALE


def test_advance_whose_units_were_never_sent_may_be_claimed_again(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    ledger.submit("job", "toy", "{}", 2)
    first = claimed(claims_of(client, lease=0.05), Piece.advance("job", -1))
    assert ledger.open_stage(first, 0, "first", Numbers(), [Unit(params={})])
    time.sleep(0.1)
    claimed(claims_of(client), Piece.advance("job", -1))
    assert ledger.pending("job") == (0, [0])


def test_stage_is_opened_by_the_newest_claim_only(client: fakeredis.FakeRedis, ledger: Ledger) -> None:
    ledger.submit("job", "toy", "{}", 2)
    old = claimed(claims_of(client, lease=0.01), Piece.advance("job", -1))
    time.sleep(0.03)
    new = claimed(claims_of(client), Piece.advance("job", -1))
    assert not ledger.open_stage(old, 0, "first", Numbers(total=1), [Unit(params={})])
    assert ledger.open_stage(new, 0, "first", Numbers(total=2), [Unit(params={})])
    assert ledger.position("job").state == '{"total":2}'


def test_cancel_refuses_new_units_and_tells_running_ones(
    client: fakeredis.FakeRedis, ledger: Ledger, opened: str
) -> None:
    claims = claims_of(client)
    claim = claimed(claims, Piece.unit(opened, 0, 0))
    ended = ledger.end(opened, JobState.CANCELLED)
    assert (ended.accepted, ended.due) == (True, False)
    assert claims.beat(claim, 0) is Pulse.ENDING
    over = refused(claims, Piece.unit(opened, 0, 1))
    assert (over.why, over.due) == (Refusal.OVER, False)
    assert claims.release(claim)
    assert refused(claims, Piece.unit(opened, 0, 1)).due
    assert ledger.record(opened).state is JobState.RUNNING

    ledger.closed(opened, claimed(claims, Piece.close(opened)))
    assert ledger.record(opened).state is JobState.CANCELLED


def test_job_whose_end_is_not_decided_cannot_be_closed(client: fakeredis.FakeRedis, opened: str) -> None:
    assert refused(claims_of(client), Piece.close(opened)).why is Refusal.STALE


def test_first_ending_counts(client: fakeredis.FakeRedis, ledger: Ledger, opened: str) -> None:
    error = JobError(type="RequestError", message="why")
    assert ledger.end(opened, JobState.FAILED, error=error).accepted
    assert not ledger.end(opened, JobState.CANCELLED).accepted
    assert not ledger.end(opened, JobState.SUCCEEDED, result="{}").accepted
    ledger.closed(opened, claimed(claims_of(client), Piece.close(opened)))
    record = ledger.record(opened)
    assert (record.state, record.error, record.result) == (JobState.FAILED, error, None)
    assert record.ended is not None


def test_result_that_comes_after_the_end_is_not_recorded(
    client: fakeredis.FakeRedis, ledger: Ledger, opened: str
) -> None:
    claims = claims_of(client)
    claim = claimed(claims, Piece.unit(opened, 0, 0))
    ledger.end(opened, JobState.CANCELLED)
    recorded = claims.record(claim, {})
    assert (recorded.first, recorded.complete, recorded.due) == (False, False, True)


def test_job_that_is_forgotten_is_gone_for_everyone(client: fakeredis.FakeRedis, ledger: Ledger, opened: str) -> None:
    claims = claims_of(client)
    claim = claimed(claims, Piece.unit(opened, 0, 0))
    ledger.forget(opened)
    assert refused(claims, Piece.unit(opened, 0, 1)).why is Refusal.GONE
    assert claims.beat(claim, 3) is Pulse.GONE
    assert claims.record(claim, {}) == (False, False, False)
    with pytest.raises(JobNotFound):
        ledger.end(opened, JobState.CANCELLED)
    # Nothing that came too late has made the job's keys again.
    assert client.keys("layerfarm:job:*") == []


def test_observer_learns_of_the_cancel_from_the_heart(client: fakeredis.FakeRedis, ledger: Ledger, opened: str) -> None:
    claims = claims_of(client)
    heart = Heart(claims, interval=0.02)
    claim = claimed(claims, Piece.unit(opened, 0, 0))
    with heart.watching(claim) as observer:
        observer.advanced(4)
        _until(lambda: ledger.record(opened).bytes_done == 4)
        ledger.end(opened, JobState.CANCELLED)
        with pytest.raises(JobCancelled):
            _until(lambda: observer.advanced(0))


def test_heart_watches_one_piece_after_the_other(client: fakeredis.FakeRedis, ledger: Ledger, opened: str) -> None:
    claims = claims_of(client)
    heart = Heart(claims, interval=0.02)
    for index in range(3):
        claim = claimed(claims, Piece.unit(opened, 0, index))
        with heart.watching(claim) as observer:
            observer.advanced(2)
            _until(lambda done=2 * index + 2: ledger.record(opened).bytes_done == done)  # type: ignore[misc]
        time.sleep(0.05)


def test_heart_survives_an_outage_of_redis(
    server: fakeredis.FakeServer, client: fakeredis.FakeRedis, ledger: Ledger, opened: str
) -> None:
    claims = claims_of(client)
    claim = claimed(claims, Piece.unit(opened, 0, 0))
    with Heart(claims, interval=0.02).watching(claim) as observer:
        server.connected = False
        observer.advanced(6)
        time.sleep(0.1)
        server.connected = True
        _until(lambda: ledger.record(opened).bytes_done == 6)


def test_bytes_are_told_once(client: fakeredis.FakeRedis, ledger: Ledger, opened: str) -> None:
    claims = claims_of(client)
    watched = Watched(claimed(claims, Piece.unit(opened, 0, 0)))
    watched.advanced(3)
    watched.tell(claims)
    watched.tell(claims)
    assert ledger.record(opened).bytes_done == 3


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _started(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[19])


def test_this_process_is_told_from_its_parent() -> None:
    assert this_process().pid == os.getpid()
    assert not this_process()._replace(pid=os.getppid(), started=_started(os.getppid())).is_known_dead
