"""Run a job on this machine without a queue: the units of each stage in a pool of processes.

The same flows as on the farm (``layerfarm.worker.engine.farm``), hence the same bytes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from layerfarm.jobs.errors import FarmError, JobCancelled
from layerfarm.jobs.flows import FLOWS, flow_of
from layerfarm.jobs.flows.base import Context, Flow, Policy, Request, Result, Unit
from layerfarm.jobs.flows.inputs import release, stores_of
from layerfarm.jobs.store.leases import LOCAL, holding
from layerfarm.worker.model import JobState, Progress
from layerfarm.worker.security.kernel import die_with_parent
from layerfarm.worker.signals import terminable

__all__ = ["run"]

_TICK = 0.1
"""Seconds between two reads of the byte counter while units run."""
_GRACE = 2.0
"""Seconds for running units to stop; then their processes are killed."""

Report = Callable[[Progress], None]


def run(
    request: Request,
    policy: Policy | None = None,
    processes: int = 2,
    on_progress: Report | None = None,
    holder: str | None = None,
) -> Result:
    """Run ``request`` to its end in at most ``processes`` processes and return its result.

    ``holder``: name of a lease for the job's blobs that the caller releases; None: the job has its own.

    Ctrl-C, SIGTERM and SIGHUP end it like an error: staged files are removed first.

    Raises:
        LayerfarmError: the error of the first unit, plan or join that failed.
    """
    flow = flow_of(request)
    policy = policy or Policy(shards=processes, threads=processes)
    context = Context(job_id=f"local-{os.getpid()}-{os.urandom(4).hex()}", policy=policy)
    with _Pool(flow, policy, processes, holder or context.job_id) as pool, terminable():
        return _Run(flow, request, context, pool, on_progress or (lambda progress: None), holder).to_end()


@dataclass
class _Run:
    """One job from its request to its result."""

    _flow: Flow[Any]
    _request: Request
    _context: Context
    _pool: _Pool
    _report: Report
    _holder: str | None

    def to_end(self) -> Result:
        succeeded = False
        job_id, request = self._context.job_id, self._request
        try:
            with holding(self._holder or job_id, LOCAL, stores_of(request, self._context.policy)):
                result = self._stages()
            succeeded = True
        finally:
            if not succeeded:
                self._pool.stop()
            try:
                self._flow.clean(self._context, request, succeeded)
            finally:
                if self._holder is None:
                    release(job_id, stores_of(request, self._context.policy))
        self._report(Progress(JobState.SUCCEEDED, self._flow.name, stages=len(self._flow.stages)))
        return result

    def _stages(self) -> Result:
        context, flow = self._context, self._flow
        self._report(Progress(JobState.RUNNING, flow.name, stages=len(flow.stages)))
        state = flow.begin(context, self._request)
        for number, stage in enumerate(flow.stages):
            units = stage.plan(context, state)
            results = self._units(number, units)
            state = stage.join(context, state, results)
        return flow.finish(context, state)

    def _units(self, number: int, units: Sequence[Unit]) -> list[dict[str, Any]]:
        stage = self._flow.stages[number]
        nbytes = sum(unit.bytes for unit in units)

        def report(units_done: int, bytes_done: int) -> None:
            self._report(
                Progress(
                    state=JobState.RUNNING,
                    kind=self._flow.name,
                    stage=stage.name,
                    stage_number=number + 1,
                    stages=len(self._flow.stages),
                    units_done=units_done,
                    units_total=len(units),
                    bytes_done=bytes_done,
                    bytes_total=nbytes,
                )
            )

        report(0, 0)
        if min(len(units), self._pool.processes) <= 1:
            # A process would only add its start and the transfer of the data.
            results: list[dict[str, Any]] = []
            context = Context(self._context.job_id, self._context.policy, _Counting(results, report))
            for unit in units:
                results.append(stage.run(context, unit))
        else:
            results = self._pool.run(self._context.job_id, number, units, report)
        report(len(units), nbytes)
        return results


@dataclass
class _Counting:
    """The observer of units that run in the calling process, one after the other."""

    _results: Sequence[object]
    """Results of the units that are done."""
    _report: Callable[[int, int], None]
    _bytes: int = 0

    def advanced(self, nbytes: int) -> None:
        self._bytes += nbytes
        self._report(len(self._results), self._bytes)


# --- the pool --------------------------------------------------------------------------------------


class _Pool:
    """Processes forked at the first stage of several units; none for a job without one."""

    def __init__(self, flow: Flow[Any], policy: Policy, processes: int, holder: str) -> None:
        # fork: a child starts in milliseconds and knows every flow that its parent knows.
        self._fork = multiprocessing.get_context("fork")
        self._flow = flow
        self._policy = policy
        self._holder = holder
        self.processes = processes
        self._executor: ProcessPoolExecutor | None = None
        self._futures: list[Future[dict[str, Any]]] = []
        self._children: set[Any] = set()
        try:
            self._bytes: Synchronized[int] = self._fork.Value("Q", 0)
            self._stop = self._fork.Value("b", 0, lock=False)
        except OSError:
            # Shared memory is in /dev/shm, which a chroot or container may lack: all units run in this process.
            self.processes = 1

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def run(
        self, job_id: str, number: int, units: Sequence[Unit], report: Callable[[int, int], None]
    ) -> list[dict[str, Any]]:
        self._bytes.value = 0
        executor = self._started()
        others = set(multiprocessing.active_children()) - self._children
        futures = [executor.submit(_run_unit, job_id, number, unit) for unit in units]
        self._futures = futures
        self._children.update(set(multiprocessing.active_children()) - others)
        pending: set[Future[dict[str, Any]]] = set(futures)
        shown = (0, 0)
        while pending:
            done, pending = wait(pending, timeout=_TICK, return_when=FIRST_EXCEPTION)
            self._raise_first(done, number)
            now = (len(units) - len(pending), self._bytes.value)
            if now != shown:
                report(*now)
                shown = now
        return [future.result() for future in futures]

    def stop(self) -> None:
        """Let running units stop through their observers, then kill those that do not."""
        if self._executor is None:
            return
        self._stop.value = 1
        for future in self._futures:
            future.cancel()
        if wait(self._futures, timeout=_GRACE).not_done:
            for child in self._children:
                child.kill()
        self._executor.shutdown(cancel_futures=True)

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                self.processes,
                mp_context=self._fork,
                initializer=_enter_pool,
                initargs=(self._flow.name, self._policy, self._holder, self._bytes, self._stop, os.getpid()),
            )
        return self._executor

    def _raise_first(self, done: set[Future[dict[str, Any]]], number: int) -> None:
        for future in done:
            error = future.exception()
            if isinstance(error, BrokenExecutor):
                name = self._flow.stages[number].name
                raise FarmError(
                    f"a process was killed during stage {name!r}", hint="the machine may be out of memory"
                ) from error
            if error is not None:
                raise error


@dataclass
class _InPool:
    """The state of a process of the pool; also the observer of the units that it runs."""

    flow: Flow[Any]
    policy: Policy
    holder: str
    _done: Synchronized[int]
    _stop: Any

    def advanced(self, nbytes: int) -> None:
        if self._stop.value:
            raise JobCancelled("job was stopped")
        with self._done.get_lock():
            self._done.value += nbytes


_in_pool: _InPool | None = None


def _enter_pool(kind: str, policy: Policy, holder: str, done: Synchronized[int], stop: Any, parent: int) -> None:
    global _in_pool
    die_with_parent(parent)
    # Ctrl-C and the end of a terminal reach every process of it; the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _in_pool = _InPool(FLOWS[kind], policy, holder, done, stop)


def _run_unit(job_id: str, number: int, unit: Unit) -> dict[str, Any]:
    assert _in_pool is not None
    _in_pool.advanced(0)
    with holding(_in_pool.holder, LOCAL):
        return _in_pool.flow.stages[number].run(Context(job_id, _in_pool.policy, _in_pool), unit)
