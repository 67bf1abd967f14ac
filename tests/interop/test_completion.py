"""Completion in the real shells: what a user of bash, zsh or fish gets for a TAB."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# The completion function is called as bash calls it; the words may be anything, so they come as arguments.
BASH = """
source <(layerfarm completion bash)
function=$(complete -p layerfarm | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
compopt() { printf 'compopt %s %s\\n' "$@"; }
"$function" layerfarm "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
# zsh completes only at a prompt: a terminal is needed, and the line that a TAB leaves on it is read.
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1="> "; autoload -Uz compinit; compinit -u -d dump; source <(layerfarm completion zsh); echo rea""dy'
zpty -r shell seen '*ready*'
zpty -w -n shell "$1"$'\\t'
zpty -r shell seen "*$2*"
print -r -- "$seen"
zpty -d shell
"""


@pytest.fixture
def shell(tmp_path: Path, program: Callable[[str], str]) -> Callable[..., list[str]]:
    """Run a script of a shell with arguments, in a directory that has a layout; the lines that it prints."""
    (tmp_path / "store").mkdir()
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("LAYERFARM_", "_LAYERFARM_"))}
    variables |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "dumb", "HOME": str(tmp_path)}

    def run(name: str, *arguments: str) -> list[str]:
        done = subprocess.run(
            [program(name), *arguments],
            cwd=tmp_path,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout.splitlines()

    return run


def test_completion_in_bash(shell: Callable[..., list[str]]) -> None:
    def completed(*words: str) -> list[str]:
        return shell("bash", "--norc", "-c", BASH, "bash", *words)

    assert completed("layerfarm", "unp") == ["unpack"]
    assert completed("layerfarm", "raw", "r") == ["runtime-config"]
    assert completed("layerfarm", "config", "--config.e") == [
        "--config.exposedports",
        "--config.env",
        "--config.entrypoint",
    ]
    compressions = ["auto", "gzip", "estargz", "zstd", "zstd:chunked", "none"]
    assert completed("layerfarm", "repack", "--compress", "") == compressions
    assert completed("layerfarm", "unpack", "--image", "sto")[0] == "compopt -o dirnames"


def test_completion_in_fish(shell: Callable[..., list[str]]) -> None:
    def completed(line: str) -> list[str]:
        script = "layerfarm completion fish | source; complete --do-complete $argv[1]"
        lines = shell("fish", "--no-config", "-c", script, line)
        return sorted(text.partition("\t")[0] for text in lines if text)

    assert completed("layerfarm unp") == ["unpack"]
    assert completed("layerfarm raw r") == ["runtime-config"]
    assert completed("layerfarm config --config.e") == [
        "--config.entrypoint",
        "--config.env",
        "--config.exposedports",
    ]
    compressions = ["auto", "estargz", "gzip", "none", "zstd", "zstd:chunked"]
    assert completed("layerfarm repack --compress ") == compressions
    assert completed("layerfarm unpack --image sto") == ["store/"]


@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("layerfarm unp", "unpack"),
        ("layerfarm raw run", "runtime-config"),
        ("layerfarm config --config.stop", "--config.stopsignal"),
        ("layerfarm repack --compress zs", "zstd"),
        ("layerfarm unpack --image sto", "store/"),
    ],
)
def test_completion_in_zsh(shell: Callable[..., list[str]], typed: str, becomes: str) -> None:
    assert becomes in "\n".join(shell("zsh", "-f", "-c", ZSH, "zsh", typed, becomes))
