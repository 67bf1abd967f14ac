"""The ``layerfarm`` command: its subcommands, and the conversion of errors to one line and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence

import click

from layerfarm.jobs.errors import LayerfarmError, display
from layerfarm.jobs.limits import set_limit
from layerfarm.worker.cli import output
from layerfarm.worker.cli.called_as import UMOCI_VERSION, as_umoci
from layerfarm.worker.cli.parsing import LateGroup, Listed
from layerfarm.worker.cli.session import Session
from layerfarm.worker.configuration import apply_limits, settings_file
from layerfarm.worker.signals import terminable

COMPLETION_VARIABLE = "_LAYERFARM_COMPLETE"

EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


COMMANDS = {
    "build": Listed("image", "makes an image of a directory, on top of a base image if one is given", "build_cmd"),
    "unpack": Listed("image", "unpacks an image into a runtime bundle", "unpack_cmd"),
    "repack": Listed("image", "turns the changes in a bundle into a layer and a new tag", "repack_cmd"),
    "insert": Listed("image", "inserts a file or directory, or a deletion, as a new layer", "insert_cmd"),
    "config": Listed("image", "changes the configuration of an image; `config show`: layerfarm's own", "config_cmd"),
    "new": Listed("image", "creates an empty image under a tag", "new_cmd"),
    "stat": Listed("image", "shows the manifest, configuration and history of an image", "stat_cmd"),
    "tag": Listed("image", "gives an image another tag", "tag_cmd"),
    "remove": Listed("image", "removes a tag (alias: rm)", "remove_cmd"),
    "diff": Listed("image", "shows how two images, bundles, directories or mtree files differ", "diff_cmd"),
    "revert": Listed("image", "restores a changed bundle to its image", "revert_cmd"),
    "mtree": Listed("image", "writes the mtree manifest of a directory", "mtree_cmd"),
    "recompress": Listed("re-layer", "recompresses the layers of an image", "recompress_cmd"),
    "rechunk": Listed("re-layer", "splits an image into layers by content", "rechunk_cmd"),
    "squash": Listed("re-layer", "merges layers of an image into one", "squash_cmd"),
    "rebase": Listed("re-layer", "rebases an image, after checking what it needs", "rebase_cmd"),
    "strip": Listed("re-layer", "removes paths from an image and all of its layers", "strip_cmd"),
    "flatten": Listed("re-layer", "writes the tree of an image as a directory or a tar", "flatten_cmd"),
    "verify": Listed("re-layer", "checks the proofs of an image again", "verify_cmd"),
    "init": Listed("layout", "creates an OCI layout", "init_cmd"),
    "list": Listed("layout", "lists the tags of a layout (alias: ls)", "list_cmd"),
    "gc": Listed("layout", "removes the blobs that no tag leads to", "gc_cmd"),
    "validate": Listed("layout", "checks an image, a layout or a bundle, and reports every fault", "validate_cmd"),
    "catalog": Listed("re-layer", "re-layers many images together, and reports what that saves", "catalog_cmd"),
    "up": Listed("farm", "runs a Redis and a worker for this machine until interrupted", "up_cmd"),
    "worker": Listed("farm", "runs a worker of the farm on this machine", "worker_cmd"),
    "submit": Listed("farm", "queues a job of any kind from a JSON document", "submit_cmd"),
    "jobs": Listed("farm", "lists, shows, follows, cancels and retries the jobs of the farm", "jobs_cmd"),
    "ping": Listed("farm", "checks that workers take messages, for health checks", "ping_cmd"),
    "top": Listed("farm", "shows the queues, workers and jobs of the farm as they change", "top_cmd"),
    "doctor": Listed("farm", "reports problems with a farm and how to fix them", "doctor_cmd"),
    "demo": Listed("farm", "builds and unpacks an image on a private farm, and compares", "demo_cmd"),
    "raw": Listed("other", "the single steps of unpack and repack, for other tools", "raw_cmd"),
    "completion": Listed("other", "prints the completion script for bash, zsh or fish", "completion_cmd"),
    "help": Listed("other", "shows the help of a command", "help_cmd"),
}
ALIASES = {"rm": "remove", "ls": "list", "h": "help"}


class Layerfarm(LateGroup):
    """The top-level command."""

    listed = COMMANDS
    aliases = ALIASES


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    import platform
    from importlib.metadata import version

    ours = version("layerfarm")
    output.echo(f"umoci version {UMOCI_VERSION}" if as_umoci() else f"layerfarm version {ours}")
    output.echo("  image-spec: 1.1.1")
    output.echo("  runtime-spec: 1.2.1")
    if as_umoci():
        output.echo(f"  layerfarm: {ours}")
    output.echo(f"  python: {platform.python_version()}")
    ctx.exit()


@click.group(
    cls=Layerfarm,
    invoke_without_command=True,
    context_settings={"max_content_width": 100},
    epilog="""\
