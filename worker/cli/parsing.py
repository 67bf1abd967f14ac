"""Command-line conventions of umoci's users, those of Go's flag package (umoci.md A).

In addition to click: ``-image X`` means ``--image X``, and a switch may be given as ``--rootless=true`` or
``--rootless=false``. Options before or after the arguments, ``--flag=value`` and repeated options come from click.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import click

_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))


class _ShortHelp(click.Command):
    """A command that has ``-h`` beside ``--help`` in every context: click keeps the option that the first one gave."""

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        ctx.help_option_names = ["--help", "-h"]
        return super().get_help_option_names(ctx)


class GoStyleCommand(_ShortHelp):
    """A command that takes Go's spellings of its options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, go_style(ctx, self.get_params(ctx), args, options_end_at_positional=False))


class GoStyleGroup(_ShortHelp, click.Group):
    """A group that takes Go's spellings of its own options and leaves its subcommand's alone."""

    command_class = GoStyleCommand

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Without a subcommand umoci shows the help and succeeds; click would report a usage error.
        if not args and self.no_args_is_help:
            args = ["--help"]
        return super().parse_args(ctx, go_style(ctx, self.get_params(ctx), args, options_end_at_positional=True))


class Listed(NamedTuple):
    """A subcommand as the help lists it, before its module is imported."""

    section: str
    help: str
    module: str
    """Its module in :mod:`layerfarm.worker.cli`, which has it as ``command``."""


class LateGroup(GoStyleGroup):
    """A group that imports the module of a subcommand only when it is called, so that the small ones start fast."""

    listed: Mapping[str, Listed]
    aliases: Mapping[str, str]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.listed)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = self.listed.get(self.aliases.get(cmd_name, cmd_name))
        if row is None:
            return None
        command: click.Command = importlib.import_module(f"layerfarm.worker.cli.{row.module}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(row.section for row in self.listed.values()):
            with formatter.section(f"Commands, {section}" if section else "Commands"):
                formatter.write_dl([(name, row.help) for name, row in self.listed.items() if row.section == section])


def go_style(
    ctx: click.Context, params: Iterable[click.Parameter], args: list[str], *, options_end_at_positional: bool
) -> list[str]:
    """Convert ``args`` to click's spelling. The value of an option is never changed."""
    switches = {name: option.is_flag for option in params if isinstance(option, click.Option) for name in option.opts}
    out: list[str] = []
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if arg == "--" or (options_end_at_positional and (not arg.startswith("-") or arg == "-")):
            return [*out, arg, *rest]
        if arg.startswith("-") and f"-{name}" in switches:
            name = f"-{name}"
        if name not in switches:
            out.append(arg)
        elif switches[name]:
            if not equals or _boolean(ctx, name, value):
                out.append(name)
        else:
            out.append(f"{name}={value}" if equals and name.startswith("--") else name)
            if equals and not name.startswith("--"):
                out.append(value)
            elif not equals:
                out.extend(next_value for next_value in (next(rest, None),) if next_value is not None)
    return out


def _boolean(ctx: click.Context, name: str, value: str) -> bool:
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise click.UsageError(f"Invalid value for '{name}': {value!r} is neither true nor false.", ctx)
