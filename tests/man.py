"""``make man``: the man pages, one for each command, from ``--help``, into docs/man; and what docs/ generates.

click-man writes NAME to COMMANDS. The sections after them are the same in every page, from the tables of
docs/exit-codes.md and docs/settings.md.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click
from click_man.core import write_man_pages

from layerfarm.worker.cli.main import cli
from tests import figures, reference, schemas

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
PAGES: Final = DOCS / "man"
_NO_DATE: Final = "1970-01-01"
"""Replaced by the date of the release: the same pages on every day."""
_FILES: Final = (
    (
        "$LAYERFARM_CONFIG, ~/.config/layerfarm/layerfarm.toml, /etc/layerfarm/layerfarm.toml",
        "Settings: the first one.",
    ),
    ("~/.cache/layerfarm", "Trees and analyses of images, which are computed again if they are missing."),
)


def main() -> int:
    """Write all man pages, into the directory given or else ``docs/man`` with tables, figures and schemas."""
    target = Path(sys.argv[1]) if sys.argv[1:] else PAGES
    target.mkdir(parents=True, exist_ok=True)
    for page in target.glob("*.1"):
        page.unlink()
    if not sys.argv[1:]:
        reference.main()
        figures.main()
        schemas.main()
    write_man_pages("layerfarm", _eager(cli), version=version("layerfarm"), target_dir=str(target), date=_NO_DATE)
    released, sections = _released(), _sections()
    for page in target.glob("*.1"):
        page.write_text(page.read_text().replace(f'"{_NO_DATE}"', f'"{released}"', 1) + sections)
    return 0


def _eager(group: click.Group) -> click.Group:
    """Return ``group`` with all its commands imported, as click-man needs them, and whole sentences for NAME."""
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                command = _eager(command)
            command.short_help = _summary(command)
            group.add_command(command, name)
    group.short_help = _summary(group)
    return group


def _summary(command: click.Command) -> str:
    """Return the first sentence of a command's help; click's own short form is cut after 45 characters."""
    first = " ".join((command.help or "").split("\n\n")[0].split())
    return re.split(r"\. (?=[A-Z])|\.$", first)[0]


def _released() -> str:
    """Return the date of the newest released version in the CHANGELOG; empty before the first."""
    found = re.search(r"^## \[\d[^]]*\] - (\d{4}-\d\d-\d\d)$", (DOCS.parent / "CHANGELOG.md").read_text(), re.MULTILINE)
    return found[1] if found else ""


def _sections() -> str:
    lines = [".SH EXIT STATUS"]
    for code, meaning in _rows("exit-codes.md", r"\d+"):
        lines += [".TP", rf"\fB{code}\fP", _roff(meaning)]
    lines += [
        ".SH ENVIRONMENT",
        _roff("Each setting NAME that `layerfarm config show` lists is read from LAYERFARM_NAME."),
    ]
    for variable, _, meaning in _rows("settings.md", r"`[A-Z_]+`"):
        if variable.strip("`") in _VARIABLES:
            lines += [".TP", rf"\fB{_roff(variable)}\fP", _roff(meaning)]
    lines.append(".SH FILES")
    for path, meaning in _FILES:
        lines += [".TP", rf"\fI{_roff(path)}\fP", _roff(meaning)]
    return "\n".join(lines) + "\n"


_VARIABLES: Final = ("LAYERFARM_CONFIG", "SOURCE_DATE_EPOCH", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
"""Those that most commands read."""


def _rows(page: str, first: str) -> list[list[str]]:
    """Return the cells of the tables' rows in a page whose first cell matches, up to the first generated table."""
    text = re.sub(r"<!-- generated.*?<!-- end -->", "", (DOCS / page).read_text(), flags=re.DOTALL)
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|"))
    return [row for row in rows if re.fullmatch(first, row[0])]


def _roff(text: str) -> str:
    """Convert a line of Markdown to roff."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("`", "").replace("\\", r"\e").replace("-", r"\-")
    return r"\&" + plain if plain[:1] in (".", "'") else plain


if __name__ == "__main__":
    sys.exit(main())
