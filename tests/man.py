"""``make man``: the man pages, one for each command, from ``--help``, into docs/man; tables and figures of docs/."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import click
from click_man.core import write_man_pages

from layerfarm.worker.cli.main import cli
from tests import figures, reference

PAGES = Path(__file__).resolve().parents[1] / "docs/man"
DATE = "1970-01-01"
"""The same pages on every day."""


def _eager(group: click.Group) -> click.Group:
    """``group`` with all its commands imported, which is how click-man wants them."""
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            group.add_command(_eager(command) if isinstance(command, click.Group) else command, name)
    return group


def main() -> int:
    """Write all man pages, into the directory given or else ``docs/man`` with the tables and figures of docs."""
    target = Path(sys.argv[1]) if sys.argv[1:] else PAGES
    target.mkdir(parents=True, exist_ok=True)
    for page in target.glob("*.1"):
        page.unlink()
    write_man_pages("layerfarm", _eager(cli), version=version("layerfarm"), target_dir=str(target), date=DATE)
    return 0 if sys.argv[1:] else reference.main() or figures.main()


if __name__ == "__main__":
    sys.exit(main())
