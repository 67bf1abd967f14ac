"""The final output of commands: results of jobs, findings of checks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from layerfarm.jobs.errors import display
from layerfarm.worker.cli import output
from layerfarm.worker.cli.submission import Outcome, Where, carry_out

if TYPE_CHECKING:
    from layerfarm.jobs.flows.base import Request
    from layerfarm.jobs.flows.requests import ImageResult
    from layerfarm.worker.cli.validate_cmd import Validation
    from layerfarm.worker.cli.verify_cmd import Verification


def image_lines(outcome: Outcome) -> list[str]:
    """Return one line for each digest of a new image; ``none`` for the missing layer of an unchanged tree."""
    result: ImageResult = outcome.result
    return [
        f"job: {outcome.job_id} succeeded",
        f"layer: {result.layer or 'none'}",
        f"diff_id: {result.diff_id or 'none'}",
        f"manifest: {result.manifest}",
    ]


def show(
    request: Request, where: Where, lines: Callable[[Outcome], list[str]], *, quiet: bool = False
) -> Outcome | None:
    """Run ``request`` as :func:`carry_out`, and print its result on stdout, as ``lines`` or as JSON.

    ``quiet`` commands, as umoci's are, leave stdout empty without ``--json``.
    """
    outcome = carry_out(request, where)
    if outcome is not None:
        if where.as_json:
            output.echo(outcome.result.model_dump_json())
        for line in lines(outcome):
            (output.info if quiet or where.as_json else output.say)(line)
    return outcome


def show_findings(found: Validation | Verification, as_json: bool) -> None:
    """Print the result of a check, without fields that are None; exit with 1 if it has an error."""
    fields = {name: value for name, value in vars(found).items() if value is not None}
    if as_json:
        output.echo(json.dumps(fields, default=vars))
    else:
        for finding in fields.pop("findings"):
            output.say(f"{finding.severity}: {display(finding.where)}: {display(finding.message)}")
        output.say(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in fields.items()))
    if found.errors:
        raise click.exceptions.Exit(1)
