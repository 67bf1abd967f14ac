"""Seeing what a farm does: metrics, traces, top and Flower, each held against what really happened."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ground import Ground, stop, until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families
from toy_flow import ToyRequest

from layerfarm.jobs.errors import JobFailed
from layerfarm.worker.client import Job

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(ground: Ground) -> Samples:
    """Every sample of the worker's metrics, by name and labels."""
    said = [json.loads(line) for line in ground.log().splitlines() if '"serving metrics"' in line]
    with urllib.request.urlopen(said[-1]["address"], timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def sample(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def failed(job: Job) -> None:
    with pytest.raises(JobFailed):
        job.result(90)


def test_metrics_show_work_of_processes_and_the_state_of_the_farm(ground: Ground) -> None:
    ground.start_worker(metrics="127.0.0.1:0")
    farm = ground.farm()
    good = [farm.submit(ToyRequest(directory=ground.allowed, unit_bytes=1000, sleep=0.04)) for _ in range(2)]
    for job in good:
        job.result(90)
    failed(farm.submit(ToyRequest(directory=ground.allowed, trouble="error")))
    waiting = farm.submit(ToyRequest(directory=ground.allowed, trouble="wait-until-repaired"))
    until(lambda: waiting.record().units_done == 3)
    shown = scrape(ground)

    def units(how: str) -> float:
        labels = {"kind": "toy", "stage": "first", "what": "unit", "how": how}
        return sample(shown, "layerfarm_unit_seconds_count", **labels)

    assert units("failed") == 1
    assert units("done") + units("stopped") >= 8 + 3
    assert sample(shown, "layerfarm_unit_seconds_count", kind="toy", stage="second", what="unit", how="done") == 8
    assert sample(shown, "layerfarm_unit_seconds_count", kind="toy", stage="third", what="join", how="done") == 2
    assert sample(shown, "layerfarm_bytes_total", kind="toy", stage="second") == 8 * 1000
    ended = {"kind": "toy", "class": "interactive"}
    assert sample(shown, "layerfarm_job_seconds_count", **ended, state="succeeded") == 2
    until(lambda: sample(scrape(ground), "layerfarm_job_seconds_count", **ended, state="failed") == 1)
    # Two jobs with 12 units, 4 advances and a close each; at least.
    assert sample(shown, "layerfarm_claims_total", how="won") >= 2 * 16
    assert sample(shown, "layerfarm_farm_jobs", kind="toy", state="running", **{"class": "interactive"}) == 1
    assert sample(shown, "layerfarm_farm_workers") == 1
    assert sample(shown, "layerfarm_farm_processes") == 2
    assert sample(shown, "layerfarm_farm_redis_bytes") > 100_000
    (ground.allowed / "repaired").touch()
    waiting.result(90)
    assert sample(scrape(ground), "layerfarm_farm_jobs", kind="toy", state="running", **{"class": "interactive"}) == 0


def test_metrics_tell_of_equal_work_and_of_jobs_that_wait(ground: Ground) -> None:
    ground.start_worker(metrics="127.0.0.1:0", concurrency=1)
    farm = ground.farm()
    for _ in range(2):
        farm.submit(ToyRequest(directory=ground.allowed, shared="same", rounds=1)).result(90)
    shown = scrape(ground)
    assert sample(shown, "layerfarm_equal_work_total", how="executed") == 4
    assert sample(shown, "layerfarm_equal_work_total", how="known") == 4
    deaf = farm.submit(ToyRequest(directory=ground.allowed, deaf=3, numbers=1, rounds=1))
    until(lambda: ground.marks("run-0") == 2)
    later = farm.submit(ToyRequest(directory=ground.allowed))
    until(lambda: sample(scrape(ground), "layerfarm_farm_oldest_queued_seconds", **{"class": "interactive"}) > 0.5)
    assert sample(scrape(ground), "layerfarm_farm_queue_messages", queue="layerfarm.start") == 1
    assert (deaf.result(90).total, later.result(90).total) == (0, 18)  # type: ignore[attr-defined]


def test_metrics_that_cannot_be_served_are_one_line(ground: Ground) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = _layerfarm("worker", "--farm", ground.url, "--root=/tmp", "--store=/tmp", "--metrics", listen)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"metrics cannot be served, Address already in use: {listen}" in done.stderr.splitlines()[-1]
    done = _layerfarm("worker", "--farm", ground.url, "--root=/tmp", "--store=/tmp", "--metrics", "nowhere")
    assert done.stderr.endswith("not an address to serve metrics at: nowhere (HOST:PORT, or :PORT for all)\n")


# --- traces ----------------------------------------------------------------------------------------


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP receiver: its address, and the spans that came."""
    spans: list[Any] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            spans.extend(span for r in request.resource_spans for scope in r.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    server.server_close()


def test_traces_join_the_work_of_two_workers_for_one_job(
    ground: Ground, collector: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, spans = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    for _ in range(2):
        ground.start_worker(traces=1, concurrency=1)
    farm = ground.farm()
    job = farm.submit(ToyRequest(directory=ground.allowed, sleep=0.1))
    job.result(90)
    broken = farm.submit(ToyRequest(directory=ground.allowed, trouble="error"))
    failed(broken)
    until(lambda: sum(not span.parent_span_id for span in spans) == 2)
    roots = {_attributes(span)["layerfarm.job"]: span for span in spans if not span.parent_span_id}
    root = roots[job.id]
    until(lambda: sum(span.trace_id == root.trace_id for span in spans) == 1 + 12 + 4)
    below = [span for span in spans if span.trace_id == root.trace_id and span is not root]
    assert {span.parent_span_id for span in below} == {root.span_id}
    assert sorted(span.name for span in below)[:4] == ["toy begin, join"] + [f"toy first, {n}" for n in _names()[:3]]
    assert all(
        root.start_time_unix_nano // 10**9 <= span.start_time_unix_nano // 10**9 <= span.end_time_unix_nano // 10**9
        for span in below
    )
    assert _attributes(root)["layerfarm.state"] == "succeeded"
    assert roots[broken.id].status.message == "number one is odd: unit 1"


def _names() -> list[str]:
    return ["join", "unit 0", "unit 1", "unit 2", "unit 3"]


def _attributes(span: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}


# --- top -------------------------------------------------------------------------------------------


def test_top_shows_queues_workers_and_jobs(ground: Ground) -> None:
    farm = ground.farm()
    waiting = farm.submit(ToyRequest(directory=ground.allowed), submitter="alice")
    once = _layerfarm("top", "--farm", ground.url, "--once").stdout
    assert "no worker is listening" in once
    assert waiting.id in once and "queued" in once and "alice" in once
    shown = json.loads(_layerfarm("top", "--farm", ground.url, "--json").stdout)
    assert shown["jobs"] == [{"kind": "toy", "state": "queued", "class": "interactive", "count": 1}]
    assert shown["queues"]["layerfarm.start"] == 1
    assert shown["oldest"]["interactive"] > 0
    ground.start_worker()
    waiting.result(90)
    shown = json.loads(_layerfarm("top", "--farm", ground.url, "--json").stdout)
    assert (shown["jobs"], shown["oldest"], shown["queues"]["layerfarm.start"]) == ([], {}, 0)
    assert [worker["concurrency"] for worker in shown["workers"]] == [2]
    assert [(job["id"], job["state"]) for job in shown["newest"]] == [(waiting.id, "succeeded")]


def test_top_on_a_terminal_goes_on_until_ctrl_c_and_outlives_redis(ground: Ground) -> None:
    job = ground.farm().submit(ToyRequest(directory=ground.allowed))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [_command(), "top", "--farm", ground.url, "--every", "0.2"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "150", "LINES": "40"},
        start_new_session=True,
    )
    os.close(theirs)
    seen = bytearray()

    def read() -> None:
        with suppress(OSError):
            while piece := os.read(ours, 65536):
                seen.extend(piece)

    threading.Thread(target=read, daemon=True).start()
    try:
        until(lambda: job.id.encode() in seen and b"no worker is listening" in seen)
        stop(ground.redis)
        until(lambda: b"Redis does not answer" in seen)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert b"Traceback" not in seen
    finally:
        stop(process)
        os.close(ours)


# --- Flower ----------------------------------------------------------------------------------------


def test_flower_sees_the_workers_and_their_tasks(ground: Ground, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flower = subprocess.Popen(
        [_command("celery"), "--app", "layerfarm.worker.celery_app", "flower", "--address=127.0.0.1", f"--port={port}"],
        env=os.environ | {"LAYERFARM_FARM": ground.url, "FLOWER_UNAUTHENTICATED_API": "true"},
        cwd=tmp_path,
        stdout=(tmp_path / "flower.log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        until(lambda: _fetch(port, "/healthcheck") == "OK", timeout=60)
        ground.start_worker(events=1)
        ground.farm().submit(ToyRequest(directory=ground.allowed)).result(90)

        def tasks() -> list[str]:
            found = json.loads(_fetch(port, "/api/tasks") or "{}")
            return sorted(task["name"] for task in found.values() if task["state"] == "SUCCESS")

        # One message of a kind at least; a process continues with the next unit without one.
        until(lambda: tasks()[0] == "layerfarm.advance" and tasks()[-1] == "layerfarm.unit", timeout=60)
        until(lambda: len(json.loads(_fetch(port, "/api/workers?refresh=1") or "{}")) == 1, timeout=60)
    finally:
        stop(flower)


def _fetch(port: int, path: str) -> str:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())
    return ""


def _command(name: str = "layerfarm") -> str:
    return str(Path(sys.executable).with_name(name))


def _layerfarm(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_command(), *args], capture_output=True, text=True, timeout=60, env=os.environ | {"COLUMNS": "150"}
    )
