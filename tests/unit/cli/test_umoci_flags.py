"""The command line of umoci 0.6.0: layerfarm has every command, alias and flag of it, and takes as many values."""

from __future__ import annotations

import click
import pytest

from layerfarm.worker.cli.main import cli

IMAGE = {"--image": 1}
HISTORY = {"--no-history": 0, "--history.author": 1, "--history.comment": 1, "--history.created": 1} | {
    "--history.created_by": 1
}
COMPRESS = {"--compress": 1}
REMAP = {"--uid-map": "many", "--gid-map": "many", "--rootless": 0}
TAG = {"--tag": 1}
LISTS = ("exposedports", "env", "entrypoint", "cmd", "volume", "label")
CONFIG = {f"--config.{name}": "many" for name in LISTS} | {
    **{f"--config.{name}": 1 for name in ("user", "workingdir", "stopsignal")},
    **dict.fromkeys(("--created", "--author", "--os", "--architecture"), 1),
    **{f"--platform.{name}": 1 for name in ("os", "arch", "variant")},
    **dict.fromkeys(("--manifest.annotation", "--clear"), "many"),
}
RUNTIME_CONFIG = IMAGE | REMAP | {"--rootfs": 1}

# umoci.md A: what each command takes; 0 is a switch, 1 a value, many a flag that may be repeated.
COMMANDS: dict[str, dict[str, int | str]] = {
    "": {"--help": 0, "-h": 0, "--version": 0, "-v": 0, "--verbose": 0, "--log": 1, "--cpu-profile": 1},
    "help": {},
    "h": {},
    "init": {"--layout": 1},
    "new": IMAGE,
    "unpack": IMAGE | REMAP | {"--keep-dirlinks": 0},
    "repack": IMAGE | HISTORY | COMPRESS | {"--mask-path": "many", "--no-mask-volumes": 0, "--refresh-bundle": 0},
    "insert": IMAGE | TAG | REMAP | HISTORY | COMPRESS | {"--opaque": 0, "--whiteout": 0},
    "config": IMAGE | TAG | HISTORY | CONFIG,
    "stat": IMAGE | {"--json": 0},
    "tag": IMAGE,
    "rm": IMAGE,
    "remove": IMAGE,
    "ls": {"--layout": 1},
    "list": {"--layout": 1},
    "gc": {"--layout": 1},
    "raw unpack": IMAGE | REMAP | {"--keep-dirlinks": 0},
    "raw runtime-config": RUNTIME_CONFIG,
    "raw config": RUNTIME_CONFIG,
    "raw add-layer": IMAGE | TAG | HISTORY | COMPRESS,
    "raw mtree-validate": {"-f": 1, "-p": 1, "-K": "many", "-k": "many", "--umoci-keywords": 0, "--rootless": 0},
}


def flags(words: str) -> dict[str, int | str]:
    """The flags of layerfarm's command, and how many values each takes."""
    found: click.Command = cli
    ctx = click.Context(cli, **cli.context_settings)
    for word in words.split():
        assert isinstance(found, click.Group)
        below = found.get_command(ctx, word)
        assert below is not None, words
        found, ctx = below, click.Context(below, parent=ctx)
    taken: dict[str, int | str] = {}
    for param in found.get_params(ctx):
        if isinstance(param, click.Option):
            count = 0 if param.is_flag else "many" if param.multiple else 1
            taken |= dict.fromkeys(param.opts, count)
    return taken


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words or "umoci")
def test_every_flag_of_umoci_is_taken_with_as_many_values(words: str) -> None:
    taken = flags(words)
    assert {name: taken.get(name) for name in COMMANDS[words]} == COMMANDS[words]
