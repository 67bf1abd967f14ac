"""One bad record does no harm to others."""

from __future__ import annotations

import fakeredis
import pytest

from layerfarm.jobs.errors import RecordDamaged
from layerfarm.jobs.flows.base import Policy
from layerfarm.worker.background.registry import WorkerInfo, workers
from layerfarm.worker.doctor.views import Views
from layerfarm.worker.engine.recovery import Backlog
from layerfarm.worker.jobstore.in_redis import RedisJobStore
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.jobstore.model import Item
from layerfarm.worker.monitoring.census import census
from layerfarm.worker.settings import Settings

KEYS = Keys()
QUEUES = Settings().queues
NOT_A_JOB = ("", "*", "a\nb", "x" * 300, "../..", "layerfarm:jobs")


@pytest.fixture
def store(client: fakeredis.FakeRedis) -> RedisJobStore:
    store = RedisJobStore(client, Settings())
    store.submit("job", "toy", "{}", 1)
    return store


def test_of_the_jobs(client: fakeredis.FakeRedis, store: RedisJobStore) -> None:
    for key in (KEYS.jobs, KEYS.kept):
        client.zadd(key, dict.fromkeys(NOT_A_JOB, 1.0))
    client.sadd(KEYS.active, *NOT_A_JOB)
    client.hset(KEYS.job("unsound").job, mapping={"kind": "toy", "submitted": "yesterday"})
    client.set(KEYS.job("a-text").job, "no hash at all")
    client.sadd(KEYS.active, "unsound", "a-text")
    client.zadd(KEYS.jobs, {"unsound": 3e12, "a-text": 3e12})
    assert sum(census(client, KEYS, QUEUES).jobs.values()) == 1
    assert "job" in [record.id for record in store.jobs(100)]
    assert "job" in list(store.active())
    assert store.overdue() == []
    store.prune()
    assert set(client.zrange(KEYS.jobs, 0, -1)) == {"job", "unsound", "a-text"}


def test_of_the_kept_jobs(client: fakeredis.FakeRedis, store: RedisJobStore) -> None:
    client.set(KEYS.job("a-text").job, "no hash at all")
    client.hset(KEYS.job("no-number").job, "attempt", "first")
    client.hset(KEYS.job("kept").job, "attempt", "2")
    client.zadd(KEYS.kept, {"a-text": 1.0, "no-number": 1.0, "kept": 1.0})
    assert store.overdue() == [Item("kept", 2, "close")]
    assert client.zrange(KEYS.kept, 0, -1) == ["kept"]


@pytest.mark.parametrize("field", ["error", "result", "request"])
def test_of_nested_json(client: fakeredis.FakeRedis, store: RedisJobStore, field: str) -> None:
    store.submit("nested", "toy", "{}", 1)
    client.hset(KEYS.job("nested").job, field, "[" * 100_000)
    assert [record.id for record in store.jobs(100)] == ["job"]
    with pytest.raises(RecordDamaged):
        store.job("nested")


def test_of_the_workers(client: fakeredis.FakeRedis) -> None:
    here = WorkerInfo.of_this_process(concurrency=1, roots=(), stores=(), kinds=())
    client.zadd(KEYS.workers, {here.name: 0, "expired": 0, "not json": 0, "another shape": 0})
    client.set(KEYS.worker(here.name), here.model_dump_json())
    client.set(KEYS.worker("not json"), "\x1b[2J")
    client.set(KEYS.worker("another shape"), '{"name": []}')
    assert workers(client, KEYS) == [here]
    assert client.zrange(KEYS.workers, 0, -1) == [here.name]


@pytest.mark.parametrize("question", ["", "{", "[]", '{"name": "../../x", "store": "/", "sha256": ""}', "x" * 10_000])
def test_of_the_doctors_questions(client: fakeredis.FakeRedis, question: str) -> None:
    client.set(KEYS.probe, question)
    Views(client, KEYS, "worker", Policy(roots=(), stores=())).answer()
    assert client.keys(f"{KEYS.probe}:*") == []


def test_an_unreturned_turn_to_look_ends(client: fakeredis.FakeRedis) -> None:
    client.set(KEYS.looking, "for ever")
    backlog = Backlog(client, KEYS, QUEUES)
    assert [backlog.my_turn(1), backlog.my_turn(1), backlog.my_turn(1)] == [False, True, False]
