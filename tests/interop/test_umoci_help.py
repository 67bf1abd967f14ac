"""Help of Debian's umoci: no command or flag of it is missing here."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

from tests.unit.cli.test_umoci_flags import flags


def test_every_command_and_flag_in_the_help_of_umoci_is_taken(program: Callable[[str], str]) -> None:
    umoci = program("umoci")
    commands = _commands(umoci)
    assert len(commands) == 20 and {"raw config", "rm", "ls", "raw add-layer", "h"} <= set(commands)
    missing = {words: _flags(_help(umoci, words)) - flags(words).keys() for words in ("", *commands)}
    assert {words: names for words, names in missing.items() if names} == {}


def _commands(umoci: str, above: str = "") -> list[str]:
    text = _help(umoci, above).partition("COMMANDS:")[2].partition("OPTIONS:")[0]
    found = []
    for line in re.findall(r"^ {3,}([a-z][\w-]*(?:, [\w-]+)*) {2,}\S", text, re.MULTILINE):
        for name in line.split(", "):
            found.append(f"{above} {name}".strip())
    return [*found, *(_commands(umoci, "raw") if not above else ())]


def _help(umoci: str, words: str) -> str:
    return subprocess.run([umoci, *words.split(), "--help"], capture_output=True, text=True, check=True).stdout


def _flags(text: str) -> set[str]:
    return set(re.findall(r"(?:^ +|, )(--?[a-z][\w.-]*)", text.partition("OPTIONS:")[2], re.MULTILINE))
