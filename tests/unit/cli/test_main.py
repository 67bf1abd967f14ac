"""Exit codes, messages, help: what holds for every command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.worker.cli import init_cmd, list_cmd
from layerfarm.worker.cli.main import ALIASES, COMMANDS, cli
from layerfarm.worker.cli.parsing import GoStyleCommand, GoStyleGroup
from tests.unit.cli.conftest import Ran, Run


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    ctx = click.Context(cli)

    def visit(group: click.Group, words: tuple[str, ...]) -> None:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            assert command is not None
            found.append((*words, name))
            if isinstance(command, click.Group):
                visit(command, (*words, name))

    visit(cli, ())
    return found


@pytest.mark.parametrize("command", [GoStyleCommand("c"), GoStyleGroup("g")], ids=["command", "group"])
def test_the_short_form_of_help_is_there_in_any_context(command: click.Command) -> None:
    (first,) = command.get_params(click.Context(command))
    assert first.opts == ["--help", "-h"]


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_a_help_with_text(layerfarm: Run, words: tuple[str, ...], flag: str) -> None:
    done = layerfarm(*words, flag)
    assert done.code == 0
    assert done.out.startswith(f"Usage: layerfarm {' '.join(words)}")
    assert len(done.out.splitlines()) > 5
    assert layerfarm("help", *words).out == done.out


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"help"}))
def test_the_help_of_every_command_shows_an_example(layerfarm: Run, name: str) -> None:
    assert f"layerfarm {name}" in layerfarm(name, "--help").out.split("Example", 1)[-1]


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_an_alias_is_the_command(alias: str) -> None:
    ctx = click.Context(cli)
    assert cli.get_command(ctx, alias) is cli.get_command(ctx, ALIASES[alias])


def test_without_a_command_the_help_is_shown(layerfarm: Run) -> None:
    assert layerfarm().code == 0
    assert layerfarm().out == layerfarm("--help").out == layerfarm("help").out


@pytest.mark.parametrize("flag", ["--version", "-v"])
def test_the_version_names_the_specifications(layerfarm: Run, flag: str) -> None:
    done = layerfarm(flag)
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == [
        "layerfarm",
        "image-spec:",
        "runtime-spec:",
        "python:",
    ]


def test_called_as_umoci_the_version_is_the_one_of_umoci(layerfarm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts grep for the name and for a minimum."""
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/umoci", "--version"])
    first, *rest = layerfarm("--version").out.splitlines()
    assert first == "umoci version 0.6.0"
    assert [line.split()[0] for line in rest] == ["image-spec:", "runtime-spec:", "layerfarm:", "python:"]


def test_called_as_umoci_gc_has_no_grace(layerfarm: Run, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAYERFARM_GC_GRACE", raising=False)
    for name, left in (("layerfarm", 2), ("umoci", 0)):
        monkeypatch.setattr(sys, "argv", [name])
        for words in (["new", "--image"], ["rm", "--image"]):
            assert layerfarm(*words, "store:v1").code == 0
        assert layerfarm("gc", "--layout", "store").code == 0
        assert len(list((store / "blobs/sha256").iterdir())) == left


@pytest.mark.parametrize("level", ["WARN", "Info", "warning"])
def test_log_levels_are_taken_in_any_case_as_umoci_does(layerfarm: Run, store: Path, level: str) -> None:
    assert layerfarm("--log", level, "ls", "--layout", "store") == Ran(0, "", "")


@pytest.mark.parametrize("word", ["help", "h"])
def test_raw_has_a_help_of_its_own(layerfarm: Run, word: str) -> None:
    assert layerfarm("raw", word).out == layerfarm("raw", "--help").out
    assert layerfarm("raw", word, "unpack").out == layerfarm("raw", "unpack", "--help").out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "No such command 'nonsense' (see 'layerfarm --help')"),
        (["help", "nonsense"], "No such command 'nonsense' (see 'layerfarm help --help')"),
        (["help", "tag", "deeper"], "No such command 'tag deeper' (see 'layerfarm help --help')"),
        (["stat"], "Missing option '--image' (see 'layerfarm stat --help')"),
        (["stat", "--bogus"], "No such option '--bogus' (see 'layerfarm stat --help')"),
        (["init", "--layout", ""], "Invalid value for '--layout': path is empty (see 'layerfarm init --help')"),
        (["init", "--layout", "a:b"], "Invalid value for '--layout': path contains ':': 'a:b'"),
        (["config", "--image", "x", "--tag", ""], "Invalid value for '--tag': tag is empty"),
        (["insert", "--image", "x", "--tag=", "f", "/f"], "Invalid value for '--tag': tag is empty"),
        (["raw", "add-layer", "--image", "x", "--tag=", "f"], "Invalid value for '--tag': tag is empty"),
        (["new", "--image", ":x"], "Invalid value for '--image': path is empty"),
        (["new", "--image", "x:"], "Invalid value for '--image': tag is empty"),
        (["unpack", "--image", "x"], "Missing argument 'BUNDLE'"),
        (["unpack", "--image", "x", ""], "Invalid value for 'BUNDLE': path is empty"),
        (["tag", "--image", "x", "a", "b"], "Got unexpected extra argument (b)"),
        (["--verbose", "--log=info", "init"], "--verbose is --log=info: give one of the two"),
        (["--log=loud", "init"], "Invalid value for '--log'"),
        (["unpack", "--image", "x", "--uid-map", "1", "b"], "Invalid value for '--uid-map': '1' is not CONTAINER:HOST"),
        (["unpack", "--image", "x", "--gid-map", "0:0:0", "b"], "Invalid value for '--gid-map': '0:0:0' exceeds the"),
        (["unpack", "--image", "x", "--gid-map", "0:4294967295:2", "b"], "Invalid value for '--gid-map'"),
        (["repack", "--image", "x", "--compress=lzma", "b"], "Invalid value for '--compress'"),
        (["repack", "--image", "x", "--mask-path", "", "b"], "Invalid value for '--mask-path': '' is the root"),
        (["build", "--rootfs", "r", "--image", "x", "--mask-path=/a/.."], "Invalid value for '--mask-path': '/a/..'"),
        (
            ["repack", "--image", "x", "--no-history", "--history.author=me", "b"],
            "--no-history and --history.* exclude",
        ),
        (["repack", "--image", "x", "--history.created=2020-01-01", "b"], "Invalid value for '--history.created'"),
        (["repack", "--image", "x", "--history.created=2020-13-01T00:00:00Z", "b"], "Invalid value"),
        (["repack", "--image", "x", "--detach", "b"], "--detach needs a farm"),
        (["jobs", "ls"], "no farm: give --farm or set LAYERFARM_FARM"),
        (["jobs", "cancel"], "Missing argument 'JOB...'"),
        (["completion", "tcsh"], "Invalid value for '{bash|zsh|fish}'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_usage_error_is_one_line_and_exit_code_2(layerfarm: Run, args: list[str], message: str) -> None:
    done = layerfarm(*args)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"layerfarm: {message}")
    assert done.err.count("\n") == 1


