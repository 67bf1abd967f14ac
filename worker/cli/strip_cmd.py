"""``layerfarm strip``."""

from __future__ import annotations

import click

from layerfarm.worker.cli.flags import source_date_epoch
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.submission import Where
from layerfarm.worker.cli.transforming import Making, transform, transform_options


@click.command("strip", cls=GoStyleCommand)
@click.option("--compress-level", metavar="N", type=int, help="Level of the layers that are written anew.")
@transform_options
@click.argument("patterns", metavar="PATTERN", nargs=-1, required=True)
def command(compress_level: int | None, making: Making, where: Where, as_json: bool, patterns: tuple[str, ...]) -> None:
    """Takes what matches PATTERN out of an image, on every platform, and out of each layer that holds it.

    A layer on top would only hide it. PATTERN is from the root of the image, as in a shell, but `*` matches
    slashes too; a directory goes with all that is in it. Layers that hold nothing of the kind stay as they
    are. Signatures and SBOMs of the old image are not carried over, and named.

    \b
    Examples:
      layerfarm strip --image store:v1 --target store:v1-slim usr/share/doc usr/share/man
      layerfarm strip --image store:v1 'root/.ssh/*' '*/__pycache__'
    """
    from layerfarm.jobs.flows.transforms import StripRequest

    request = StripRequest.model_validate(
        making | {"paths": list(patterns), "level": compress_level, "source_date_epoch": source_date_epoch()}
    )
    transform(request, where, as_json)
