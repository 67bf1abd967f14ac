"""``layerfarm diff``."""

from __future__ import annotations

import click

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.worker.cli import output
from layerfarm.worker.cli.parsing import GoStyleCommand

SAME, DIFFERENT, TROUBLE = 0, 1, 2


@click.command("diff", cls=GoStyleCommand)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with an object for each path.")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
def command(as_json: bool, old: str, new: str) -> None:
    """Show how NEW differs from OLD. Each is a bundle, a directory, an image (PATH:TAG) or an mtree file.

    One line for each path: + only in NEW, - only in OLD, ~ in both and different, with the differences. Names
    that are not plain text are shown as in a manifest (\\ooo). Times are compared in whole seconds. Sizes and
    link counts of directories, which depend on the file system, are not compared, nor are values that an mtree
    file does not record. If one side is an image, entries that a layer cannot hold (sockets, empty xattrs) are
    ignored. Exit code 0: no difference, 1: differences, 2: an error.

    \b
    Examples:
      layerfarm diff store:v1 store:v2
      layerfarm diff store:v1 bundle
      layerfarm diff before.mtree /srv/rootfs --json
    """
    from contextlib import ExitStack

    from layerfarm.jobs.image.trees import portable
    from layerfarm.jobs.mtree import compare
    from layerfarm.worker.cli.delta_text import human_line, json_object
    from layerfarm.worker.cli.trees import open_tree

    count = 0
    try:
        with ExitStack() as opened:
            sides = [open_tree(text, opened) for text in (old, new)]
            one, other = (
                portable(side.entries) if any(side.is_image for side in sides) else side.entries for side in sides
            )
            for count, delta in enumerate(compare(one, other), 1):
                output.echo(
                    ("[\n" if count == 1 else ",\n") + json_object(delta) if as_json else human_line(delta),
                    nl=not as_json,
                )
        if as_json:
            output.echo("\n]" if count else "[]")
    except LayerfarmError as error:
        error.exit_code = TROUBLE
        raise
    except BrokenPipeError:
        raise  # the reader has closed the pipe
    except OSError as error:
        trouble = LayerfarmError(error.strerror or str(error), where=error.filename)
        trouble.exit_code = TROUBLE
        raise trouble from error
    if count:
        raise click.exceptions.Exit(DIFFERENT)
