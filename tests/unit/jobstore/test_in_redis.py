"""Job store in Redis only: events, the listing, expiry, and edited records."""

from __future__ import annotations

import fakeredis
import pytest

from layerfarm.jobs.errors import JobNotFound, RecordDamaged
from layerfarm.worker.jobstore.in_redis import RedisJobStore
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.model import JobError, JobState
from layerfarm.worker.settings import Settings
from tests.unit.jobstore.stores import CLOSE, OTHER, Bench, Clock, redis_store, unit

FARM = Keys()
KEYS = FARM.job("job")
ERROR = JobError(type="RecordDamaged", message="is corrupt")


@pytest.fixture
def store(client: fakeredis.FakeRedis) -> RedisJobStore:
    return redis_store(client)


@pytest.fixture
def bench(store: RedisJobStore, clock: Clock) -> Bench:
    return Bench(store, clock)


def test_events_tell_each_change_once(store: RedisJobStore, bench: Bench) -> None:
    bench.opened(2)
    after, _ = store.progress("job")
    claim = bench.claimed(unit(0))
    for nbytes in (0, 3, 3):
        store.beat(claim, nbytes)
    store.record_result(claim, {})
    events = [progress for _, progress in store.events("job", after, 0.01)]
    assert [(each.units_done, each.bytes_done) for each in events] == [(0, 3), (1, 10)]
    assert {(e.state, e.stage, e.stage_number, e.stages, e.units_total, e.bytes_total) for e in events} == {
        (JobState.RUNNING, "a stage", 1, 2, 2, 20)
    }
    newest, progress = store.progress("job")
    assert progress == events[-1]
    assert store.events("job", newest, 0.01) == []


def test_end_of_a_job_is_one_event(store: RedisJobStore, bench: Bench) -> None:
    bench.opened()
    after, _ = store.progress("job")
    store.end("job", JobState.FAILED)
    store.closed(bench.claimed(CLOSE))
    assert [progress.state for _, progress in store.events("job", after, 0.01)] == [JobState.FAILED]


@pytest.mark.large
def test_events_are_capped(client: fakeredis.FakeRedis, store: RedisJobStore, bench: Bench) -> None:
    bench.opened(1)
    claim = bench.claimed(unit(0))
    for nbytes in range(1500):
        store.beat(claim, nbytes)
    assert client.xlen(KEYS.events) < 1500


def test_everything_of_a_job_expires(client: fakeredis.FakeRedis, store: RedisJobStore, bench: Bench) -> None:
    bench.opened()
    assert {0 < client.ttl(key) <= 100_000 for key in (KEYS.job, KEYS.events, KEYS.units)} == {True}
    store.end("job", JobState.CANCELLED)
    store.closed(bench.claimed(CLOSE))
    assert {0 < client.ttl(key) <= 10_000 for key in (KEYS.job, KEYS.events)} == {True}
    assert client.exists(KEYS.units, KEYS.claims) == 0


def test_listing_is_newest_first_without_expired_jobs(
    client: fakeredis.FakeRedis, store: RedisJobStore, bench: Bench
) -> None:
    for name in ("a", "b", "c", "d"):
        bench.submit(name)
        bench.clock.goes_on(1)
    client.delete(FARM.job("b").job)
    client.zadd("layerfarm:jobs", {"not/an id": 1})
    assert [record.id for record in store.jobs(10)] == ["d", "c", "a"]
    assert [record.id for record in store.jobs(2)] == ["d", "c"]


def test_member_that_is_no_job_harms_no_other(client: fakeredis.FakeRedis, store: RedisJobStore, bench: Bench) -> None:
    bench.submit()
    client.sadd(FARM.active, "not/an id")
    assert store.active() == ["job"]
    assert client.smembers(FARM.active) == {"job"}


@pytest.mark.parametrize("kind", ["string", "hash"])
def test_times_of_searches_that_no_script_wrote_are_replaced(
    client: fakeredis.FakeRedis, bench: Bench, kind: str
) -> None:
    bench.opened()
    client.delete(FARM.seen)
    client.set(FARM.seen, "x") if kind == "string" else client.hset(FARM.seen, mapping={"at": "x", "back": "y"})
    bench.claimed(unit(0))
    bench.lease_ends()
    assert bench.claimed(unit(0), OTHER)
    assert 0 < client.ttl(FARM.seen) <= 24 * 3600


@pytest.mark.parametrize("job_id", ["", "../x", "A", "a" * 64, "a:b", "a b", "a\n"])
def test_text_that_is_no_job_id_names_no_key(store: RedisJobStore, job_id: str) -> None:
    with pytest.raises(JobNotFound):
        store.job(job_id)


def test_request_that_is_not_json_does_not_hide_the_record(store: RedisJobStore) -> None:
    store.submit("job", "toy", "not json", 1)
    assert store.job("job").request == {}


# --- edited records -------------------------------------------------------------------------------


def test_sound_record_is_never_condemned(store: RedisJobStore, bench: Bench) -> None:
    bench.opened()
    bench.claimed(unit(0))
    bench.done(unit(1))
    assert store.condemn("job", ERROR) == 0
    store.end("job", JobState.CANCELLED)
    assert store.condemn("job", ERROR) == 0


@pytest.mark.parametrize(
    "edit",
    [
        ("HSET", KEYS.job, "position", "x"),
        ("HSET", KEYS.job, "ending", "perhaps"),
        ("HSET", KEYS.job, "flow_state", "{"),
        ("HDEL", KEYS.job, "kind"),
        ("HSET", KEYS.claims, "unit:0:0", "garbage"),
        ("HSET", KEYS.units, "unit:1", "{"),
        ("HSET", KEYS.units, "deliveries:unit:0:1", "x"),
        ("DEL", KEYS.units),
        ("SET", KEYS.claims, "x"),
        ("SET", KEYS.job, "x"),
    ],
)
def test_unsound_record_is_that_of_a_job_that_failed(
    client: fakeredis.FakeRedis, store: RedisJobStore, bench: Bench, edit: tuple[str, ...]
) -> None:
    bench.opened()
    client.execute_command(*edit)
    assert store.condemn("job", ERROR) == 1
    assert store.job("job").ending is JobState.FAILED
    store.closed(bench.claimed(CLOSE))
    assert (store.job("job").state, store.job("job").error) == (JobState.FAILED, ERROR)


def test_record_without_a_kind_cannot_be_worked_on(
    client: fakeredis.FakeRedis, store: RedisJobStore, bench: Bench
) -> None:
    bench.opened()
    client.hdel(KEYS.job, "kind")
    with pytest.raises(RecordDamaged):
        bench.claimed(unit(0))


def test_two_farms_in_one_redis_share_nothing(client: fakeredis.FakeRedis, store: RedisJobStore, bench: Bench) -> None:
    other = RedisJobStore(client, Settings(queue="other"))
    bench.submit()
    assert other.active() == []
    assert other.submit("job", "toy", "{}", 1, most_queued=1)
    assert other.end("job", JobState.CANCELLED).status == "ended"
    assert store.job("job").state is JobState.QUEUED
    assert {key.partition(":")[0] for key in client.keys("*")} == {"layerfarm", "other"}