\b
Examples:
  layerfarm init --layout store
  layerfarm build --rootfs /srv/rootfs --image store:v1
  layerfarm unpack --image store:v1 bundle
  layerfarm --farm redis://queue/0 repack --image store:v2 bundle

The commands and flags of umoci 0.6 work here too: put `layerfarm` where a script says `umoci`.""",
)
@click.option("--verbose", is_flag=True, help="The same as --log=info.")
@click.option(
    "--log",
    "level",
    metavar="LEVEL",
    type=click.Choice((*output.LEVELS, "warning"), case_sensitive=False),
    help="Log level on stderr: debug, info, warn (the default), error or fatal.",
)
@click.option(
    "--farm",
    metavar="URL",
    envvar="LAYERFARM_FARM",
    show_envvar=True,
    help="Run build, unpack, repack and transforms as jobs of the farm at this Redis; without it, as"
    " the settings file says (see `layerfarm config show`). The store is a disk that this machine shares with the"
    " workers: all other commands act on it directly.",
)
@click.option(
    "--limit",
    "limits",
    metavar="NAME=N",
    multiple=True,
    help="Set a limit on inputs for this process and those that it starts, for example"
    " entries=20M. See docs/limits.md.",
)
@click.option("--cpu-profile", metavar="FILE", type=click.Path(dir_okay=False), hidden=True)
@click.option(
    "--version",
    "-v",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@click.pass_context
def cli(
    ctx: click.Context,
    verbose: bool,
    level: str | None,
    farm: str | None,
    limits: tuple[str, ...],
    cpu_profile: str | None,
) -> None:
    """Turn root filesystems into OCI image layers and OCI images into runnable bundles.

    Commands run in this shell, or as jobs of a farm of workers, with the same resulting bytes.
    """
    if verbose and level is not None:
        raise click.UsageError("--verbose is --log=info: give one of the two")
    level = "warn" if level == "warning" else level or ("info" if verbose else None)
    output.set_level(level or "warn")
    for text in limits:
        set_limit(text)
    file = settings_file()
    if file is not None and farm is None and isinstance(file.values.get("farm"), str):
        farm = file.values["farm"]
    ctx.obj = Session(farm or None, level, frozenset() if file is None else apply_limits(file))
    if cpu_profile is not None:
        _profile(ctx, cpu_profile)
    if ctx.invoked_subcommand is None:
        output.echo(ctx.get_help())


def _profile(ctx: click.Context, path: str) -> None:
    import cProfile

    profile = cProfile.Profile()
    profile.enable()

    def save() -> None:
        profile.disable()
        profile.dump_stats(path)

    ctx.call_on_close(save)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; an error is one line on stderr, never a traceback."""
    if COMPLETION_VARIABLE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "layerfarm", COMPLETION_VARIABLE, os.environ[COMPLETION_VARIABLE])
    # Commands stage files and start processes, and clean up in `finally`.
    with terminable():
        code = _run(list(sys.argv[1:] if argv is None else argv))
        output.settle()
    return code if code or output.all_was_said() else 1


def _run(args: list[str]) -> int:
    try:
        with cli.make_context("layerfarm", args) as ctx:
            cli.invoke(ctx)
        with output.to_stdout():
            sys.stdout.flush()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        return _usage(error)
    except LayerfarmError as error:
        output.error(str(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_BROKEN_PIPE
    except OSError as error:
        return _system_error(error)
    except Exception as error:
        output.error(f"internal error: {type(error).__name__}: {error}; please report it (--log=debug shows where)")
        output.traceback()
        return 1
    return 0


def _usage(error: click.ClickException) -> int:
    hint = ""
    if isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f" (see '{error.ctx.command_path} --help')"
    output.error(f"{error.format_message().rstrip('.')}{hint}")
    return error.exit_code


def _system_error(error: OSError) -> int:
    where = "" if error.filename is None else f": {display(os.fspath(error.filename))}"
    hint = ""
    if error.errno in (errno.EPERM, errno.EACCES) and os.geteuid() != 0:
        hint = " (as an ordinary user, --rootless may help)"
    output.error(f"{error.strerror or error}{where}{hint}")
    output.traceback()
    return 1
