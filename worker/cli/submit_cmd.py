"""``layerfarm submit``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import DurationType, PathType
from layerfarm.worker.cli.jobs_cmd import farm_of, farm_option
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.progress_view import ProgressView
from layerfarm.worker.cli.session import Session
from layerfarm.worker.cli.submission import cancelling, class_option, if_full_option, progress_option, submit, time_left

if TYPE_CHECKING:
    from layerfarm.jobs.flows.base import Request
    from layerfarm.worker.model import Progress

_STDIN = Path("-")
_LARGEST = 1 << 20
"""Bytes of a document: more than a request may have, with any white space."""


@click.command("submit", cls=GoStyleCommand)
@click.option("--request", "file", type=PathType(), required=True, metavar="FILE", help="A JSON document; -: stdin.")
@farm_option
@click.option("--wait", is_flag=True, help="Wait for the end of the job. Exit code 1 if it failed or was cancelled.")
@click.option("--json", "as_json", is_flag=True, help="Print the job's state as JSON, and with --wait each change.")
@class_option("Interactive")
@if_full_option
@click.option(
    "--timeout",
    metavar="TIME",
    type=DurationType(),
    help="Wait at most this long (90s, 2h) for room in the queue and, with --wait, for the job; it then continues.",
)
@progress_option("How to show progress.")
@click.pass_obj
def command(
    session: Session,
    file: Path,
    wait: bool,
    as_json: bool,
    traffic: str | None,
    if_full: str,
    timeout: float | None,
    progress: str,
) -> None:
    """Queue a job of any kind from a JSON document, and print the job's id.

    The document is {"kind": KIND, "request": {...}}. With --json, each line is an object with the job's id, state
    and progress; the last line of --wait has the result or the error. An interrupt while waiting cancels the job.

    \b
    Examples:
      layerfarm submit --request build.json --farm redis://queue/0
      layerfarm jobs show --json 5f0e6d1c2b3a | jq '{kind, request}' | layerfarm submit --request - --wait --json
    """
    begun = time.monotonic()
    request = _read(file)
    job = submit(farm_of(session), request, traffic, if_full, timeout)
    if not as_json:
        output.echo(job.id)
    elif not wait:
        output.echo(_line(job.id, job.record().progress()))
    if not wait:
        return
    with cancelling(job):
        with ProgressView(progress) as view:
            for step in job.watch(timeout=time_left(timeout, begun)):
                view.show(step)
                if as_json and not step.state.final:
                    output.echo(_line(job.id, step))
        record = job.record()
        if as_json:
            output.echo(_line(job.id, record.progress(), result=record.result, error=record.error))
        job.result(None)


def _read(file: Path) -> Request:
    from layerfarm.jobs.errors import RequestError
    from layerfarm.jobs.flows.submission import parse_submission

    stdin = file == _STDIN
    where = "standard input" if stdin else file
    with open(0 if stdin else file, "rb", closefd=not stdin) as opened:
        document = opened.read(_LARGEST + 1)
    if len(document) > _LARGEST:
        raise RequestError(f"request has more than {_LARGEST} bytes", where=where)
    try:
        return parse_submission(document)
    except RequestError as error:
        raise RequestError(error.what, where=where, hint=error.hint) from None


def _line(job_id: str, progress: Progress, **ending: Any) -> bytes:
    from pydantic_core import to_json

    from layerfarm.worker.model import JobEvent

    return to_json(JobEvent(job=job_id, **asdict(progress), **ending))
