"""``layerfarm squash``."""

from __future__ import annotations

import click

from layerfarm.worker.cli.flags import Image, ImageType, Layering, compress_options, source_date_epoch
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.submission import Where
from layerfarm.worker.cli.transforming import Making, transform, transform_options


@click.command("squash", cls=GoStyleCommand)
@click.option(
    "--base", type=ImageType(), metavar="PATH[:TAG]", help="Leave the layers of this image, on which it was built."
)
@click.option("--keep", metavar="N", type=click.IntRange(0), default=0, help="Leave the N lowest layers as they are.")
@click.option(
    "--upto", metavar="N", type=click.IntRange(1), help="Merge up to the Nth layer from below, and leave those above."
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
    as_json: bool,
) -> None:
    """Merges layers of an image into one, on every platform: all, or those above a base. Nothing is unpacked.

    What unpacks is the same to the nanosecond, hard links and xattrs included, and proved to be before the
    new image gets its tag. The history keeps the old steps, as empty ones. $SOURCE_DATE_EPOCH clamps mtimes.

    \b
    Examples:
      layerfarm squash --image store:v1 --target store:v1-flat
      layerfarm squash --image store:v1 --base store:debian --target store:v1
      layerfarm squash --image store:v1 --keep 1 --upto 4 --compress zstd
    """
    from layerfarm.jobs.flows.transforms import SquashRequest

    request = SquashRequest.model_validate(
        making
        | {
            "base": None if base is None else base.ref(),
            "keep": keep,
            "upto": upto,
            "compress": layering.compress,
            "level": layering.level,
            "source_date_epoch": source_date_epoch(),
        }
    )
    transform(request, where, as_json)
