"""Images of a catalog rechunked at once by several workers: each layer is written once, and is that of one machine."""

from __future__ import annotations

from pathlib import Path

from ground import Ground, until

from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.requests import ImageRef
from layerfarm.jobs.flows.transforms import RechunkRequest
from layerfarm.jobs.image import resolve
from layerfarm.jobs.relayer.planner.plan import Group, Plan
from layerfarm.jobs.relayer.rechunk import put_plan
from layerfarm.jobs.store import Layout
from layerfarm.worker.engine import local as runner_local
from layerfarm.worker.jobstore.keys import Keys
from tests.unit.image.images import image, tar

KEYS = Keys()

TAGS = [f"v{number}" for number in range(5)]
PLAN = Plan(groups=tuple(Group(name=name, components=(f"tree:{name}",)) for name in ("etc", "srv", "opt")))


def store(path: Path) -> Layout:
    """Five images that share ``etc``, of which two share ``srv`` too; each has an ``opt`` of its own."""
    layout = Layout.create(path)
    for number, tag in enumerate(TAGS):
        files = [
            ("etc/f", b"shared" * 50_000),
            ("srv/f", b"%d" % min(number, 3) * 90_000),
            ("opt/f", tag.encode() * 9000),
        ]
        image(layout, [tar(*files)], tag=tag)
    return layout


def request(layout: Layout, tag: str) -> RechunkRequest:
    target = ImageRef(store=layout.path, tag=f"{tag}-re")
    return RechunkRequest(image=ImageRef(store=layout.path, tag=tag), target=target, plan=put_plan(layout, PLAN))


def manifests(layout: Layout) -> list[str]:
    return [resolve(layout, f"{tag}-re").descriptor.digest for tag in TAGS]


def test_each_layer_is_written_once_and_is_the_one_that_one_machine_writes(ground: Ground, tmp_path: Path) -> None:
    ground.start_worker()
    ground.start_worker()
    layout = store(ground.allowed / "store")
    farm = ground.farm()
    for job in [farm.submit(request(layout, tag)) for tag in TAGS]:
        job.result(60)
    layers = {layer.digest for tag in TAGS for layer in resolve(layout, f"{tag}-re").manifest.layers}
    assert len(layers) == 1 + 4 + 5 + 1  # etc, srv, opt, directories
    client = farm.client
    done = [int(client.hget(key, "executions") or 0) for key in client.scan_iter(KEYS.prefix + "work:*", _type="hash")]
    # Whoever comes after a layer was written does not even ask for it.
    assert set(done) == {1} and len(done) <= len(layers)
    local = store(tmp_path / "local")
    for tag in TAGS:
        runner_local.run(request(local, tag), Policy(shards=1, threads=1), 1)
    assert manifests(layout) == manifests(local)


def test_workers_killed_meanwhile_lose_nothing(ground: Ground, tmp_path: Path) -> None:
    victims = [ground.start_worker(concurrency=1, lease=2, look_every=0.5) for _ in range(2)]
    layout = store(ground.allowed / "store")
    jobs = [ground.farm().submit(request(layout, tag)) for tag in TAGS]
    until(lambda: list((layout.path / ".layerfarm" / "work").glob("*/spool-*")))
    for victim in victims:
        victim.kill()
    ground.start_worker(lease=2, look_every=0.5)
    for job in jobs:
        job.result(90)
    local = store(tmp_path / "local")
    for tag in TAGS:
        runner_local.run(request(local, tag), Policy(shards=1, threads=1), 1)
    assert manifests(layout) == manifests(local)
    assert not list((layout.path / ".layerfarm" / "work").glob("*"))
