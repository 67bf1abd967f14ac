"""Transforms on a farm: what images share is done once, and the bytes are those of the local runner."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from ground import Ground

from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.transforms import RecompressRequest, SquashRequest, StripRequest, TransformResult
from layerfarm.jobs.image import resolve
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local as runner_local
from layerfarm.worker.jobstore.keys import Keys
from tests.unit.image.images import image, tar

KEYS = Keys()

IMAGES = 16
SHARED = 5


@pytest.fixture
def layout(ground: Ground) -> Layout:
    """Images that share their lowest layers, in sets that differ, and have a config of their own each."""
    layout = Layout.create(ground.allowed / "store")
    rng = random.Random(6)
    layers = [tar((f"layer-{number}", rng.randbytes(300_000)), ("a", b"%d" % number)) for number in range(SHARED)]
    for number in range(IMAGES):
        image(layout, layers[: 2 + number % (SHARED - 1)], config={"Env": [f"N={number}"]}, tag=f"v{number}")
    return layout


def ref(layout: Layout, tag: str) -> ImageRef:
    return ImageRef(store=layout.path, tag=tag)


def begun(ground: Ground) -> list[int]:
    """Number of times that each distinct piece of work was begun."""
    client = ground.farm().client
    return [int(client.hget(key, "executions") or 0) for key in client.scan_iter(KEYS.prefix + "work:*", _type="hash")]


def test_layers_that_images_share_are_recompressed_once(ground: Ground, layout: Layout) -> None:
    ground.start_worker()
    ground.start_worker()
    farm = ground.farm()
    jobs = [
        farm.submit(
            RecompressRequest(image=ref(layout, f"v{n}"), target=ref(layout, f"z{n}"), compress="zstd", level=12)
        )
        for n in range(IMAGES)
    ]
    results = [job.result(120) for job in jobs]
    assert begun(ground) == [1] * SHARED
    assert len({result.new for result in results}) == IMAGES  # type: ignore[attr-defined]
    distinct = {layer.digest for n in range(IMAGES) for layer in resolve(layout, f"z{n}").manifest.layers}
    assert len(distinct) == SHARED


def test_the_farm_gives_the_bytes_of_the_local_runner(ground: Ground, layout: Layout, tmp_path: Path) -> None:
    ground.start_worker()
    farm = ground.farm()
    other = Layout.create(tmp_path / "other")
    for make in (
        lambda target: SquashRequest(image=ref(layout, "v3"), target=target, keep=1),
        lambda target: StripRequest(image=ref(layout, "v3"), target=target, paths=["layer-1"]),
    ):
        done = farm.submit(make(ref(layout, "farm"))).result(60)
        local = _local(make(ref(other, "local")))
        assert (done.new, done.images) == (local.new, local.images)  # type: ignore[attr-defined]
        assert not done.unchanged  # type: ignore[attr-defined]
    assert not os.listdir(layout.path / ".layerfarm" / "work")


def _local(request: RecompressRequest | SquashRequest | StripRequest) -> TransformResult:
    return runner_local.run(request, Policy(shards=2, threads=2), 2)  # type: ignore[return-value]
