"""The final output of ``build``, ``repack`` and ``unpack``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.submission import Outcome

if TYPE_CHECKING:
    from layerfarm.jobs.flows.requests import ImageResult

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")


def image_lines(job_id: str, result: ImageResult) -> list[str]:
    """Return one line for each digest of a new image; ``none`` for the missing layer of an unchanged tree."""
    return [
        f"job: {job_id} succeeded",
        f"layer: {result.layer or 'none'}",
        f"diff_id: {result.diff_id or 'none'}",
        f"manifest: {result.manifest}",
    ]


def report(outcome: Outcome | None, *, lines: list[str], as_json: bool, quiet: bool) -> None:
    """Print the result on stdout as lines or as JSON; ``quiet`` commands, as umoci's are, leave stdout empty."""
    if outcome is None:
        return
    if as_json:
        output.echo(outcome.result.model_dump_json())
    for line in lines:
        if quiet or as_json:
            output.info(line)
        else:
            output.say(line)
