"""Write what the present version leaves in a store and in a queue, for later versions to read.

Run as root, once for each release (docs/releasing.md), and commit the new directory; never change those of older
releases::

    python -m tests.compatibility.write

``disk.tar.gz`` holds trees, a bundle, stores with the work of a failed job, a catalog and the user's cache;
``queue.json`` the keys of Redis with a waiting job of each kind, one that succeeded and the one that failed;
``expected.json`` what a reader must find.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack, chdir
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import redis

from layerfarm.jobs.errors import JobFailed
from layerfarm.jobs.flows import Flows
from layerfarm.jobs.flows.base import Request
from layerfarm.jobs.flows.manifest import ManifestRequest
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, RepackRequest, UnpackRequest
from layerfarm.jobs.flows.transforms import (
    AnalyzeRequest,
    FlattenRequest,
    RebaseCheckRequest,
    RebaseRequest,
    RechunkRequest,
    RecompressRequest,
    SquashRequest,
    StripRequest,
)
from layerfarm.jobs.flows.verify import VerifyRequest
from layerfarm.worker.broker.connection import client_of
from layerfarm.worker.jobstore.keys import Keys
from tests.farm.ground import Ground

HERE: Final = Path(__file__).parent
PLACE: Final = "/place-of-the-fixture"
"""Stands for the directory in which the jobs ran."""

_CATALOG: Final = """\
store: made
sources: [{layout: store}]
policies:
  - {match: "app", do: {transform: rechunk}}
  - {match: "*", do: {transform: keep}}
"""
_COMMANDS: Final = """
init --layout store
build --rootfs base --image store:base
build --rootfs app --base store:base --image store:app
recompress --image store:app --target store:zstd --compress zstd
recompress --image store:app --target store:chunked --compress zstd:chunked
squash --image store:app --target store:squashed
rechunk --image store:app --target store:rechunked
strip --image store:app --target store:stripped own
unpack --image store:app bundle
catalog run catalog.yaml
"""


def requests(allowed: Path) -> list[Request]:
    """A request of each kind, for the disk of the fixture."""

    def image(tag: str) -> ImageRef:
        return ImageRef(store=allowed / "store", tag=tag)

    app, base = image("app"), image("base")
    return [
        AnalyzeRequest(image=app),
        BuildRequest(rootfs=allowed / "app", image=image("new-build"), base=base, mask_paths=["/masked"]),
        FlattenRequest(image=app, output=allowed / "flat.tar", form="tar"),
        ManifestRequest(rootfs=allowed / "app", output=allowed / "app.mtree"),
        RebaseRequest(image=app, target=image("new-rebase"), old_base=base, new_base=base),
        RebaseCheckRequest(image=app, old_base=base, new_base=base),
        RechunkRequest(image=app, target=image("new-rechunk"), budget=5),
        RecompressRequest(image=app, target=image("new-recompress"), compress="zstd", level=3),
        RepackRequest(bundle=allowed / "bundle", image=image("new-repack")),
        SquashRequest(image=app, target=image("new-squash"), keep=1),
        StripRequest(image=app, target=image("new-strip"), paths=["own"]),
        UnpackRequest(image=app, bundle=allowed / "new-bundle"),
        VerifyRequest(image=image("squashed")),
    ]


def main() -> int:
    """Write the directory of this version."""
    target = HERE / version("layerfarm")
    target.mkdir(exist_ok=True)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="layerfarm-fixture-")))
        ground = Ground(directory, stack)
        write_disk(ground.allowed)
        expected = expectations(ground)
        keys = dump(client_of(ground.settings().address), Keys().prefix)
        for name, document in (("expected.json", expected), ("queue.json", keys)):
            text = json.dumps(document, indent=1, sort_keys=True).replace(str(ground.allowed), PLACE)
            (target / name).write_text(text + "\n")
        pack(ground.allowed, target / "disk.tar.gz")
    return 0


def write_disk(allowed: Path) -> None:
    """Trees, images, a bundle with a change, a catalog that was run, the user's cache."""
    for name, content in (
        ("base/etc/debian_version", "12.1\n"),
        ("app/etc/debian_version", "12.1\n"),
        ("app/own", "own"),
    ):
        (allowed / name).parent.mkdir(parents=True, exist_ok=True)
        (allowed / name).write_text(content)
        os.utime(allowed / name, (1_700_000_000, 1_700_000_000))
    for name in ("base/etc", "base", "app/etc", "app"):
        os.utime(allowed / name, (1_700_000_000, 1_700_000_000))
    (allowed / "catalog.yaml").write_text(_CATALOG)
    for line in _COMMANDS.strip().splitlines():
        layerfarm(allowed, *line.split())
    (allowed / "bundle/rootfs/new").write_text("new")
    os.utime(allowed / "bundle/rootfs/new", (1_700_000_000, 1_700_000_000))
    # diff keeps the trees of images in the user's cache.
    layerfarm(allowed, "diff", "store:app", "store:base", code=1)


