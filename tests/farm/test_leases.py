"""Jobs of a farm and garbage collections: what a job needs is held from when it is queued until it ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ground import Ground

from layerfarm.jobs.errors import JobFailed
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, RepackRequest, UnpackRequest
from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.gc import collect
from layerfarm.jobs.store.leases import Leases
from layerfarm.worker.client import Farm, Job
from layerfarm.worker.engine import local


@pytest.fixture
def bundle(ground: Ground) -> Path:
    """A changed bundle of an image whose tag is gone: nothing but the bundle knows of its base."""
    tree = ground.allowed / "tree"
    tree.mkdir()
    (tree / "old").write_bytes(b"old" * 1000)
    layout = Layout.create(ground.allowed / "store")
    image = ImageRef(store=layout.path, tag="base")
    local.run(BuildRequest(rootfs=tree, image=image))
    made = ground.allowed / "bundle"
    local.run(UnpackRequest(image=image, bundle=made, rootless=os.geteuid() != 0))
    (made / "rootfs" / "new").write_bytes(b"new")
    layout.untag("base")
    for path in layout.path.glob("blobs/*/*"):
        os.utime(path, (1, 1))
    return made


def queued(farm: Farm, bundle: Path) -> tuple[Layout, Job]:
    store = bundle.parent / "store"
    return Layout(store), farm.submit(RepackRequest(bundle=bundle, image=ImageRef(store=store, tag="again")))


def holders(layout: Layout) -> set[str]:
    return {lease.holder for lease in Leases(layout.path).live(layout.now())}


def test_blobs_that_a_queued_job_reads_outlive_a_collection_without_grace(ground: Ground, bundle: Path) -> None:
    layout, job = queued(ground.farm(), bundle)
    assert holders(layout) == {job.id}
    before = {path.name for path in layout.path.glob("blobs/*/*")}
    done = collect(layout, 0)
    assert (done.blobs, done.leased) == ([], len(before))
    ground.start_worker()
    job.result(60)
    assert layout.tags() == ["again"]
    assert holders(layout) == set()
    collect(layout, 0)
    image = resolve(layout, "again")
    assert len(image.manifest.layers) == 2
    assert {f"{path.parent.name}:{path.name}" for path in layout.path.glob("blobs/*/*")} == {
        blob.digest for blob in image.blobs
    }


def test_without_its_lease_it_would_not(ground: Ground, bundle: Path) -> None:
    layout, job = queued(ground.farm(), bundle)
    Leases(layout.path).release(job.id)
    collect(layout, 0)
    ground.start_worker()
    with pytest.raises(JobFailed, match="does not hold the blob"):
        job.result(60)


def test_a_job_that_is_cancelled_before_it_began_holds_nothing(ground: Ground, bundle: Path) -> None:
    layout, job = queued(ground.farm(), bundle)
    assert job.cancel()
    assert holders(layout) == set()
    assert len(collect(layout, 0).blobs) == 3


def test_a_job_that_failed_holds_nothing(ground: Ground, bundle: Path) -> None:
    (bundle / "umoci.json").write_text("{}")
    layout, job = queued(ground.farm(), bundle)
    ground.start_worker()
    with pytest.raises(JobFailed):
        job.result(60)
    assert holders(layout) == set()
