"""Records in Redis are edited, or older than the job's work: the job ends, and others are not affected."""

from __future__ import annotations

import os

import pytest
from ground import Ground, running, until
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import JobFailed, LayerfarmError, RecordDamaged
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, UnpackRequest
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.model import JobError

KEYS = Keys()

EDITS = (
    ("HSET", "job", "position", "x"),
    ("HSET", "job", "units_total", "many"),
    ("HSET", "job", "traffic", "x", "flow_state", "{", "touched", "1"),
    ("HSET", "job", "fence", "x"),
    ("HSET", "job", "ending", "perhaps"),
    ("HSET", "claims", "unit:0:0", "garbage"),
    ("HSET", "units", "deliveries:unit:0:3", "x"),
    ("HSET", "units", "unit:3", "{"),
    ("HDEL", "job", "kind", "id"),
    ("DEL", "units"),
    ("DEL", "job"),
    ("list", "job"),
    ("list", "claims"),
    ("list", "units"),
)


WITHOUT_KIND = (("list", "job"), ("HDEL", "job", "kind", "id"))
"""Nobody knows what such a job may have staged."""


def test_jobs_whose_records_are_edited_end_and_no_other_one_notices(ground: Ground) -> None:
    worker = ground.start_worker(concurrency=4, lease=2, look_every=0.5)
    farm = ground.farm(look_every=0.5)
    client = farm.client
    edited = []
    for edit in EDITS:
        place = ground.allowed / os.urandom(4).hex()
        place.mkdir()
        job = farm.submit(ToyRequest(directory=place, numbers=4, rounds=2, sleep=0.1))
        running(job)
        keys = KEYS.job(job.id)._asdict()
        if edit[0] == "list":
            # At once: between the two a worker may write the key again.
            client.pipeline().delete(keys[edit[1]]).rpush(keys[edit[1]], "x").execute()
        else:
            client.execute_command(edit[0], keys[edit[1]], *edit[2:])
        edited.append((edit, job, place))
    assert farm.submit(ToyRequest(directory=ground.allowed)).result(60) == ToyResult(total=18)
    until(lambda: not client.exists(KEYS.active), timeout=60)
    for edit, job, place in edited:
        if edit == ("DEL", "job"):
            continue
        assert job.record().state.final, edit
        # Whatever came of it, what it staged is gone, if the record still said where.
        assert not (place / "staged").exists() or edit in WITHOUT_KIND, edit
        if edit == ("list", "job"):
            assert (job.record().error or JobError(type="", message="")).type == RecordDamaged.__name__
    assert len(farm.jobs()) == len(EDITS)
    # The keys expire one day.
    assert [key for key in client.scan_iter(KEYS.prefix + "job:*") if client.ttl(key) == -1] == []
    assert worker.poll() is None


def test_record_edited_after_the_end_of_its_job_is_reported_as_corrupt(ground: Ground) -> None:
    ground.start_worker()
    farm = ground.farm()
    job, other = (farm.submit(ToyRequest(directory=ground.allowed)) for _ in range(2))
    for each in (job, other):
        each.result(90)
    farm.client.hset(KEYS.job(job.id).job, "state", "over")
    for look in (job.record, job.result):
        with pytest.raises(LayerfarmError, match="is corrupt"):
            look()
    assert [record.id for record in farm.jobs()] == [other.id]
    assert farm.census().jobs == {}


def test_job_whose_end_redis_has_forgotten_ends_as_it_did(ground: Ground) -> None:
    """Its bundle is in place, what it staged is gone: done once more it would find that in its way."""
    tree = ground.allowed / "tree"
    tree.mkdir()
    (tree / "file").write_text("content")
    image = ImageRef(store=Layout.create(ground.allowed / "store").path, tag="v1")
    local.run(BuildRequest(rootfs=tree, image=image))
    ground.start_worker(look_every=0.5)
    farm = ground.farm(look_every=0.5)
    bundle = ground.allowed / "bundle"
    request = UnpackRequest(image=image, bundle=bundle, rootless=os.geteuid() != 0)
    job = farm.submit(request)
    before = job.result(60)
    inode = (bundle / "rootfs").stat().st_ino
    forget_the_end(ground, job.id)
    assert job.result(60) == before
    assert (bundle / "rootfs").stat().st_ino == inode
    assert "Redis lost its outcome" in ground.log()
    # It is the job's own end, not its name's: another one finds the bundle in its way, as does this one again.
    with pytest.raises(JobFailed, match="already holds a"):
        farm.submit(request).result(60)


def forget_the_end(ground: Ground, job_id: str) -> None:
    """As a Redis does that lost its newest writes: the job was just begun."""
    client = ground.farm().client
    keys = KEYS.job(job_id)
    client.hdel(keys.job, "result", "ended", "stage")
    client.hset(keys.job, mapping={"state": "running", "position": -1, "sent": -1, "touched": 1})
    client.sadd(KEYS.active, job_id)