def expectations(ground: Ground) -> dict[str, Any]:
    """Queue the jobs, let one succeed and one fail; return what a reader must find on disk and in the queue."""
    allowed = ground.allowed
    farm = ground.farm(retry_for=3600)
    worker = ground.start_worker(retry_for=3600, flows="")
    image = ImageRef(store=allowed / "store", tag="done")
    done = farm.submit(BuildRequest(rootfs=allowed / "app", image=image))
    built = done.result(60)
    failed = farm.submit(BuildRequest(rootfs=allowed / "app", image=image.model_copy(update={"tag": "failed"})))
    # A directory in place of the lock: the layer is made, and its tag cannot be set.
    lock = allowed / "store/.layerfarm/index.lock"
    lock.unlink()
    lock.mkdir()
    try:
        failed.result(60)
    except JobFailed as error:
        print(error)
    lock.rmdir()
    assert failed.record().kept
    worker.terminate()
    worker.wait()
    waiting = {request.kind: farm.submit(request).id for request in requests(allowed)}
    assert sorted(waiting) == sorted(Flows())
    tags = layerfarm(allowed, "ls", "--layout", "store").split()
    stats = {tag: json.loads(layerfarm(allowed, "stat", "--json", "--image", f"store:{tag}")) for tag in tags}
    return {
        "done": done.id,
        "result": json.loads(built.model_dump_json()),
        "failed": failed.id,
        "waiting": waiting,
        "manifests": {tag: stat["manifest"]["descriptor"]["digest"] for tag, stat in stats.items()},
        "diff_ids": {tag: stat["config"]["blob"]["rootfs"]["diff_ids"] for tag, stat in stats.items()},
    }


def layerfarm(directory: Path, *args: str, code: int = 0) -> str:
    """Run the command in ``directory``; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LAYERFARM_")}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "layerfarm.worker.cli", *args],
        cwd=directory,
        env=environment | {"XDG_CACHE_HOME": str(directory / "cache"), "SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, (args, done.stdout, done.stderr)
    return done.stdout


def dump(client: redis.Redis, prefix: str) -> list[dict[str, Any]]:
    """All keys of a farm, each with its type and value."""
    read = {
        "string": client.get,
        "hash": client.hgetall,
        "list": lambda key: client.lrange(key, 0, -1),
        "set": lambda key: sorted(client.smembers(key)),
        "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        "stream": client.xrange,
    }
    found = []
    for key in sorted(client.scan_iter(f"{prefix}*")):
        kind = str(client.type(key))
        found.append({"key": key, "type": kind, "value": read[kind](key)})
    return found


def restore(client: redis.Redis, keys: list[dict[str, Any]]) -> None:
    """The reverse of :func:`dump`."""
    write = {
        "string": lambda key, value: client.set(key, value),
        "hash": lambda key, value: client.hset(key, mapping=value),
        "list": lambda key, value: client.rpush(key, *value),
        "set": lambda key, value: client.sadd(key, *value),
        "zset": lambda key, value: client.zadd(key, dict(value)),
        "stream": lambda key, value: [client.xadd(key, fields, id=event) for event, fields in value],
    }
    for each in keys:
        write[each["type"]](each["key"], each["value"])


def pack(directory: Path, target: Path) -> None:
    """Write the content of ``directory``, times to the nanosecond."""
    with chdir(directory):
        subprocess.run(["tar", "--sort=name", "--format=posix", "--xattrs", "-czf", target.resolve(), "."], check=True)


if __name__ == "__main__":
    sys.exit(main())
