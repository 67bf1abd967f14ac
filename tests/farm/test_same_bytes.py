"""Law 1, docs/architecture.md: the same input gives the same bytes, for any process and any number of pieces."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from hashlib import sha256
from itertools import product
from pathlib import Path

import pytest

from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.requests import (
    BuildRequest,
    ImageRef,
    ImageResult,
    LayerOptions,
    RepackRequest,
    UnpackRequest,
)
from layerfarm.jobs.image.bundle import Bundle
from layerfarm.jobs.store import Layout
from layerfarm.worker.embedded import EmbeddedFarm
from layerfarm.worker.engine import local as runner_local
from tests.trees import Node, char, directory, fifo, file, hardlink, symlink, tree

SHARDS = (1, 2, 7)
COMPRESSIONS = ("gzip", "estargz", "zstd", "zstd:chunked", "none")


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some thousand entries of every kind, with content that spans several compression blocks."""
    rng = random.Random(11)
    spec: dict[bytes, Node] = {b".": directory()}
    for number in range(60):
        spec[b"d%02d" % number] = directory(mode=0o755 - number % 8, uid=number)
        for other in range(30):
            content = rng.randbytes(rng.choice([0, 3, 700])) * rng.choice([1, 40])
            spec[b"d%02d/f%02d" % (number, other)] = file(content, mode=rng.choice([0o644, 0o4755, 0]), uid=other)
    spec[b"large"] = file(rng.randbytes(3_000_000) + bytes(2_500_000), xattrs={"user.a": b"1", "user.big": b"x" * 3000})
    spec[b"link"] = symlink(b"d00/f00")
    spec[b"hard"] = hardlink(b"d05/f05")
    spec[b"null"] = char(1, 3)
    spec[b"pipe"] = fifo()
    spec[b"odd \xff\nname"] = file(b"odd")
    return tree(tmp_path_factory.mktemp("same") / "rootfs", spec)


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_any_number_of_shards_threads_and_processes_gives_the_same_bytes(
    rootfs: Path, tmp_path: Path, compress: str
) -> None:
    seen = set()
    for shards, stat_cache in product(SHARDS, (True, False)):
        run = _local(Policy(shards=shards, threads=shards), shards)
        store = _fresh(tmp_path / f"store-{shards}-{stat_cache}")
        seen.add(_digests(run, store, rootfs, compress, stat_cache=stat_cache))
    again = Policy(shards=2, threads=2)
    seen.add(_digests(_local(again, 2), _fresh(tmp_path / "again"), rootfs, compress))
    assert len(seen) == 1


@pytest.mark.parametrize("shards", SHARDS)
def test_the_farm_gives_the_bytes_of_the_local_runner(rootfs: Path, tmp_path: Path, shards: int) -> None:
    local = _digests(_local(Policy(shards=2), 2), _fresh(tmp_path / "local"), rootfs, "gzip")
    environment = os.environ | {"LAYERFARM_SHARDS": str(shards), "TZ": "Pacific/Chatham", "LC_ALL": "C"}
    roots = (rootfs.parent, tmp_path)
    with EmbeddedFarm(roots=roots, stores=(tmp_path,), environment=environment) as embedded, embedded.farm() as farm:

        def on_farm(request: object) -> ImageResult:
            return farm.submit(request).result(120)  # type: ignore[arg-type,return-value]

        assert _digests(on_farm, _fresh(tmp_path / "farm"), rootfs, "gzip") == local


def _digests(
    run: Callable[..., ImageResult], store: Path, rootfs: Path, compress: str, *, stat_cache: bool = True
) -> tuple[str | None, ...]:
    """Results of a build, an unpack of it, and a repack on top, and the files that they leave beside the bundle."""
    layer = LayerOptions(compress=compress)  # type: ignore[arg-type]
    built = run(BuildRequest(rootfs=rootfs, image=ImageRef(store=store, tag="built"), layer=layer))
    bundle = store.parent / f"{store.name}-bundle"
    unpacked = run(UnpackRequest(image=ImageRef(store=store, tag="built"), bundle=bundle))
    for path in ("d01/f01", "large"):
        (bundle / "rootfs" / path).write_bytes(b"changed")
        os.utime(bundle / "rootfs" / path, ns=(0, 1_600_000_000 * 10**9))
    (bundle / "rootfs/d02/f02").unlink()
    os.utime(bundle / "rootfs/d02", ns=(0, 1_600_000_000 * 10**9))
    target = ImageRef(store=store, tag="next")
    repacked = run(RepackRequest(bundle=bundle, image=target, layer=layer, stat_cache=stat_cache, refresh_bundle=True))
    assert repacked.deltas == 4
    refreshed = sha256(Bundle.open(bundle).mtree.read_bytes()).hexdigest()
    return (
        unpacked.mtree,
        refreshed,
        *(value for r in (built, repacked) for value in (r.layer, r.diff_id, r.manifest, r.config, r.mtree)),
    )


def _local(policy: Policy, processes: int) -> Callable[..., ImageResult]:
    return lambda request: runner_local.run(request, policy, processes)  # type: ignore[return-value]


def _fresh(store: Path) -> Path:
    Layout.create(store)
    return store
