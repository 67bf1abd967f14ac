"""``layerfarm doctor``: problems of a farm, and how to fix them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from layerfarm.worker.broker.connection import reaching
from layerfarm.worker.client import Farm
from layerfarm.worker.doctor.finding import Finding, Level, worst
from layerfarm.worker.doctor.redis_checks import examine_redis
from layerfarm.worker.doctor.store_checks import examine_store
from layerfarm.worker.doctor.views import examine_views
from layerfarm.worker.doctor.worker_checks import examine_workers

__all__ = ["Finding", "Level", "examine", "worst"]


def examine(farm: Farm | None, stores: Sequence[Path]) -> Iterator[Finding]:
    """Check a farm, and stores from this machine.

    Without ``stores``, those of the workers that exist on this machine are checked. The only writes are a file of a few
    bytes below ``<store>/.layerfarm/doctor``, which is removed, and keys in Redis that expire.

    Raises:
        FarmUnreachable: Redis went away meanwhile.
    """
    workers = []
    if farm is not None:
        with reaching(farm.address):
            yield from examine_redis(farm.client, farm.keys, farm.address)
            workers = farm.workers()
            yield from examine_workers(workers)
        stores = stores or sorted({store for worker in workers for store in worker.stores if store.is_dir()})
    for store in stores:
        yield from examine_store(store)
        if farm is not None and workers:
            with reaching(farm.address):
                yield from examine_views(farm.client, farm.keys, store, workers)
