"""``layerfarm jobs``: present and past jobs of the farm."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from layerfarm.jobs.errors import display
from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import DurationType
from layerfarm.worker.cli.parsing import GoStyleGroup
from layerfarm.worker.cli.progress_view import ProgressView, megabytes
from layerfarm.worker.cli.result_text import image_lines
from layerfarm.worker.cli.session import Session
from layerfarm.worker.cli.submission import Outcome, progress_option

if TYPE_CHECKING:
    from layerfarm.worker.client import Farm
    from layerfarm.worker.model import JobRecord

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def _use_farm(ctx: click.Context, param: click.Parameter, url: str | None) -> None:
    if url:
        ctx.obj = ctx.obj._replace(farm=url)


farm_option = click.option(
    "--farm",
    metavar="URL",
    expose_value=False,
    callback=_use_farm,
    help="The Redis of the farm (default: $LAYERFARM_FARM).",
)


@click.group("jobs", cls=GoStyleGroup, no_args_is_help=True)
@farm_option
def command() -> None:
    """List, show, follow, cancel and retry the jobs of the farm.

    \b
    Examples:
      layerfarm jobs ls --farm redis://queue/0
      layerfarm jobs watch "$(layerfarm build --detach --rootfs /srv/rootfs --image store:v1)"
    """


@command.command("ls")
@farm_option
@_json_option
@click.pass_obj
def ls(session: Session, as_json: bool) -> None:
    """List the jobs that the farm knows, the newest first. With --json, one record a line.

    The state of a job that was cancelled is "running, cancel requested" until what it staged is removed; in JSON,
    "ending" is "cancelled".
    """
    records = sorted(farm_of(session).jobs(), key=lambda record: record.submitted, reverse=True)
    if as_json:
        for record in records:
            output.echo(record.model_dump_json())
        return
    rows = [("JOB", "KIND", "CLASS", "STATE", "STAGE", "DONE", "SUBMITTED", "BY")]
    rows += [
        (
            *(record.id, record.kind, record.traffic, state_text(record), stage_text(record), done_text(record)),
            *(_time(record.submitted), display(record.submitter) or "-"),
        )
        for record in records
    ]
    for line in output.columns(rows):
        output.say(line)


@command.command("show")
@farm_option
@click.argument("job_id", metavar="JOB")
@_json_option
@click.pass_obj
def show(session: Session, job_id: str, as_json: bool) -> None:
    """Show the progress, request and result of a job."""
    record = farm_of(session).job(job_id).record()
    if as_json:
        output.echo(record.model_dump_json())
        return
    output.say(f"job: {record.id}")
    output.say(f"kind: {record.kind}")
    output.say(f"state: {state_text(record)}")
    output.say(f"class: {record.traffic}")
    output.say(f"submitter: {display(record.submitter) or '-'}")
    if record.stage:
        output.say(f"stage: {stage_text(record)} ({done_text(record)})")
    for name in ("submitted", "started", "ended", "kept"):
        moment = getattr(record, name)
        if moment is not None:
            output.say(f"{'kept for a retry until' if name == 'kept' else name}: {_time(moment)}")
    if record.retries:
        output.say(f"retries: {record.retries}")
    if record.error is not None:
        output.say(f"error: {record.error.message}")
    for title, fields in (("request", record.request), ("result", record.result or {})):
        for name, value in fields.items():
            output.say(f"{title}.{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


@command.command("watch")
@farm_option
@click.argument("job_id", metavar="JOB")
@progress_option("How to show progress.")
@click.option("--timeout", metavar="TIME", type=DurationType(), help="Wait at most this long (90s, 2h).")
@_json_option
@click.pass_obj
def watch(session: Session, job_id: str, progress: str, timeout: float | None, as_json: bool) -> None:
    """Follow a job to its end. Exit code 1 if it failed, was cancelled, or has not ended in time.

    Interrupting this command does not affect the job.
    """
    from layerfarm.jobs.flows.requests import ImageResult

    job = farm_of(session).job(job_id)
    with ProgressView(progress) as view:
        for step in job.watch(timeout=timeout):
            view.show(step)
    result = job.result(None)
    if as_json:
        output.echo(result.model_dump_json())
        return
    lines = image_lines(Outcome(job.id, result)) if isinstance(result, ImageResult) else [f"job: {job.id} succeeded"]
    for line in lines:
        output.say(line)


@command.command("cancel")
@farm_option
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@click.pass_obj
def cancel(session: Session, job_ids: tuple[str, ...]) -> None:
    """Cancel jobs and remove what they staged. Jobs that have ended are not changed."""
    farm = farm_of(session)
    for job_id in job_ids:
        job = farm.job(job_id)
        if not job.cancel():
            record = job.record()
            when = "has already ended" if record.state.final else "is already ending"
            output.warning(f"job {job_id} {when}: {state_text(record)}")


@command.command("retry")
@farm_option
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@click.option("--restart", is_flag=True, help="Start from the beginning, even if finished units are kept.")
@click.pass_obj
def retry(session: Session, job_ids: tuple[str, ...], restart: bool) -> None:
    """Run the unfinished units of failed jobs again.

    The results of finished units are kept for $LAYERFARM_RETRY_FOR (1 h by default, set on the workers). After
    that, or if the tree has changed, the job starts from the beginning.
    """
    farm = farm_of(session)
    for job_id in job_ids:
        continues = farm.job(job_id).retry(restart=restart)
        output.say(f"job: {job_id} {'continues' if continues else 'restarts'}")


@command.command("clean")
@farm_option
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@click.pass_obj
def clean(session: Session, job_ids: tuple[str, ...]) -> None:
    """Remove the results of failed jobs that are kept for a retry."""
    farm = farm_of(session)
    for job_id in job_ids:
        if not farm.job(job_id).discard():
            output.warning(f"no results of job {job_id} are kept")


def farm_of(session: Session) -> Farm:
    from layerfarm.worker.client import Farm

    if session.farm is None:
        raise click.UsageError("no farm: give --farm or set LAYERFARM_FARM")
    output.take_logs()
    return Farm(session.farm)


def state_text(record: JobRecord) -> str:
    """Return the state, and how the job will end if that is decided but its staged files are not yet removed."""
    endings = {None: "", "cancelled": ", cancel requested", "failed": ", failing", "succeeded": ", finishing"}
    return record.state + endings[record.ending]


def stage_text(record: JobRecord) -> str:
    return f"{record.stage_number}/{record.stages} {record.stage}" if record.stage else "-"


def done_text(record: JobRecord) -> str:
    if record.bytes_total:
        return f"{megabytes(min(record.bytes_done, record.bytes_total))} of {megabytes(record.bytes_total)}"
    return f"{record.units_done} of {record.units_total}" if record.units_total else "-"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
