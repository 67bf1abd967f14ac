"""Run a request: in this process, or as a job of the farm that is watched or detached."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import DurationType
from layerfarm.worker.cli.progress_view import MODES, ProgressView
from layerfarm.worker.cli.session import Session

if TYPE_CHECKING:
    from layerfarm.jobs.flows.base import Request, Result

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

LOCAL = "local"
"""Replaces the id of a job that ran in this process."""


class Where(NamedTuple):
    """The values of the flags that say where and how a request runs."""

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


class Outcome(NamedTuple):
    """A job that succeeded."""

    job_id: str
    result: Any
    """The flow's result."""


def farm_options(command: CommandT) -> CommandT:
    """Add ``--farm`` and its companions, passed as ``where``."""

    @click.option(
        "--farm",
        "farm_url",
        metavar="URL",
        help="Run as a job of the farm at this Redis; empty: on this machine, ignoring $LAYERFARM_FARM.",
    )
    @click.option("--detach", is_flag=True, help="With a farm: print the job's id and exit; see `layerfarm jobs`.")
    @click.option(
        "--class",
        "traffic",
        type=click.Choice(("interactive", "bulk")),
        help="With a farm: interactive jobs run before bulk ones. Default: $LAYERFARM_CLASS, else interactive.",
    )
    @click.option(
        "--if-full",
        type=click.Choice(("wait", "fail")),
        default="wait",
        show_default=True,
        help="If the queue of the farm is full: wait, or fail immediately.",
    )
    @click.option(
        "--timeout",
        metavar="TIME",
        type=DurationType(),
        help="With a farm: wait at most this long (90s, 2h) for the job, in the queue and running; it then continues.",
    )
    @click.option(
        "--processes",
        metavar="N",
        type=click.IntRange(1, 1024),
        help="Without a farm: number of processes (default: one per CPU).",
    )
    @click.option(
        "--shards",
        metavar="N",
        type=click.IntRange(1, 4096),
        help="Without a farm: number of shards of the tree. Changes the speed, not the bytes.",
    )
    @click.option(
        "--progress",
        type=click.Choice(MODES),
        default="auto",
        show_default=True,
        help="How to show progress on stderr; auto: a bar on a terminal.",
    )
    @functools.wraps(command)
    def with_where(
        *args: Any,
        farm_url: str | None,
        detach: bool,
        processes: int | None,
        shards: int | None,
        progress: str,
        traffic: str | None,
        if_full: str,
        timeout: float | None,
        **others: Any,
    ) -> Any:
        session: Session = click.get_current_context().obj
        farm = (session.farm if farm_url is None else farm_url) or None
        if farm is None and detach:
            raise click.UsageError("--detach needs a farm: give --farm or set LAYERFARM_FARM")
        if farm is None and timeout is not None:
            raise click.UsageError("--timeout needs a farm: give --farm or set LAYERFARM_FARM")
        where = Where(farm, detach, processes, shards, progress, traffic, if_full, timeout)
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
    from layerfarm.jobs.errors import FarmFull
    from layerfarm.worker.broker.priorities import Traffic
    from layerfarm.worker.client import Farm

    output.take_logs()
    farm = Farm(url)
    begun = time.monotonic()
    traffic = Traffic(where.traffic) if where.traffic else None
    try:
        job = farm.submit(request, traffic=traffic)
    except FarmFull as full:
        if where.if_full == "fail":
            raise
        output.notice(f"{full.what}, waiting for room")
        job = farm.submit(request, traffic=traffic, block=True, timeout=where.timeout)
    if where.detach:
        output.echo(job.id)
        return None
    output.notice(f"submitted job {job.id}")
    left = None if where.timeout is None else max(0.0, begun + where.timeout - time.monotonic())
    try:
        with ProgressView(where.progress) as view:
            for progress in job.watch(timeout=left):
                view.show(progress)
        return Outcome(job.id, job.result(None))
    except (KeyboardInterrupt, SystemExit):
        output.notice(f"interrupted: cancelling job {job.id}")
        with contextlib.suppress(Exception):
            job.cancel()
        raise