def test_a_malformed_source_date_epoch_is_a_usage_error(
    layerfarm: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    done = layerfarm("new", "--image", "store:x")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("layerfarm: $SOURCE_DATE_EPOCH is not a number of seconds: 'yesterday'")


def _raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(**values: object) -> None:
        raise error

    monkeypatch.setattr(list_cmd.command, "callback", fail)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (LayerfarmError("it broke", where="a\nb", hint="mend it"), 1, "layerfarm: it broke: a\\nb (mend it)\n"),
        (PermissionError(13, "Permission denied", "/x\ny"), 1, "layerfarm: Permission denied: /x\\ny\n"),
        (OSError(28, "No space left on device"), 1, "layerfarm: No space left on device\n"),
        (KeyboardInterrupt(), 130, ""),
        (
            ZeroDivisionError("by\nzero"),
            1,
            "layerfarm: internal error: ZeroDivisionError: by zero; please report it (--log=debug shows where)\n",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_is_one_line_and_never_a_traceback(
    layerfarm: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)  # others are told of --rootless
    _raising(monkeypatch, error)
    assert layerfarm("ls", "--layout=x") == (code, "", message)


def test_the_traceback_of_a_bug_is_shown_by_log_debug(layerfarm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _raising(monkeypatch, ZeroDivisionError("bug"))
    done = layerfarm("--log=debug", "ls", "--layout=x")
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err
    assert done.err.startswith("layerfarm: internal error")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_that_end_a_command_unwind_it(
    layerfarm: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    cleaned = []

    def wait_for_it(**values: object) -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            cleaned.append(True)

    monkeypatch.setattr(init_cmd.command, "callback", wait_for_it)
    with pytest.raises(SystemExit) as left:
        layerfarm("init", "--layout=x")
    assert left.value.code == code
    assert cleaned == [True]
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_hangup_that_nohup_ignores_ends_nothing(layerfarm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_cmd.command, "callback", lambda **values: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert layerfarm("init", "--layout=x").code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_reader_that_leaves_early_is_no_error_message(store: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "layerfarm.worker.cli", "--help"]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, timeout=60)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_calls_back(layerfarm: Run, shell: str) -> None:
    done = layerfarm("completion", shell)
    assert done.code == 0
    assert "_LAYERFARM_COMPLETE" in done.out


def test_completion_offers_commands_and_options(store: Path) -> None:
    def completed(*words: str) -> list[str]:
        setting = {
            "_LAYERFARM_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        command = [sys.executable, "-m", "layerfarm.worker.cli"]
        done = subprocess.run(command, env=os.environ | setting, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.splitlines()

    assert completed("layerfarm", "unp") == ["plain,unpack"]
    assert "plain,--config.env" in completed("layerfarm", "config", "--config.e")
    assert completed("layerfarm", "unpack", "--image", "sto") == ["dir,sto"]


def test_a_limit_is_set_for_one_command_and_a_wrong_one_is_reported(
    layerfarm: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERFARM_LIMIT_INDEX_BYTES", "1M")
    done = layerfarm("--limit", "index-bytes=1", "ls", "--layout", "store")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "file is larger than 1 bytes" in done.err and "--limit index_bytes=N" in done.err
    done = layerfarm("--limit", "index_bytes=1K", "ls", "--layout", "store")
    assert (done.code, done.out, done.err) == (0, "", "")
    done = layerfarm("--limit", "indexes=1K", "ls", "--layout", "store")
    assert done.code == 1 and "unknown limit 'indexes'" in done.err
