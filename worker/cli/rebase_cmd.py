"""``layerfarm rebase``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from layerfarm.worker.cli.flags import Image, ImageType
from layerfarm.worker.cli.layer_flags import source_date_epoch
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.cli.result_text import show
from layerfarm.worker.cli.submission import Outcome, Where
from layerfarm.worker.cli.transforming import Making, transform_lines, transform_options

if TYPE_CHECKING:
    from layerfarm.jobs.flows.transforms import RebaseCheckResult, RebaseVerdict

EXIT_UNSAFE = 3
"""Exit code of ``--check``: the verdict is worse than ``--accept`` allows."""


@click.command("rebase", cls=GoStyleCommand)
@click.option(
    "--old-base",
    type=ImageType(),
    required=True,
    metavar="PATH[:TAG]",
    help="The exact base version that the image was built on.",
)
@click.option("--new-base", type=ImageType(), required=True, metavar="PATH[:TAG]", help="The new base.")
@click.option(
    "--accept",
    type=click.Choice(("safe", "review", "refuse")),
    default="safe",
    show_default=True,
    help="The worst verdict with which to rebase.",
)
@click.option("--check", is_flag=True, help="Only check; exit code 3 if the verdict is worse than --accept.")
@transform_options
def command(
    old_base: Image,
    new_base: Image,
    accept: str,
    check: bool,
    making: Making,
    where: Where,
) -> None:
    """Rebase an image, on every platform, without building it again, if its files are compatible.

    Checks the trees of both bases, the files that the image wrote and deleted, and what its programs need:
    libraries with their symbol versions, interpreters, dpkg packages. The verdict is safe, review or refuse,
    with reasons. Settings inherited from the old base are taken from the new one.

    \b
    Examples:
      layerfarm rebase --image store:app --old-base store:debian-12.1 --new-base store:debian-12.2 --check
      layerfarm rebase --image store:app --old-base store:debian-12.1 --new-base store:debian-12.2 \\
          --target store:app-rebased --accept review
    """
    from layerfarm.jobs.flows.transforms import RebaseCheckRequest, RebaseRequest

    bases = {"image": making["image"], "old_base": old_base.ref(), "new_base": new_base.ref()}
    if check:
        outcome = show(RebaseCheckRequest.model_validate(bases), where, _check_lines)
        order = ("safe", "review", "refuse")
        if outcome is not None and order.index(outcome.result.verdict) > order.index(accept):
            raise click.exceptions.Exit(EXIT_UNSAFE)
        return
    request = RebaseRequest.model_validate(
        making | bases | {"accept": accept, "source_date_epoch": source_date_epoch()}
    )
    # The concerns are among the warnings, and already printed.
    show(request, where, lambda done: [*transform_lines(done), f"verdict: {done.result.verdict}"])


def _check_lines(outcome: Outcome) -> list[str]:
    result: RebaseCheckResult = outcome.result
    return [line for image in result.images for line in _verdict_lines(image)]


def _verdict_lines(found: RebaseVerdict) -> list[str]:
    lines = [f"{found.platform}: {found.verdict}", *(f"  {concern}" for concern in found.concerns)]
    if found.concerns_total > len(found.concerns):
        lines.append(f"  and {found.concerns_total - len(found.concerns)} more")
    if found.packages:
        more = f" and {found.packages_total - 10} more" if found.packages_total > 10 else ""
        lines.append(f"  packages: {', '.join(found.packages[:10])}{more}")
    return lines
