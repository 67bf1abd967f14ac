"""Checks that the workers are alike, as any of them may get any unit of a job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Final

from layerfarm.jobs.flows.base import FORMAT
from layerfarm.worker.background.registry import WorkerInfo
from layerfarm.worker.doctor.finding import Finding, fail, ok, warn
from layerfarm.worker.plural import counted

_CLOCK: Final = 60.0
"""Seconds."""


def examine_workers(workers: Sequence[WorkerInfo]) -> Iterator[Finding]:
    if not workers:
        yield fail("workers", "none is listening", "start one: layerfarm worker --farm … --root DIR --store DIR")
        return
    processes = counted(sum(worker.concurrency for worker in workers), "process", "processes")
    hosts = counted(len({worker.host for worker in workers}), "host")
    yield ok("workers", f"{len(workers)} with {processes}, on {hosts}")
    for worker in workers:
        yield from _one(worker)
    for name, told in (("roots", "--root"), ("stores", "--store"), ("kinds", "LAYERFARM_FLOWS")):
        if len({tuple(sorted(getattr(worker, name))) for worker in workers}) > 1:
            advice = f"start all with the same {told}: a unit goes to any free worker, and fails on the wrong one"
            yield warn("workers", f"differ in their {name}", advice)


def _one(worker: WorkerInfo) -> Iterator[Finding]:
    topic, ours = f"worker {worker.name}", version("layerfarm")
    if not FORMAT <= worker.format <= FORMAT + 1:  # A worker reads the format before its own, too.
        yield fail(
            topic, f"reads jobs of format {worker.format}, this machine writes {FORMAT}", "bring all to one version"
        )
    elif worker.version != ours:
        yield warn(topic, f"is version {worker.version or 'unknown'}, this is {ours}", "bring all to one version")
    else:
        processes = counted(worker.concurrency, "process", "processes")
        yield ok(topic, f"version {worker.version}, {processes}, {_listed(worker)}")
    if worker.confined:
        yield ok(topic, "its units run in a sandbox")
    else:
        advice = (
            "upgrade to Linux 5.13 or newer with Landlock, leave LAYERFARM_SANDBOX at auto;"
            " see docs/security.md#the-sandbox"
        )
        yield warn(topic, "its units run without a sandbox", advice)
    if abs(worker.clock) > _CLOCK:
        yield warn(
            topic,
            f"its clock differs from that of Redis by {worker.clock:+.0f} s",
            "set it by NTP: times in its logs are wrong",
        )
    for path in worker.missing:
        yield fail(topic, f"has no directory {path}", "mount it there, or remove it from its --root and --store")


def _listed(worker: WorkerInfo) -> str:
    return f"roots {':'.join(map(str, worker.roots))}, stores {':'.join(map(str, worker.stores))}"
