"""The state of a farm at one moment: its queues, its workers, its jobs that have not ended."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import redis

from layerfarm.worker.background.registry import WorkerInfo, workers
from layerfarm.worker.broker.priorities import Queues
from layerfarm.worker.jobstore.keys import Keys, is_job_id
from layerfarm.worker.model import JobState

__all__ = ["Census"]

_FIELDS = ("kind", "state", "traffic", "submitted")


@dataclass(frozen=True)
class Census:
    """Counts at one moment."""

    jobs: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Jobs that have not ended, by kind, state and class."""
    queues: dict[str, int] = field(default_factory=dict)
    """Waiting messages, by the name of their queue; ``unacked``: those that a worker has."""
    oldest: dict[str, float] = field(default_factory=dict)
    """Seconds that the oldest job of each class has been waiting to begin."""
    workers: list[WorkerInfo] = field(default_factory=list)
    kept: int = 0
    """Failed jobs whose work is kept for a retry."""
    refused: int = 0
    """Messages that no layerfarm client can have sent."""
    redis_bytes: int | None = None
    """Memory that Redis uses; None: this user may not query it, or it is not available."""


def census(client: redis.Redis, keys: Keys, queues: Queues) -> Census:
    """Count the farm's contents, in five round trips of any size."""
    with client.pipeline(transaction=False) as pipe:
        pipe.smembers(keys.active)
        for name in queues:
            pipe.llen(keys.broker + name)
        pipe.hlen(f"{keys.broker}unacked")
        pipe.zcard(keys.kept)
        pipe.get(keys.refused)
        pipe.time()
        ids, *depths, unacked, kept, refused, (seconds, micros) = pipe.execute()
    records = _records(client, keys, sorted(filter(is_job_id, ids)))
    waiting = [(traffic, submitted) for _, state, traffic, submitted in records if state == JobState.QUEUED]
    now = seconds + micros / 1e6
    return Census(
        jobs=Counter(record[:3] for record in records),
        queues={**dict(zip(queues, depths, strict=True)), "unacked": unacked},
        oldest={
            traffic: max(0.0, max(now - submitted for each, submitted in waiting if each == traffic))
            for traffic in sorted({traffic for traffic, _ in waiting})
        },
        workers=workers(client, keys),
        kept=kept,
        refused=int(refused or 0),
        redis_bytes=_memory(client),
    )


def _memory(client: redis.Redis) -> int | None:
    try:
        return int(client.info("memory")["used_memory"])
    except redis.ResponseError:
        return None


def _records(client: redis.Redis, keys: Keys, ids: list[str]) -> list[tuple[str, str, str, float]]:
    with client.pipeline(transaction=False) as pipe:
        for job_id in ids:
            pipe.hmget(keys.job(job_id).job, _FIELDS)
        rows = pipe.execute(raise_on_error=False)
    found = []
    for row in rows:
        # A corrupt record is not counted.
        with suppress(TypeError, ValueError):
            kind, state, traffic, at = row
            if kind:
                found.append((kind, state, traffic or "interactive", float(at or 0)))
    return found
