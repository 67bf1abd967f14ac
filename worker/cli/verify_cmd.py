"""``layerfarm verify``."""

from __future__ import annotations

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import Image, image_option
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("verify", cls=GoStyleCommand)
@image_option(help="The image, or all platforms of it, whose proofs to check.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(image: Image, as_json: bool) -> None:
    """Checks the proofs of an image again, all layers read. Exit code 1 if one does not hold.

    A transform leaves a proof beside each image that it makes: which image it was made of, how, and that
    nothing else changed. If the old image is still in the layout both are compared once more; if not, the
    new one is held against the digests in the proof, and a warning says so.

    \b
    Example:
      layerfarm verify --image store:v1-flat
    """
    from dataclasses import asdict
    from json import dumps

    from layerfarm.jobs.errors import display
    from layerfarm.jobs.relayer.proof import verify_image
    from layerfarm.jobs.store import Layout

    report = verify_image(Layout.open(image.layout), image.tag)
    counts = {
        "proofs": report.reachable,
        "errors": report.errors,
        "warnings": report.warnings,
        "bytes_read": report.reachable_bytes,
    }
    if as_json:
        output.echo(dumps({"findings": [asdict(finding) for finding in report.findings], **counts}))
    else:
        for finding in report.findings:
            output.say(f"{finding.severity}: {display(finding.where)}: {display(finding.message)}")
        output.say(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()))
    if report.errors:
        raise click.exceptions.Exit(1)
