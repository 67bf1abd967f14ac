"""``layerfarm validate``."""

from __future__ import annotations

from pathlib import Path

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.flags import Image, LayoutType, PathType, image_option
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("validate", cls=GoStyleCommand)
@image_option(required=False, help="Check everything that this tag references.")
@click.option("--layout", type=LayoutType(), metavar="PATH", help="Check a whole layout, including unreachable blobs.")
@click.option("--bundle", type=PathType(), metavar="DIR", help="Check a bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(image: Image | None, layout: Path | None, bundle: Path | None, as_json: bool) -> None:
    """Check an image, a layout or a bundle, and report every fault. Exit code 1 if there is an error.

    Checks every blob (digest and size), every document (against its schema), every layer (as a tar, within the
    limits, against its diff_id) and the tags; in a bundle umoci.json, config.json, the mtree manifest and the
    rootfs. Warnings, such as unreachable blobs, do not change the exit code.

    \b
    Examples:
      layerfarm validate --layout store
      layerfarm validate --image store:v1 --json
      layerfarm validate --bundle bundle
    """
    if sum(value is not None for value in (image, layout, bundle)) != 1:
        raise click.UsageError("give one of --image, --layout and --bundle")
    from dataclasses import asdict
    from json import dumps

    from layerfarm.jobs.errors import display

    if bundle is not None:
        from layerfarm.jobs.image.validate_bundle import validate_bundle

        report = validate_bundle(bundle)
    else:
        from layerfarm.jobs.image.validate import validate_image, validate_layout

        if image is not None:
            report = validate_image(image.layout, image.tag)
        else:
            assert layout is not None
            report = validate_layout(layout)
    counts = {"errors": report.errors, "warnings": report.warnings}
    if bundle is None:
        counts |= {"reachable": report.reachable, "reachable_bytes": report.reachable_bytes}
    if layout is not None:
        counts |= {"unreachable": report.unreachable, "unreachable_bytes": report.unreachable_bytes}
    if as_json:
        output.echo(dumps({"findings": [asdict(finding) for finding in report.findings], **counts}))
    else:
        for finding in report.findings:
            output.say(f"{finding.severity}: {display(finding.where)}: {display(finding.message)}")
        output.say(", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts.items()))
    if report.errors:
        raise click.exceptions.Exit(1)
