"""The commands of layerfarm in a text, and whether the command line takes them."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import click
import pytest

from layerfarm.worker.cli.main import cli
from layerfarm.worker.cli.session import Session

_ENDS = frozenset("();<>|&")
_BEFORE = re.compile(r"[A-Za-z_]\w*=.*|!|then|do|exec|env|sudo|time")
_PLACEHOLDER = re.compile(r"[A-Z]+\d?(:[A-Z]+)?")


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every ``layerfarm`` that a shell would run when it is given ``text``."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:
            # Prose with an apostrophe, or half of a quoted text: not a line of a shell.
            continue
        yield from _in_line(words)


def _in_line(words: list[str]) -> Iterator[list[str]]:
    starts = True
    rest = iter(words)
    for word in rest:
        if starts and word.rpartition("/")[2] == "layerfarm":
            arguments: list[str] = []
            ended = False
            for argument in rest:
                if set(argument) <= _ENDS:
                    ended = True
                    # The number of a descriptor: 2>file.
                    if argument.startswith(">") and arguments and arguments[-1].isdigit():
                        arguments.pop()
                    break
                arguments.append(argument)
            yield arguments
            starts = ended
            continue
        starts = bool(set(word) <= _ENDS and not word.startswith((">", "<"))) or bool(
            starts and _BEFORE.fullmatch(word)
        )


def refusal(arguments: list[str], *, whole: bool = True) -> str:
    """Why the command line does not take these arguments; empty if it does. Nothing is run.

    ``whole``: it is a command to be typed, not the mention of one, which may leave out what it needs and have
    words like FILE in the place of values.
    """
    if not whole and any("…" in argument for argument in arguments):
        return ""
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(io.StringIO()):
        patched.setattr(click.Command, "invoke", lambda self, ctx: None)
        try:
            cli.main(arguments, "layerfarm", standalone_mode=False, obj=Session(None, None, frozenset()))
        except click.exceptions.Exit:
            return ""
        except click.MissingParameter as error:
            return error.format_message() if whole else ""
        except click.BadParameter as error:
            return "" if not whole and _of_placeholder(arguments) else error.format_message()
        except click.ClickException as error:
            return error.format_message()
    return ""


def leaves(value: Any) -> Iterator[str]:
    """All strings in a document that was YAML."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from leaves(each)
    elif isinstance(value, str):
        yield value


def _of_placeholder(arguments: list[str]) -> bool:
    return any(_PLACEHOLDER.fullmatch(argument.rpartition("=")[2]) for argument in arguments)
