"""Metrics of ``layerfarm catalog serve`` for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400)


class ServeMetrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.notifications = Counter(
            "layerfarm_catalog_notifications",
            "Requests with notifications: accepted, or why not.",
            ["registry", "result"],
            registry=self._registry,
        )
        self.events = Counter(
            "layerfarm_catalog_events",
            "Events: accepted, repeated, of no catalog (unmatched), not the push of a tag (ignored).",
            ["registry", "result"],
            registry=self._registry,
        )
        self.runs = Histogram(
            "layerfarm_catalog_run_seconds",
            "Duration of runs.",
            ["catalog", "kind", "result"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.pending = Gauge(
            "layerfarm_catalog_pending", "Images that wait for a run, or are run.", ["catalog"], registry=self._registry
        )
        self.oldest = Gauge(
            "layerfarm_catalog_oldest_pending_seconds",
            "Time since the first push that waits for a run, or is run.",
            ["catalog"],
            registry=self._registry,
        )
        self.succeeded = Gauge(
            "layerfarm_catalog_last_success_timestamp_seconds",
            "Time of the end of the last run without a failure.",
            ["catalog"],
            registry=self._registry,
        )

    def watch(self, catalog: str, pending: Callable[[], int], oldest: Callable[[], float | None]) -> None:
        """Read the gauges of a catalog with these functions at each request."""

        def age() -> float:
            first = oldest()
            return 0.0 if first is None else max(0.0, time.time() - first)

        self.pending.labels(catalog).set_function(pending)
        self.oldest.labels(catalog).set_function(age)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
