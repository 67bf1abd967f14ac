"""``layerfarm completion``."""

from __future__ import annotations

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.parsing import GoStyleCommand


@click.command("completion", cls=GoStyleCommand)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    Examples:
      layerfarm completion bash >/etc/bash_completion.d/layerfarm
      layerfarm completion zsh >~/.zfunc/_layerfarm
      layerfarm completion fish >~/.config/fish/completions/layerfarm.fish
    """
    from click.shell_completion import get_completion_class

    from layerfarm.worker.cli.main import COMPLETION_VARIABLE

    completion = get_completion_class(shell)
    assert completion is not None
    output.echo(completion(ctx.find_root().command, {}, "layerfarm", COMPLETION_VARIABLE).source())
