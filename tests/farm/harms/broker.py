"""Redis and what it holds: gone, late, full, forgetful, in the wrong hands."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import redis
from ground import until
from toy_flow import ToyRequest
from trial import Counts, Trial, client_settings, small_disk

from layerfarm.jobs.errors import FarmUnreachable, JobTimeout, LayerfarmError
from layerfarm.worker.broker.address import Address
from layerfarm.worker.broker.connection import client_of
from layerfarm.worker.jobstore.keys import JobKeys, Keys
from layerfarm.worker.jobstore.model import Item

from .fault import Function

KEYS = Keys()


def pause_redis(shortest: float, longest: float) -> Function:
    """Redis stops for a while without closing connections."""

    def fault(trial: Trial, counts: Counts) -> None:
        trial.start_worker()
        trial.submit()
        time.sleep(trial.rng.uniform(0, 1))
        os.kill(trial.ground.redis.pid, signal.SIGSTOP)
        time.sleep(trial.rng.uniform(shortest, longest))
        os.kill(trial.ground.redis.pid, signal.SIGCONT)
        trial.settle(counts)

    return fault


def restart_redis(trial: Trial, counts: Counts) -> None:
    """Redis is killed, and comes back with what its append-only file holds."""
    trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    trial.ground.redis.kill()
    trial.ground.redis.wait()
    trial.ground.redis = trial.ground.start_redis()
    trial.settle(counts)


def forget_redis(trial: Trial, counts: Counts) -> None:
    """Redis is killed, and returns without its data: the waiting client gets an error, and can submit again."""
    worker = trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    trial.ground.redis.kill()
    trial.ground.redis.wait()
    trial.ground.redis = trial.ground.start_redis()
    trial.wait(counts, may_fail="Redis was restarted without its data")
    trial.begin_anew(worker, counts)


def fill_redis(trial: Trial, counts: Counts) -> None:
    """Redis has no memory left for a while: it refuses what is new, and what is there goes on afterwards."""
    worker = trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    with client_of(Address(trial.ground.url)) as client:
        client.config_set("maxmemory", 1)
        must_refuse(trial, counts, "maxmemory")
        time.sleep(trial.rng.uniform(1, 4))
        client.config_set("maxmemory", 0)
    trial.settle(counts)
    trial.must_live(worker, counts)


def fill_redis_disk(trial: Trial, counts: Counts) -> None:
    """Redis cannot write its append-only file for a while, and refuses every change meanwhile."""
    ground = trial.ground
    ground.redis.kill()
    ground.redis.wait()
    shutil.rmtree(ground.directory / "redis")
    data = trial.stack.enter_context(small_disk(ground.directory / "redis"))
    ground.redis = ground.start_redis()
    worker = trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    ballast = trial.fill_disk(0, data)
    with client_of(Address(ground.url)) as client:
        until(lambda: refuses(client))
        must_refuse(trial, counts, "AOF")
        time.sleep(trial.rng.uniform(1, 4))
        ballast.unlink()
    trial.settle(counts)
    trial.must_live(worker, counts)


def must_refuse(trial: Trial, counts: Counts, cause: str) -> None:
    """Redis takes no job now, and the client says why."""
    try:
        trial.ground.farm(**client_settings()).submit(trial.requests[0])
        counts.notes.append(f"a Redis that refuses changes took a job: {cause}")
        counts.lost += 1
    except FarmUnreachable as error:
        if cause not in str(error):
            counts.notes.append(f"the cause is not named: {error}")
            counts.lost += 1


def refuses(client: redis.Redis) -> bool:
    """Return True if Redis refuses writes that would fill its file further."""
    try:
        client.set("layerfarm:filler", b"x" * 100_000, ex=60)
    except redis.ResponseError:
        return True
    return False


def refuse_connections(trial: Trial, counts: Counts) -> None:
    """Redis has as many connections as it takes, and none for those that it has just closed."""
    worker = trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    with client_of(Address(trial.ground.url)) as client:
        client.config_set("maxclients", 1)
        client.client_kill_filter(_type="normal", skipme=True)
        time.sleep(trial.rng.uniform(1, 4))
        client.config_set("maxclients", 1000)
    trial.settle(counts)
    trial.must_live(worker, counts)


def fail_over(trial: Trial, counts: Counts) -> None:
    """Its replica is promoted, and the address leads there; the old one is dead, or still there and read-only."""
    worker = trial.start_worker()
    second = trial.ground.start_redis("second", port=6380)
    with client_of(Address(f"unix://{trial.ground.directory}/second.sock")) as replica:
        replica.replicaof("127.0.0.1", 6379)
        until(lambda: replica.info("replication").get("master_link_status") == "up")
        trial.submit()
        time.sleep(trial.rng.uniform(0, 1))
        first, dies = trial.ground.redis, trial.rng.random() < 0.5
        address = trial.ground.directory / "redis.sock"
        old = client_of(Address(trial.ground.url))
        old.ping()
        at_once = trial.rng.random() < 0.5
        if not at_once:
            address.unlink()
        replica.replicaof("NO", "ONE")
        if at_once:
            lead(address, "second.sock")
        if dies:
            first.kill()
            first.wait()
        else:
            old.replicaof("127.0.0.1", 6380)
        lead(address, "second.sock")
    trial.ground.redis = second
    trial.settle(counts)
    trial.must_live(worker, counts)


def lead(address: Path, to: str) -> None:
    """Let the address lead there, from one moment to the next."""
    new = address.with_name("new-address")
    new.symlink_to(to)
    new.rename(address)


def deliver_twice(trial: Trial, counts: Counts) -> None:
    """Every message is doubled, before two workers take them."""
    trial.start_worker()
    trial.start_worker()
    trial.submit()
    farm = trial.ground.farm(**client_settings())
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and farm.store.active():
        for job_id in farm.store.active():
            record = farm.job(job_id).record()
            stage = record.stage_number - 1
            units = [Item(job_id, record.attempt, "unit", stage, index) for index in range(record.units_total)]
            farm.sender.send([Item(job_id, record.attempt, "advance", stage), *units])
        time.sleep(0.1)
    trial.settle(counts)


def short_visibility(trial: Trial, counts: Counts) -> None:
    """Redis hands messages out again while they are being worked on."""
    trial.start_worker(visibility_timeout=1)
    trial.start_worker(visibility_timeout=1)
    trial.submit()
    trial.settle(counts)


def lose_a_second(trial: Trial, counts: Counts) -> None:
    """The power fails: Redis comes back with what its file held up to a second before."""
    trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1.2))
    data, kept = trial.ground.directory / "redis", trial.ground.directory / "kept"
    shutil.copytree(data, kept)
    time.sleep(trial.rng.uniform(0, 1))
    trial.ground.redis.kill()
    trial.ground.redis.wait()
    shutil.rmtree(data)
    kept.rename(data)
    trial.ground.redis = trial.ground.start_redis()
    trial.settle(counts)


def drop_connections(trial: Trial, counts: Counts) -> None:
    """All connections to Redis are closed again and again, whatever is under way; answers get lost."""
    worker = trial.start_worker()
    trial.submit()
    deadline = time.monotonic() + 3
    with client_of(Address(trial.ground.url)) as client:
        while time.monotonic() < deadline:
            client.client_kill_filter(_type="normal", skipme=True)
            time.sleep(trial.rng.uniform(0.01, 0.3))
    trial.settle(counts)
    trial.must_live(worker, counts)


def lose_messages(trial: Trial, counts: Counts) -> None:
    """The messages in the queues are lost, again and again."""
    trial.start_worker()
    trial.submit()
    deadline = time.monotonic() + 2
    with client_of(Address(trial.ground.url)) as client:
        while time.monotonic() < deadline:
            client.delete(*(KEYS.broker + name for name in trial.ground.settings().queues))
            client.delete(KEYS.broker + "unacked", KEYS.broker + "unacked_index")
            time.sleep(trial.rng.uniform(0.02, 0.2))
    trial.settle(counts)


def edit_record(trial: Trial, counts: Counts) -> None:
    """Somebody edits what Redis holds of a job. That one may end as it likes, but it ends; the others do not notice."""
    worker = trial.start_worker()
    place = trial.ground.allowed / "toy"
    place.mkdir()
    edited = trial.ground.farm(**client_settings()).submit(ToyRequest(directory=place, numbers=8, sleep=0.3))
    trial.submit()
    time.sleep(trial.rng.uniform(0, 2))
    with client_of(Address(trial.ground.url)) as client:
        for _ in range(trial.rng.randint(1, 4)):
            _edit(trial, client, KEYS.job(edited.id))
    try:
        edited.result(60)
    except JobTimeout:
        counts.lost += 1
        counts.notes.append(f"the edited job does not end: {client.hgetall(KEYS.job(edited.id).job)}")
    except LayerfarmError:
        pass
    with client_of(Address(trial.ground.url)) as client:
        trial.known.add(edited.id)
    trial.settle(counts)
    trial.must_live(worker, counts)
    shutil.rmtree(place)


GARBAGE = ("", "x", "-1", "999999", "1e99", "{", "null", "[]", "\0", "succeeded", "é" * 100)


def _edit(trial: Trial, client: redis.Redis, keys: JobKeys) -> None:
    rng = trial.rng
    key = rng.choice(keys[:4])
    match rng.randrange(6):
        case 0:
            client.delete(key)
        case 1:
            client.delete(key)
            client.rpush(key, "x")
        case _ if client.type(key) == "hash" and (fields := sorted(client.hkeys(key))):
            for field in rng.sample(fields, min(len(fields), rng.randint(1, 3))):
                if rng.random() < 0.3:
                    client.hdel(key, field)
                else:
                    client.hset(key, field, rng.choice(GARBAGE))
