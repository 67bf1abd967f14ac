"""``make man``: the tables of the reference pages that are generated from the code.

A page has ``<!-- generated: NAME -->`` before such a table and ``<!-- end -->`` after it; the text around them is
written by hand.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import click
from pydantic import SecretStr

from layerfarm.jobs import errors
from layerfarm.worker import settings
from layerfarm.worker.catalog.serve.metrics import ServeMetrics
from layerfarm.worker.cli.main import COMMANDS, cli
from layerfarm.worker.jobstore.states import MOVES, Phase
from layerfarm.worker.monitoring import metrics
from layerfarm.worker.monitoring.census import Census
from tests.schemas import OF_JOBS, OUTPUTS, OWN

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
_TABLE: Final = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_BOTH: Final = "workers, submitters"
READERS: Final = {
    "farm": _BOTH,
    "queue": _BOTH,
    "class": "submitters",
    "submitter": "submitters",
    "most_queued": "submitters",
    "key_file": "submitters",
    "signature_valid": _BOTH,
    "job_expires": _BOTH,
    "job_time_limit": _BOTH,
    "look_every": _BOTH,
}
"""Settings that others than the workers read."""
_DEFAULTS: Final = {
    "concurrency": "number of CPUs",
    "shards": "`concurrency`",
    "threads": "number of CPUs",
    "submitter": "`USER@HOST`",
    "user": "the worker's own user",
}
"""Defaults that depend on the machine or on another setting."""


def settings_table() -> Iterator[str]:
    """A row for each field of ``Settings``."""
    texts = _texts(settings.Settings)
    yield from ("| variable | value | read by | meaning |", "|---|---|---|---|")
    for key, field in sorted((key, field) for field, key in settings._KEYS.items()):
        info = settings.Settings.model_fields[field]
        default = _DEFAULTS.get(key) or _shown(info.default)
        value = f"{_value(info.annotation, texts[field])}, default {default}"
        yield _row(f"`LAYERFARM_{key.upper()}`", value, READERS.get(key, "workers"), texts[field])


def errors_table() -> Iterator[str]:
    """A row for each class of the error tree; a subclass follows its base."""
    yield from ("| error | kind of | exit code | raised when |", "|---|---|---|---|")
    for error, base in _tree(errors.LayerfarmError):
        name = f"`{error.__name__}`"
        yield _row(name, f"`{base.__name__}`" if base else "", str(error.exit_code), _summary(error))


def metrics_table() -> Iterator[str]:
    """A row for each metric of a worker, then for each of the farm."""
    yield from ("| metric | type | labels | meaning |", "|---|---|---|---|")
    for metric in vars(metrics.Metrics()).values():
        name = f"{metric._name}_total" if metric._type == "counter" else metric._name
        yield _metric(name, metric._type, metric._labelnames, metric._documentation)
    job = Counter({("build", "queued", "bulk"): 1})
    for family in metrics._Farm(
        lambda: Census(jobs=job, queues={"q": 1}, oldest={"bulk": 1.0}, redis_bytes=1)
    ).collect():
        yield _metric(family.name, family.type, family.samples[0].labels, family.documentation)


def serve_metrics_table() -> Iterator[str]:
    """A row for each metric of ``catalog serve``."""
    yield from ("| metric | type | labels | meaning |", "|---|---|---|---|")
    for metric in (one for one in vars(ServeMetrics()).values() if hasattr(one, "_labelnames")):
        name = f"{metric._name}_total" if metric._type == "counter" else metric._name
        yield _metric(name, metric._type, metric._labelnames, metric._documentation)


def kinds_table() -> Iterator[str]:
    """A row for each kind of job."""
    yield from ("| kind of job | request | result | stages |", "|---|---|---|---|")
    for kind in sorted(OWN):
        flow = OWN[kind]
        types = (("request", flow.request), ("result", flow.result))
        schema = [f"[`{type_.__name__}`](schemas/{kind}.{name}.json)" for name, type_ in types]
        yield _row(f"`{kind}`", *schema, ", ".join(stage.name for stage in flow.stages))


def outputs_table() -> Iterator[str]:
    """A row for each command with ``--json``."""
    yield from ("| command | schema of `--json` | form |", "|---|---|---|")
    rows = [
        _row(f"`layerfarm {command}`", f"[`{kind}.result.json`](schemas/{kind}.result.json)", "one object")
        for command, kind in OF_JOBS.items()
    ]
    rows += [
        _row(f"`layerfarm {command}`", f"[`{name}.json`](schemas/{name}.json)", output.form)
        for name, output in OUTPUTS.items()
        for command in output.commands
    ]
    yield from sorted(rows)


def states_table() -> Iterator[str]:
    """A row for each change of a job's state."""
    yield from ("| from | operation | to | by | when |", "|---|---|---|---|---|")
    for move in MOVES:
        before = "" if move.before is Phase.ABSENT else move.before
        yield _row(before, f"`{move.operation}`", move.after, move.who, move.when)


