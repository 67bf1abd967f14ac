"""Run a request: in this process, or as a job of the farm that is watched or detached."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import DurationType
from layerfarm.worker.cli.progress_view import MODES, ProgressView
from layerfarm.worker.cli.session import Session

if TYPE_CHECKING:
    from layerfarm.jobs.flows.base import Request, Result
    from layerfarm.worker.client import Farm, Job

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

LOCAL = "local"
"""Replaces the id of a job that ran in this process."""


class Where(NamedTuple):
    """The values of the flags that say where and how a request runs, and how its result is printed."""

    farm: str | None
    """Redis URL, or None: in this process."""
    detach: bool
    processes: int | None
    shards: int | None
    progress: str
    traffic: str | None = None
    """Class of the job, ``interactive`` or ``bulk``; None: as the settings say."""
    if_full: str = "wait"
    """``wait`` or ``fail``."""
    timeout: float | None = None
    """Seconds to wait for the job; None: no limit."""
    as_json: bool = False


class Outcome(NamedTuple):
    """A job that succeeded."""

    job_id: str
    result: Any
    """The flow's result."""


def class_option(begin: str) -> Callable[[CommandT], CommandT]:
    """Add ``--class``, passed as ``traffic``; ``begin``: the first words of its help."""
    return click.option(
        "--class",
        "traffic",
        type=click.Choice(("interactive", "bulk")),
        help=f"{begin} jobs run before bulk ones. Default: $LAYERFARM_CLASS, else interactive.",
    )


processes_option = click.option(
    "--processes",
    metavar="N",
    type=click.IntRange(1, 1024),
    help="Without a farm: number of processes (default: one per CPU).",
)
at_once_option = click.option(
    "--at-once",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=16,
    show_default=True,
    help="With a farm: number of jobs queued at a time, with the class bulk.",
)
if_full_option = click.option(
    "--if-full",
    type=click.Choice(("wait", "fail")),
    default="wait",
    show_default=True,
    help="If the queue of the farm is full: wait, or fail immediately.",
)


def progress_option(help: str) -> Callable[[CommandT], CommandT]:
    """Add ``--progress``."""
    return click.option("--progress", type=click.Choice(MODES), default="auto", show_default=True, help=help)


def farm_options(command: CommandT) -> CommandT:
    """Add ``--farm``, its companions and ``--json``, passed as ``where``."""

    @click.option(
        "--farm",
        "farm_url",
        metavar="URL",
        help="Run as a job of the farm at this Redis; empty: on this machine, ignoring $LAYERFARM_FARM.",
    )
    @click.option("--detach", is_flag=True, help="With a farm: print the job's id and exit; see `layerfarm jobs`.")
    @class_option("With a farm: interactive")
    @if_full_option
    @click.option(
        "--timeout",
        metavar="TIME",
        type=DurationType(),
        help="With a farm: wait at most this long (90s, 2h) for the job, in the queue and running; it then continues.",
    )
    @processes_option
    @click.option(
        "--shards",
        metavar="N",
        type=click.IntRange(1, 4096),
        help="Without a farm: number of shards of the tree. Changes the speed, not the bytes.",
    )
    @progress_option("How to show progress on stderr; auto: a bar on a terminal.")
    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
    @functools.wraps(command)
    def with_where(*args: Any, farm_url: str | None, **others: Any) -> Any:
        session: Session = click.get_current_context().obj
        values = {name: others.pop(name) for name in Where._fields if name != "farm"}
        where = Where(session.farm_at(farm_url), **values)
        if where.farm is None and where.detach:
            raise click.UsageError("--detach needs a farm: give --farm or set LAYERFARM_FARM")
        if where.farm is None and where.timeout is not None:
            raise click.UsageError("--timeout needs a farm: give --farm or set LAYERFARM_FARM")
        return command(*args, where=where, **others)

    return with_where  # type: ignore[return-value]


def carry_out(request: Request, where: Where) -> Outcome | None:
    """Run ``request``; warnings of the result go to stderr. Return None if the job was detached.

    An interrupt cancels the job on the farm: work that a command started stops with it.

    Raises:
        LayerfarmError: the job failed, or has not ended in time.
    """
    outcome = _here(request, where) if where.farm is None else _on_farm(request, where, where.farm)
    if outcome is not None:
        for text in outcome.result.warnings:
            output.warning(text)
    return outcome


def _here(request: Request, where: Where) -> Outcome:
    from layerfarm.jobs.flows.base import Policy
    from layerfarm.worker.engine import local

    processors = len(os.sched_getaffinity(0))
    processes = where.processes or processors
    policy = Policy(shards=where.shards or processes, threads=processors)
    with ProgressView(where.progress) as view:
        result: Result = local.run(request, policy, processes, view.show)
    return Outcome(LOCAL, result)


def _on_farm(request: Request, where: Where, url: str) -> Outcome | None:
    from layerfarm.worker.client import Farm

    output.take_logs()
    begun = time.monotonic()
    job = submit(Farm(url), request, where.traffic, where.if_full, where.timeout)
    if where.detach:
        output.echo(job.id)
        return None
    output.notice(f"submitted job {job.id}")
    with cancelling(job):
        with ProgressView(where.progress) as view:
            for progress in job.watch(timeout=time_left(where.timeout, begun)):
                view.show(progress)
        return Outcome(job.id, job.result(None))


def submit(farm: Farm, request: Request, traffic: str | None, if_full: str, timeout: float | None) -> Job:
    """Queue ``request``; if the queue is full, wait for room or fail. See :class:`Where` for the parameters.

    Raises:
        FarmFull: the queue is full, and stays so for ``timeout`` seconds or ``if_full`` is ``fail``.
    """
    from layerfarm.jobs.errors import FarmFull
    from layerfarm.worker.broker.priorities import Traffic

    chosen = Traffic(traffic) if traffic else None
    try:
        return farm.submit(request, traffic=chosen)
    except FarmFull as full:
        if if_full == "fail":
            raise
        output.notice(f"{full.what}, waiting for room")
        return farm.submit(request, traffic=chosen, block=True, timeout=timeout)


@contextlib.contextmanager
def cancelling(job: Job) -> Iterator[None]:
    """Cancel ``job`` if this process is interrupted."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        output.notice(f"interrupted: cancelling job {job.id}")
        with contextlib.suppress(Exception):
            job.cancel()
        raise


def time_left(timeout: float | None, begun: float) -> float | None:
    """Return the seconds that remain of ``timeout``; ``begun``: the monotonic time of its start."""
    return None if timeout is None else max(0.0, begun + timeout - time.monotonic())
