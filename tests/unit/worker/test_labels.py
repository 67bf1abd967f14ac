"""Texts that a submitter invents do not become labels of metrics."""

from __future__ import annotations

import pytest

from layerfarm.worker.engine.hooks import Outcome, Task
from layerfarm.worker.model import JobRecord, JobState
from layerfarm.worker.monitoring.metrics import Metrics

pytest.importorskip("prometheus_client")


def test_unknown_kind_is_counted_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    import prometheus_client
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    for name in ("Counter", "Histogram"):
        made = getattr(prometheus_client, name)
        monkeypatch.setattr(
            prometheus_client, name, lambda *args, made=made, **kw: made(*args, registry=registry, **kw)
        )
    metrics = Metrics()
    for number in range(20):
        for kind in ("build", f"made-up-{number}"):
            metrics.finished(Task("job", kind, "begin"), Outcome(seconds=1.0, how="done", nbytes=1))
            metrics.ended(JobRecord(id="job", kind=kind, request={}, state=JobState.FAILED, submitted=1.0, ended=2.0))
    text = generate_latest(registry).decode()
    assert 'kind="build"' in text and 'kind="unknown"' in text
    assert "made-up" not in text