def commands_text() -> Iterator[str]:
    """A section for each command, from its help."""
    for section in dict.fromkeys(listed.section for listed in COMMANDS.values()):
        yield from (f"## Commands: {section}", "")
        with _root() as context:
            for name, listed in COMMANDS.items():
                if listed.section == section:
                    command = cli.get_command(context, name)
                    assert command is not None
                    yield from _command(command, click.Context(command, info_name=name, parent=context))
    yield from ("## Options of all commands", "", *_options(cli, _root()))


TABLES: Final[dict[str, Callable[[], Iterator[str]]]] = {
    "commands": commands_text,
    "kinds": kinds_table,
    "outputs": outputs_table,
    "states": states_table,
    "settings": settings_table,
    "errors": errors_table,
    "metrics": metrics_table,
    "serve-metrics": serve_metrics_table,
}


def written(text: str) -> str:
    """A page with its generated tables as they are now."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{table(found[2])}\n\n{found[3]}", text)


def table(name: str) -> str:
    """The text of one of ``TABLES``."""
    return "\n".join(TABLES[name]()).rstrip()


def _root() -> click.Context:
    """The context of ``layerfarm``, as wide on every terminal."""
    return click.Context(cli, info_name="layerfarm", terminal_width=100)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    yield from (f"### {context.command_path}", "", "```text", command.get_usage(context), "```", "")
    for paragraph in inspect.cleandoc("\n\n".join(filter(None, (command.help, command.epilog)))).split("\n\n"):
        # click keeps the lines of a paragraph that begins with a backspace.
        if paragraph.startswith("\b"):
            title, *lines = paragraph.lstrip("\b\n").splitlines()
            yield from (title, "", "```text", *(line.removeprefix("  ") for line in lines), "```", "")
        else:
            yield from (_plain(" ".join(paragraph.split())), "")
    yield from _options(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _command(below, click.Context(below, info_name=name, parent=context))


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [_option(*record) for record in records if record and record[1] and "--help" not in record[0]]
    if rows:
        yield from ("| option | meaning |", "|---|---|", *rows, "")


def _option(names: str, text: str) -> str:
    # A vertical line ends the cell of a table, in code too.
    name, choices = re.fullmatch(r"(.*?)(?: \[(.*\|.*)\])?", names).groups()
    return _row(f"`{name}`" + (f" {', '.join(choices.split('|'))}" if choices else ""), _plain(text))


def _plain(text: str) -> str:
    """Text of the terminal as Markdown: only what stands in backquotes has a meaning."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<\[])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _tree(error: type[errors.LayerfarmError]) -> Iterator[tuple[type[errors.LayerfarmError], type | None]]:
    base = error.__base__ if error is not errors.LayerfarmError else None
    yield error, base
    for below in error.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from _tree(below)


def _texts(model: type) -> dict[str, str]:
    """The docstrings of the fields of a class."""
    (body,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def _value(annotation: Any, text: str) -> str:
    """The kind of value, and its unit."""
    if isinstance(annotation, types.UnionType):
        (annotation,) = set(get_args(annotation)) - {type(None)}
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        choices = tuple(annotation)
    if choices:
        return " or ".join(f"`{value}`" for value in choices)
    if get_origin(annotation) is tuple:
        return "directories" if get_args(annotation)[0] is Path else "names"
    first = text.partition(" ")[0].lower()
    if first in ("seconds", "bytes"):
        return first
    return {bool: "0 or 1", int: "number", Path: "path", SecretStr: "address"}.get(annotation, "text")


def _shown(default: Any) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return str(int(default))
    return f"{default:,g}" if isinstance(default, int | float) else f"`{default}`"


def _summary(error: type) -> str:
    return re.sub(r" \(law \d+, docs/architecture\.md\)", "", " ".join((error.__doc__ or "").split()))


def _metric(name: str, kind: str, labels: Any, text: str) -> str:
    return _row(f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), text)


def _row(*cells: str) -> str:
    return f"| {' | '.join(re.sub('`{2}', '`', cell).replace('|', '&#124;') for cell in cells)} |"


def main() -> int:
    """Write the tables of all pages again."""
    for page in sorted(DOCS.glob("*.md")):
        page.write_text(written(page.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
