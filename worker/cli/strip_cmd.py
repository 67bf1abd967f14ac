"""``layerfarm strip``."""

from __future__ import annotations

import click

from layerfarm.worker.cli.layer_flags import source_date_epoch
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import show
from layerfarm.worker.cli.submission import Where
from layerfarm.worker.cli.transforming import Making, transform_lines, transform_options


@click.command("strip", cls=GoStyleCommand)
@click.option("--compress-level", metavar="N", type=int, help="Compression level of the new layers.")
@transform_options
@click.argument("patterns", metavar="PATTERN", nargs=-1, required=True)
def command(compress_level: int | None, making: Making, where: Where, patterns: tuple[str, ...]) -> None:
    """Remove paths that match PATTERN from every layer of an image, on every platform.

    A whiteout in a layer above would only hide them. PATTERN is a shell pattern relative to the root of the image
    in which `*` also matches slashes; a matching directory is removed with everything below it. Layers without
    a match are kept. Signatures and SBOMs of the old image are left behind, and reported.

    \b
    Examples:
      layerfarm strip --image store:v1 --target store:v1-slim usr/share/doc usr/share/man
      layerfarm strip --image store:v1 'root/.ssh/*' '*/__pycache__'
    """
    from layerfarm.jobs.flows.transforms import StripRequest

    request = StripRequest.model_validate(
        making | {"paths": list(patterns), "level": compress_level, "source_date_epoch": source_date_epoch()}
    )
    show(request, where, transform_lines)
