"""``layerfarm validate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from layerfarm.jobs.image.report import Finding
from layerfarm.jobs.image.validate import validate_image, validate_layout
from layerfarm.jobs.image.validate_bundle import validate_bundle
from layerfarm.worker.cli.flags import Image, LayoutType, PathType, image_option
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import show_findings


@dataclass
class Validation:
    """The JSON; a field that does not apply is left out."""

    findings: list[Finding]
    errors: int
    warnings: int
    reachable: int | None = None
    """Blobs, of an image or a layout."""
    reachable_bytes: int | None = None
    unreachable: int | None = None
    """Blobs, of a layout."""
    unreachable_bytes: int | None = None


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
    if bundle is not None:
        report = validate_bundle(bundle)
    elif image is not None:
        report = validate_image(image.layout, image.tag)
    else:
        assert layout is not None
        report = validate_layout(layout)
    found = Validation(report.findings, report.errors, report.warnings)
    if bundle is None:
        found.reachable, found.reachable_bytes = report.reachable, report.reachable_bytes
    if layout is not None:
        found.unreachable, found.unreachable_bytes = report.unreachable, report.unreachable_bytes
    show_findings(found, as_json)
