"""``layerfarm squash``."""

from __future__ import annotations

import click

from layerfarm.worker.cli.flags import Image, ImageType
from layerfarm.worker.cli.layer_flags import Layering, compress_options, source_date_epoch
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import show
from layerfarm.worker.cli.submission import Where
from layerfarm.worker.cli.transforming import Making, transform_lines, transform_options


@click.command("squash", cls=GoStyleCommand)
@click.option("--base", type=ImageType(), metavar="PATH[:TAG]", help="Keep the layers of this image, the base.")
@click.option("--keep", metavar="N", type=click.IntRange(0), default=0, help="Keep the N lowest layers.")
@click.option(
    "--upto", metavar="N", type=click.IntRange(1), help="Merge up to the Nth layer from below; keep those above."
)
@compress_options
@transform_options
def command(
    base: Image | None,
    keep: int,
    upto: int | None,
    layering: Layering,
    making: Making,
    where: Where,
) -> None:
    """Merge all layers of an image, or those above a base, into one, on every platform, without unpacking.

    The image is tagged only after its files are verified to match the original, times to the nanosecond, hard
    links and xattrs included. The history keeps the old steps as empty layers. $SOURCE_DATE_EPOCH clamps mtimes.

    \b
    Examples:
      layerfarm squash --image store:v1 --target store:v1-flat
      layerfarm squash --image store:v1 --base store:debian --target store:v1
      layerfarm squash --image store:v1 --keep 1 --upto 4 --compress zstd
    """
    from layerfarm.jobs.flows.transforms import SquashRequest

    request = SquashRequest.model_validate(
        making
        | layering._asdict()
        | {
            "base": None if base is None else base.ref(),
            "keep": keep,
            "upto": upto,
            "source_date_epoch": source_date_epoch(),
        }
    )
    show(request, where, transform_lines)
