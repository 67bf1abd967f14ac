"""A worker's metrics for Prometheus: those of its processes, and those of the whole farm.

The pool's processes write into files of one private directory, which ``prometheus_client`` adds up on a request
to the main process (its "multiprocess mode"). Metrics of the farm are the same at all workers and named
``layerfarm_farm_…``: take the maximum over workers, not the sum.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import structlog

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.flows import FLOWS
from layerfarm.worker.engine import hooks
from layerfarm.worker.engine.hooks import Outcome, Task
from layerfarm.worker.listening import host_and_port
from layerfarm.worker.model import JobRecord

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from layerfarm.worker.monitoring.census import Census

_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"
_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)

_log = structlog.get_logger()


class Metrics:
    """Counts the events of the hooks, for as long as the object lives. Created before the pool is forked."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Histogram

        self._jobs = Histogram(
            "layerfarm_job_seconds",
            "Time from submission to the end of jobs that ended here.",
            ["kind", "state", "class"],
            buckets=_BUCKETS,
        )
        self._units = Histogram(
            "layerfarm_unit_seconds",
            "Duration of units and of the joins of stages.",
            ["kind", "stage", "what", "how"],
            buckets=_BUCKETS,
        )
        self._bytes = Counter(
            "layerfarm_bytes",
            "Bytes that units read or wrote: hashed in stage hash, put into layers in pack, read in unpack.",
            ["kind", "stage"],
        )
        self._claims = Counter(
            "layerfarm_claims", "Claims requested: won, or why not (busy, done, stale, over, poison).", ["how"]
        )
        self._equal = Counter(
            "layerfarm_equal_work", "Work that other jobs may share: executed, known already, waited for.", ["how"]
        )
        hooks.claimed.connect(self.claimed)
        hooks.equal.connect(self.equal)
        hooks.finished.connect(self.finished)
        hooks.ended.connect(self.ended)

    def claimed(self, how: str, **_: Any) -> None:
        self._claims.labels(how).inc()

    def equal(self, how: str, **_: Any) -> None:
        self._equal.labels(how).inc()

    def finished(self, task: Task, outcome: Outcome, **_: Any) -> None:
        what = "join" if task.index is None else "unit"
        self._units.labels(_known(task.kind), task.stage, what, outcome.how).observe(outcome.seconds)
        if outcome.nbytes:
            self._bytes.labels(_known(task.kind), task.stage).inc(outcome.nbytes)

    def ended(self, record: JobRecord, **_: Any) -> None:
        seconds = (record.ended or record.submitted) - record.submitted
        self._jobs.labels(_known(record.kind), record.state, record.traffic).observe(seconds)


def _known(kind: str) -> str:
    """Return the kind of job as a label; unknown ones share a label, as every label lasts as long as the worker."""
    return kind if kind in FLOWS else "unknown"


@contextmanager
def served(listen: str, census: Callable[[], Census]) -> Iterator[Metrics]:
    """Serve metrics at ``HOST:PORT`` inside the block; ``census`` is taken at each request.

    Raises:
        RequestError: the address cannot be used.
    """
    host, port = host_and_port(listen, "metrics")
    directory = tempfile.mkdtemp(prefix="layerfarm-metrics-")
    # Read when prometheus_client is imported, so it must not be imported before.
    os.environ[_DIRECTORY] = directory
    try:
        from prometheus_client import CollectorRegistry, start_http_server
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        registry.register(_Farm(census))
        metrics = Metrics()
        try:
            server, thread = start_http_server(port, host, registry)
        except OSError as error:
            raise RequestError(f"metrics cannot be served, {error.strerror}", where=listen) from None
        _log.info("serving metrics", address=f"http://{host}:{server.server_port}/metrics")
        try:
            yield metrics
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
    finally:
        os.environ.pop(_DIRECTORY, None)
        shutil.rmtree(directory, ignore_errors=True)


class _Farm:
    """Metrics of the farm, the same at every worker."""

    def __init__(self, census: Callable[[], Census]) -> None:
        self._census = census

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily as Gauge

        census = self._census()
        jobs = Gauge("layerfarm_farm_jobs", "Jobs that have not ended.", labels=["kind", "state", "class"])
        counted: Counter[tuple[str, str, str]] = Counter()
        for (kind, state, traffic), count in census.jobs.items():
            counted[_known(kind), state, traffic] += count
        for labels, count in sorted(counted.items()):
            jobs.add_metric(labels, count)
        yield jobs
        depth = Gauge("layerfarm_farm_queue_messages", "Messages waiting in a queue.", labels=["queue"])
        for name, messages in census.queues.items():
            depth.add_metric([name], messages)
        yield depth
        age = Gauge("layerfarm_farm_oldest_queued_seconds", "Time the oldest job has been waiting.", labels=["class"])
        for traffic, seconds in census.oldest.items():
            age.add_metric([traffic], seconds)
        yield age
        figures: dict[str, tuple[str, Any]] = {
            "workers": ("Workers that can take a message.", len(census.workers)),
            "processes": ("Processes of these workers.", sum(worker.concurrency for worker in census.workers)),
            "kept_jobs": ("Failed jobs whose work is kept for a retry.", census.kept),
            "refused_messages": ("Messages that no layerfarm client can have sent, since Redis began.", census.refused),
            "redis_bytes": ("Memory that Redis uses.", census.redis_bytes),
        }
        for name, (text, value) in figures.items():
            if value is not None:
                yield Gauge(f"layerfarm_farm_{name}", text, value=value)
