"""``layerfarm gc``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from layerfarm.worker.cli import output
from layerfarm.worker.cli.called_as import as_umoci
from layerfarm.worker.cli.flags import DurationType, layout_option
from layerfarm.worker.cli.parsing import GoStyleCommand
from layerfarm.worker.plural import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerfarm.jobs.store import Layout
    from layerfarm.jobs.store.gc import Collected


@click.command("gc", cls=GoStyleCommand)
@layout_option
@click.option(
    "--grace",
    type=DurationType(),
    default=lambda: "0s" if as_umoci() else "2h",
    show_default="2h; 0s when called as umoci",
    metavar="DURATION",
    envvar="LAYERFARM_GC_GRACE",
    show_envvar=True,
    help="Keep blobs stored or used within this time, which another tool may still tag. 0s: as umoci.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be moved, deleted and freed, and change nothing.")
@click.option("--why", metavar="DIGEST", help="Print why a blob is kept, or that it is not; remove nothing.")
def command(layout: Path, grace: float, dry_run: bool, why: str | None) -> None:
    """Remove unreferenced blobs, and files that crashed jobs left in the layout.

    Blobs are kept if a tag references them, if a queued or running job holds a lease of them, or while they are
    younger than the grace period. All others are moved to a trash and deleted by a later gc after the grace period;
    until then they are restored if a tag or a reader needs them. So gc is safe while others write to the layout.
    --grace=0s deletes at once, as umoci's gc, except for jobs' blobs. Workers and layerfarm's commands may keep running
    then, but not umoci, skopeo, buildah or another program that writes into the layout.
    Nothing is removed if any manifest that a tag leads to cannot be read; manifests that an index names and the layout
    does not hold, as docker save leaves those of other platforms, are skipped with a warning. Prints nothing else, as
    umoci, unless --dry-run or --verbose is given.

    \b
    Examples:
      layerfarm gc --layout store
      layerfarm gc --layout store --dry-run
      layerfarm gc --layout store --grace=0s
      layerfarm gc --layout store --why sha256:5f0e…
    """
    from layerfarm.jobs.store import Layout

    if why is not None:
        _explain(Layout.open(layout), why, grace)
    else:
        _collect(Layout.open(layout), grace, dry_run)


def _collect(layout: Layout, grace: float, dry_run: bool) -> None:
    from layerfarm.jobs.errors import display
    from layerfarm.jobs.store.gc import collect

    done = collect(layout, grace, dry_run=dry_run)
    say, verb = (output.say, "would {}".format) if dry_run else (output.info, "{}d".format)
    for digest, size in done.blobs if grace else ():
        say(f"{verb('move')} {digest} {size} to the trash")
    for digest, size in done.deleted:
        say(f"{verb('delete')} {digest} {size}")
    for path, size in done.leftovers:
        say(f"{verb('delete')} {display(path.relative_to(layout.path))} {size}")
    for digest in done.restored:
        say(f"{verb('restore')} {digest} from the trash")
    if done.leased:
        say(f"held by jobs: {counted(done.leased, 'blob')}, {_bytes(done.leased_bytes)}")
    for line in _sums(done, grace, verb):
        say(line)
    if done.absent:
        output.warning(
            f"manifests that indexes name and this layout does not hold: {len(done.absent)}, such as {done.absent[0]};"
            " blobs that only they reference are not kept"
        )
    if done.young:
        output.warning(
            f"kept {counted(done.young, 'unreferenced blob')} ({counted(done.young_bytes, 'byte')}) younger than the"
            " grace period; --grace=0s removes them, unless umoci, skopeo, buildah or another program is writing them"
        )


def _sums(done: Collected, grace: float, verb: Callable[[str], str]) -> Iterator[str]:
    """Yield a line for each kind of what is removed, and one on the space that this frees."""
    if grace and done.blobs:
        yield f"{verb('move')} {counted(len(done.blobs), 'blob')}, {_bytes(done.bytes)}, to the trash"
    freed = 0
    for found, one, many in (
        (done.deleted, "blob", ""),
        (done.leftovers, "leftover file or directory", "leftover files and directories"),
    ):
        size = sum(size for _, size in found)
        freed += size
        if found:
            yield f"{verb('delete')} {counted(len(found), one, many)}, {_bytes(size)}"
    stay = f"; {_bytes(done.trash_bytes)} stay in the trash" if done.trash_bytes else ""
    yield f"{verb('free')} {_bytes(freed)} now{stay}" + (f" for up to {_time(grace)}" if stay and grace else "")


def _explain(layout: Layout, digest: str, grace: float) -> None:
    from layerfarm.jobs.store.reachability import explain_blob

    found = explain_blob(layout, digest)
    lines = []
    for reference in found.references:
        via = "".join(f" via {each}" for each in reference.via)
        name = f"tag {reference.tag}" if reference.tag is not None else "an entry of the index without a tag"
        lines.append(f"{name}{via}" + (f", as long as {reference.subject}" if reference.subject else ""))
    if found.more:
        lines.append(f"and {counted(found.more, 'more tag')}")
    lines += [f"lease of job {job}, for {_time(seconds)} unless renewed" for job, seconds in found.leases.items()]
    if found.age < grace and found.trashed is None:
        lines.append(f"younger than the grace period: stored or used {_time(found.age)} ago, grace {_time(grace)}")
    if found.trashed is not None:
        output.say(f"{digest} {found.size} in the trash for {_time(found.trashed)}")
        output.say("  " + ("restored by the next gc:" if lines else "deleted by a gc after the grace period"))
    else:
        output.say(f"{digest} {found.size} " + ("kept:" if lines else "not kept: the next gc removes it"))
    for line in lines:
        output.say(f"  {line}")


def _bytes(number: int) -> str:
    return f"{number:,} byte{'' if number == 1 else 's'}"


def _time(seconds: float) -> str:
    """Format a time in its largest unit."""
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} s"
