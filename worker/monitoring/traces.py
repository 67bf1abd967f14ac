"""Traces of a job across workers, by OpenTelemetry: the job is the root span, its units and joins are below it.

The ids of trace and root are derived from the job's id, so processes need not exchange them, and messages do not
carry them. The standard variables give the destination of spans (``OTEL_EXPORTER_OTLP_ENDPOINT``).
"""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from typing import Any

from celery import signals
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from layerfarm.worker.engine import hooks
from layerfarm.worker.engine.hooks import Outcome, Task
from layerfarm.worker.model import JobRecord, JobState

_DELAY = 1000
"""Milliseconds for which spans are collected before they are sent."""


class Traces:
    """Traces the events of the hooks while the object lives. Exports from the first span on, after the fork."""

    def __init__(self) -> None:
        signals.worker_process_shutdown.connect(self.flush)
        hooks.finished.connect(self.finished)
        hooks.ended.connect(self.ended)

    def finished(self, task: Task, outcome: Outcome, **_: Any) -> None:
        what = "join" if task.index is None else f"unit {task.index}"
        parent = trace.NonRecordingSpan(
            trace.SpanContext(_trace(task.job_id), _root(task.job_id), True, trace.TraceFlags(trace.TraceFlags.SAMPLED))
        )
        self._span(
            f"{task.kind} {task.stage}, {what}",
            outcome.began,
            outcome.began + int(outcome.seconds * 1e9),
            {"layerfarm.job": task.job_id, "layerfarm.bytes": outcome.nbytes, "layerfarm.how": outcome.how},
            outcome.error,
            trace.set_span_in_context(parent),
        )

    def ended(self, record: JobRecord, **_: Any) -> None:
        self._ids.trace, self._ids.span = _trace(record.id), _root(record.id)
        try:
            self._span(
                record.kind,
                int(record.submitted * 1e9),
                int((record.ended or record.submitted) * 1e9),
                {
                    "layerfarm.job": record.id,
                    "layerfarm.class": record.traffic,
                    "layerfarm.submitter": record.submitter,
                    "layerfarm.state": record.state,
                },
                record.error.message if record.error and record.state is JobState.FAILED else None,
                trace.set_span_in_context(trace.INVALID_SPAN),
            )
        finally:
            self._ids.trace = self._ids.span = None

    def _span(
        self, name: str, begin: int, end: int, attributes: dict[str, Any], error: str | None, within: Context
    ) -> None:
        span = self._tracer.start_span(name, within, start_time=begin, attributes=attributes)
        if error is not None:
            span.set_status(trace.StatusCode.ERROR, error)
        span.end(end)

    @cached_property
    def _ids(self) -> _Ids:
        return _Ids()

    @cached_property
    def _provider(self) -> TracerProvider:
        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "layerfarm")})
        provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=_DELAY))
        return provider

    @cached_property
    def _tracer(self) -> trace.Tracer:
        return self._provider.get_tracer("layerfarm")

    def flush(self, **_: Any) -> None:
        if "_provider" in self.__dict__:
            self._provider.shutdown()


class _Ids(RandomIdGenerator):
    """Random ids, except for the root of a job."""

    trace: int | None = None
    span: int | None = None

    def generate_trace_id(self) -> int:
        return super().generate_trace_id() if self.trace is None else self.trace

    def generate_span_id(self) -> int:
        return super().generate_span_id() if self.span is None else self.span


def _trace(job_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"trace {job_id}".encode()).digest()[:16], "big")


def _root(job_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"root {job_id}".encode()).digest()[:8], "big")
