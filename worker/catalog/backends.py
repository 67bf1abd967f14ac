"""Run the jobs of a catalog: one after the other on this machine, or many at once on a farm."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Protocol

from layerfarm.jobs.errors import FarmFull, FarmUnreachable, JobCancelled, JobNotFound, LayerfarmError
from layerfarm.jobs.flows.base import Policy, Request
from layerfarm.jobs.flows.inputs import release, stores_of
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.tag_group import TagGroup
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.engine import local
from layerfarm.worker.model import JobState, Progress

if TYPE_CHECKING:
    from layerfarm.worker.client import Farm, Job

AT_ONCE: Final = 16
"""Jobs that a catalog has on a farm at a time; bulk, so that interactive jobs overtake them."""
_HEED: Final = 1.0
"""Seconds between two checks of a waiting thread for an interruption of the run."""


@dataclass(frozen=True)
class Task:
    """One job to run."""

    name: str
    """Name of the image."""
    request: Request
    job: str | None = None
    """Id of a job that an earlier run submitted for the same work."""


Ended = Callable[[Task, Any, LayerfarmError | None], None]
"""Called with the result or the error of each task, in the thread that called ``run``."""


class Watcher(Protocol):
    """Called with progress, from any thread."""

    def submitted(self, task: Task, job: str) -> None: ...

    def progress(self, task: Task, progress: Progress) -> None: ...


class Backend(Protocol):
    """Runs tasks. One that fails does not stop the others."""

    def run(self, tasks: Iterable[Task], ended: Ended, watcher: Watcher) -> None:
        """Run all tasks to their end.

        Raises:
            FarmUnreachable: no task can be run any more; tasks not reported have not ended.
        """


class Local:
    """Runs tasks in this process and its children, in groups whose tags are set with one write of the index."""

    def __init__(self, policy: Policy, processes: int) -> None:
        self._policy = policy
        self._processes = processes

    def run(self, tasks: Iterable[Task], ended: Ended, watcher: Watcher) -> None:
        waiting = iter(tasks)
        while (first := next(waiting, None)) is not None:
            self._group(chain((first,), waiting), ended, watcher)

    def _group(self, tasks: Iterator[Task], ended: Ended, watcher: Watcher) -> None:
        """Run tasks until the group is full. A task ends when its tag is set, even if another one is interrupted."""
        group, done = TagGroup(), []
        holder = f"local-{os.getpid()}-{os.urandom(4).hex()}"
        with ExitStack() as stack:
            try:
                while not group.is_full and (task := next(tasks, None)) is not None:
                    for store in stores_of(task.request, self._policy):
                        if store not in group.layouts:
                            group.layouts.add(store)
                            with suppress(LayerfarmError):  # the task fails
                                stack.enter_context(Layout.open(store).steady())
                    try:
                        with group.piece():
                            progress = partial(watcher.progress, task)
                            result = local.run(task.request, self._policy, self._processes, progress, holder)
                    except LayerfarmError as error:
                        ended(task, None, error)
                    else:
                        done.append((task, result))
            finally:
                errors = group.write()
                release(holder, group.layouts)
                with group.recording():
                    for (task, result), failed in zip(done, errors, strict=True):
                        ended(task, None if failed else result, failed)


class OnFarm:
    """Runs tasks as bulk jobs of a farm, :data:`AT_ONCE` at a time. If interrupted, it cancels the jobs."""

    def __init__(self, farm: Farm, at_once: int = AT_ONCE) -> None:
        self._farm = farm
        self._at_once = at_once
        self._submitting = threading.Lock()
        self._stopped = threading.Event()

    def run(self, tasks: Iterable[Task], ended: Ended, watcher: Watcher) -> None:
        waiting = iter(tasks)
        jobs: dict[Future[Any], Task] = {}
        self._stopped.clear()
        pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="catalog")
        try:
            while True:
                while len(jobs) < self._at_once and (task := next(waiting, None)) is not None:
                    jobs[pool.submit(self._one, task, watcher)] = task
                if not jobs:
                    return
                for future in wait(jobs, return_when=FIRST_COMPLETED).done:
                    self._tell(jobs.pop(future), future, ended)
        except BaseException:
            self._stopped.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _tell(self, task: Task, future: Future[Any], ended: Ended) -> None:
        error = future.exception()
        if isinstance(error, FarmUnreachable):
            raise error
        if error is not None and not isinstance(error, LayerfarmError):
            raise error
        ended(task, None if error else future.result(), error)

    def _one(self, task: Task, watcher: Watcher) -> Any:
        job = self._earlier(task) or self._submit(task)
        watcher.submitted(task, job.id)
        for progress in job.watch(heartbeat=_HEED):
            watcher.progress(task, progress)
            if self._stopped.is_set():
                with suppress(LayerfarmError):
                    job.cancel()
                raise JobCancelled("the catalog's run was interrupted", where=task.name)
        return job.result(0.0)

    def _submit(self, task: Task) -> Job:
        while not self._stopped.is_set():
            with self._submitting, suppress(FarmFull):
                return self._farm.submit(task.request, traffic=Traffic.BULK, block=True, timeout=_HEED)
        raise JobCancelled("the catalog's run was interrupted", where=task.name)

    def _earlier(self, task: Task) -> Job | None:
        """Return the job of a killed earlier run, unless it failed: it may be done by now."""
        if task.job is None:
            return None
        with suppress(JobNotFound):
            job = self._farm.job(task.job)
            if job.record().state not in (JobState.FAILED, JobState.CANCELLED):
                return job
        return None
