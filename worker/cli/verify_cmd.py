"""``layerfarm verify``."""

from __future__ import annotations

from dataclasses import dataclass

import click

from layerfarm.jobs.image.report import Finding
from layerfarm.worker.cli.flags import Image, image_option
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import show_findings


@dataclass
class Verification:
    """The JSON."""

    findings: list[Finding]
    proofs: int
    """Number of proofs that were checked."""
    errors: int
    warnings: int
    bytes_read: int


@click.command("verify", cls=GoStyleCommand)
@image_option(help="The image, or all platforms of it, whose proofs to check.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def command(image: Image, as_json: bool) -> None:
    """Check the proofs of an image, reading all layers. Exit code 1 if one fails.

    Each transform stores a proof with the new image: the original image, the operation, and that nothing else
    changed. If the original is still in the layout, both are compared again; otherwise the new image is
    compared with the digests in the proof, with a warning.

    \b
    Example:
      layerfarm verify --image store:v1-flat
    """
    from layerfarm.jobs.relayer.proof import verify_image
    from layerfarm.jobs.store import Layout

    report = verify_image(Layout.open(image.layout), image.tag)
    found = Verification(report.findings, report.reachable, report.errors, report.warnings, report.reachable_bytes)
    show_findings(found, as_json)
