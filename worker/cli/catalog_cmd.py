"""``layerfarm catalog``: re-layer many images together."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from layerfarm.jobs.errors import display
from layerfarm.jobs.extras import require
from layerfarm.worker.cli import catalog_serve_cmd, output
from layerfarm.worker.cli.flags import PathType
from layerfarm.worker.cli.parsing import GoStyleCommand, GoStyleGroup
from layerfarm.worker.cli.session import Session
from layerfarm.worker.cli.submission import at_once_option, processes_option, progress_option
from layerfarm.worker.plural import counted

if TYPE_CHECKING:
    from layerfarm.worker.catalog.report import Report
    from layerfarm.worker.catalog.views import View
    from layerfarm.worker.catalog.work import Work

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class How(NamedTuple):
    """The values of the flags that say where and how a catalog is processed."""

    farm: str | None
    at_once: int
    processes: int | None
    progress: str


@click.group("catalog", cls=GoStyleGroup, no_args_is_help=True)
def command() -> None:
    """Re-layer many images together, as a YAML file with sources, policies and a destination says.

    docs/catalogs.md describes the file.

    \b
    Examples:
      layerfarm catalog plan web.yaml
      layerfarm catalog run web.yaml --farm redis://queue/0
      layerfarm catalog report web.yaml --html report.html
      layerfarm catalog verify web.yaml
      layerfarm catalog prune web.yaml
    """


def _read_by_extra(ctx: click.Context, parameter: click.Parameter, value: Path) -> Path:
    require("catalog", "layerfarm catalog")
    return value


_file = click.argument("file", type=PathType(), callback=_read_by_extra)


def _how(command: CommandT) -> CommandT:
    """Add the flags of :class:`How`, passed as ``how``."""

    @click.option(
        "--farm", "farm_url", metavar="URL", help="Run the jobs on the farm at this Redis; empty: on this machine."
    )
    @at_once_option
    @processes_option
    @progress_option("How to show progress on stderr; auto: a live table on a terminal.")
    @functools.wraps(command)
    def with_how(
        *args: Any, farm_url: str | None, at_once: int, processes: int | None, progress: str, **others: Any
    ) -> Any:
        session: Session = click.get_current_context().obj
        farm = session.farm_at(farm_url)
        return command(*args, how=How(farm, at_once, processes, progress), **others)

    return with_how  # type: ignore[return-value]


_replan = click.option("--replan", is_flag=True, help="Plan from scratch; layers of the last plan may move.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
_html = click.option("--html", type=PathType(), metavar="FILE", help="Also write the report as one HTML page.")
_images = click.option("--images", "each", is_flag=True, help="Also print a line for each image.")


@command.command("plan", cls=GoStyleCommand)
@_file
@_how
@_replan
@_json
@_html
@_images
def plan(file: Path, how: How, replan: bool, as_json: bool, html: Path | None, each: bool) -> None:
    """Predict the result of a run: layers, bytes stored and pulled, before and after.

    The images are fetched and analyzed; no image is made. Exit code 1 if an image fails.
    """
    from layerfarm.worker.catalog.report import report_of

    with working(file, how) as work:
        images = work.fetch(kind="plan")
        work.plan(images, replan=replan, keep=False)
        work.finish()
        report = report_of(work, images)
    _say(report, as_json, html, each)
    raise click.exceptions.Exit(report.summary.exit_code)


@command.command("run", cls=GoStyleCommand)
@_file
@_how
@click.option("--dry-run", is_flag=True, help="Print what would be fetched, made and pushed; do nothing.")
@_replan
@_json
@_html
@_images
def run(file: Path, how: How, dry_run: bool, replan: bool, as_json: bool, html: Path | None, each: bool) -> None:
    """Transform all images of the catalog, verify each, and publish it.

    Finished images are skipped, interrupted ones continue. A failed image does not stop the others; the exit
    code is then 1.
    """
    from layerfarm.worker.catalog.dry_run import outlook
    from layerfarm.worker.catalog.report import report_of
    from layerfarm.worker.catalog.running import carry_out

    with working(file, how) as work:
        if dry_run:
            steps, missed = outlook(work)
            for name, what in steps:
                output.say(f"{name}: {what}")
            if missed:
                raise click.exceptions.Exit(1)
            return
        images = carry_out(work, replan=replan)
        report = report_of(work, images)
    _say(report, as_json, html, each)
    raise click.exceptions.Exit(report.summary.exit_code)


@command.command("report", cls=GoStyleCommand)
@_file
@_json
@_html
@_images
def report(file: Path, as_json: bool, html: Path | None, each: bool) -> None:
    """Print what the last plan or run predicted and did.

    FILE is the catalog file. The numbers come from the records that the plan or run left in the catalog's store, so
    no registry is queried, and no image is fetched or made. The report has the bytes stored, the bytes pulled from
    tag to tag and the layers, before, predicted and after, the pulls of each repository, and the errors of images
    that failed. A catalog that was never planned or run has 0 images.

    Nothing is changed, except that --html writes a page, and that a missing store is created, empty.

    \b
    Examples:
      layerfarm catalog report web.yaml --images
      layerfarm catalog report web.yaml --html report.html
    """
    from layerfarm.worker.catalog.report import report_of

    with working(file, How(None, 1, None, "none"), lock=False) as work:
        work.plan_again()
        found = report_of(work, work.known())
    _say(found, as_json, html, each)


@command.command("verify", cls=GoStyleCommand)
@_file
@_how
@click.option("--deep", is_flag=True, help="Also read every blob of the destination's registry.")
def verify(file: Path, how: How, deep: bool) -> None:
    """Check the proofs of all finished images, reading every layer, and their destination. Exit code 1 on a fault.

    Images that were not changed have no proof, and their layers are not read. In a destination's registry, the
    tags, all manifests and the lists of referrers are read; with --deep every blob too. The next run pushes an
    image again that is not whole there. A catalog that has not run yet has 0 images, which is no fault.
    """
    from layerfarm.worker.catalog.verification import verify as verify_catalog

    with working(file, how) as work:
        if not work.states.has_run():
            output.say("catalog has not run yet: 0 images")
            return
        found = verify_catalog(work, work.known(), deep=deep)
    for name, fault in found.faults:
        output.say(f"{name}: {display(fault)}")
    unread = f", {found.unchanged} kept and not read" if found.unchanged else ""
    unread += f", {found.unproved} without a proof and not read" if found.unproved else ""
    published = f", {found.published} checked in the registry" if found.published else ""
    output.say(f"{counted(found.images, 'image')}, {counted(len(found.faults), 'fault')}{unread}{published}")
    if found.faults:
        raise click.exceptions.Exit(1)


@command.command("prune", cls=GoStyleCommand)
@_file
@click.option(
    "--apply",
    "carry_out",
    is_flag=True,
    help='Remove the tags listed as "would remove"; without it, nothing is removed.',
)
@click.option(
    "--at-most",
    metavar="PERCENT",
    type=click.FloatRange(0, 100),
    default=25,
    show_default=True,
    help="With --apply: remove nothing if more of the catalog's images than this would lose a tag.",
)
def prune(file: Path, carry_out: bool, at_most: float) -> None:
    """List, or with --apply remove, tags of images that left the catalog.

    FILE is the catalog file. An image has left when its tag is gone at the source, or FILE no longer selects it. The
    sources and the destination are listed, and compared with the records of earlier runs in the catalog's store.
    Each such tag is a line: "would remove" (with --apply "removed"), "kept" or "failed" with the reason. A tag that
    the catalog did not set, or that names something else by now, is never removed.

    With --apply, tags are removed at the destination and in the store, with the records of their images. A registry
    deletes the manifest with its proofs. The sources are not changed. Blobs stay until layerfarm gc runs on the store
    and on a destination layout, and the registry's own garbage collection on the registry.

    Exit code 1 if a source cannot be listed, a tag cannot be removed, or more than --at-most would be.

    \b
    Examples:
      layerfarm catalog prune web.yaml
      layerfarm catalog prune web.yaml --apply
    """
    from layerfarm.worker.catalog.prune import find_removals
    from layerfarm.worker.catalog.prune import prune as prune_catalog

    with working(file, How(None, 1, None, "none")) as work:
        found = find_removals(work)
        failed = dict(prune_catalog(work, found, at_most)) if carry_out else {}
    verb = "removed" if carry_out else "would remove"
    removed = [removal for removal in found.removals if removal.place not in failed]
    for removal in removed:
        output.say(f"{verb} {display(removal.place)} ({removal.digest})")
    for place, why in found.kept:
        output.say(f"kept {display(place)}: {display(why)}")
    for place, why in failed.items():
        output.say(f"failed {display(place)}: {display(why)}")
    share = f"{found.percent:.0f} % of all images lose one"
    if found.percent > at_most and not carry_out:
        share += f", more than {at_most:g} %: allow it with --at-most"
    output.say(f"{verb} {counted(len(removed), 'tag')}, kept {len(found.kept)}, failed {len(failed)}; {share}")
    if found.missed or failed:
        raise click.exceptions.Exit(1)


command.add_command(catalog_serve_cmd.command)


@contextmanager
def working(file: Path, how: How, *, lock: bool = True, view: View | None = None) -> Iterator[Work]:
    """Yield a run of the catalog file; ``lock``: exclude other runs; ``view``: default as ``how`` says."""
    import gc
    from contextlib import ExitStack

    from layerfarm.jobs.flows.base import Policy
    from layerfarm.worker.catalog.backends import Backend, Local, OnFarm
    from layerfarm.worker.catalog.document import read_catalog
    from layerfarm.worker.catalog.work import Work
    from layerfarm.worker.cli.catalog_view import CatalogView

    # The objects of a catalog live until its end: the default collector looks at them for a third of a run's time.
    gc.set_threshold(1_000_000, 20, 20)
    catalog = read_catalog(file)
    with ExitStack() as stack:
        backend: Backend
        if how.farm is None:
            processors = len(os.sched_getaffinity(0))
            processes = how.processes or processors
            backend = Local(Policy(shards=processes, threads=processors), processes)
        else:
            from layerfarm.worker.client import Farm

            if view is None:
                output.take_logs()
            backend = OnFarm(stack.enter_context(Farm(how.farm)), how.at_once)
        work = Work.begin(file, catalog, backend, view or stack.enter_context(CatalogView(how.progress)))
        if lock:
            stack.enter_context(work.states.locked())
        yield work


def _say(report: Report, as_json: bool, html: Path | None, each: bool) -> None:
    from layerfarm.worker.catalog.page import page
    from layerfarm.worker.cli.catalog_text import image_lines, report_lines

    if html is not None:
        html.write_text(page(report), encoding="utf-8")
    if as_json:
        output.echo(report.model_dump_json(indent=1))
        return
    for line in report_lines(report) + (["", *image_lines(report)] if each else []):
        output.say(line)
