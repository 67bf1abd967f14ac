"""Check whether an image can be put on another base, from the files themselves.

crane and regctl swap the layers if the lowest ones are the old base's; whether the program still starts is
left to the user. Here the trees of both bases, of the image and of the rebased image are compared, and the
dependencies of the image's own files are looked up in the rebased one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from layerfarm.jobs.errors import LayerError, LayerfarmError
from layerfarm.jobs.image import Resolved
from layerfarm.jobs.image.layers import Advanced, unheard
from layerfarm.jobs.image.listings import list_layer
from layerfarm.jobs.layer.stack import Source, Stack
from layerfarm.jobs.relayer.components.distributions import DPKG, Fields, paragraphs
from layerfarm.jobs.relayer.elf_dependencies import unmet_needs
from layerfarm.jobs.relayer.equivalence import facts_of
from layerfarm.jobs.relayer.rebase_findings import Concern, Examined, Trees, Verdict
from layerfarm.jobs.store import Layout

_DATABASES: Final = frozenset(
    (b"lib/apk/db/installed", b"var/lib/rpm/rpmdb.sqlite", b"var/lib/rpm/Packages.db", b"var/lib/rpm/Packages")
)
_STATUS: Final = DPKG + b"/status"
_IGNORED: Final = (b"var/log/", b"var/cache/", b"tmp/", b"var/tmp/", b"run/", b"var/lib/apt/", b"var/lib/dpkg/")
"""Changes with every build, and no program needs it; dpkg's packages are compared separately."""


def examine(
    layout: Layout, image: Resolved, below: int, new_layout: Layout, new_base: Resolved, advanced: Advanced = unheard
) -> Examined:
    """Return findings against putting the layers of ``image`` above the ``below`` lowest on ``new_base``.

    Raises:
        StoreError, LayerError: a layer of one of the images cannot be read or applied.
    """
    lower = [list(list_layer(layout, *layer, advanced)) for layer in image.layers[:below]]
    upper = [list(list_layer(layout, *layer, advanced)) for layer in image.layers[below:]]
    new = [list(list_layer(new_layout, *layer, advanced)) for layer in new_base.layers]
    try:
        rebased = Stack.of([*new, *upper])
    except LayerError as error:
        what = f"the image's layers cannot be applied to the new base, {error.what}"
        return Examined([Concern(Verdict.REFUSE, (error.where or ".").encode(), what)])
    layers = [(layout, *layer) for layer in image.layers]
    rebased_layers = [*((new_layout, *layer) for layer in new_base.layers), *layers[below:]]
    whole = Stack.of([*lower, *upper])
    trees = Trees(Stack.of(lower), Stack.of(new), whole, below, rebased, layers, rebased_layers, advanced)
    section = image.config.config
    command = [*((section.entrypoint if section else None) or []), *((section.cmd if section else None) or [])]
    packages, more = _packages(trees)
    concerns = [*_paths(_Facts(trees)), *unmet_needs(trees, command), *more]
    return Examined(sorted(concerns, key=lambda concern: (-concern.verdict.rank, concern.path)), packages)


# --- paths: written by the image, and different in the new base ------------------------------------


class _Facts:
    """The facts of each path of the four trees, without times, which a rebuilt base changes everywhere."""

    def __init__(self, trees: Trees) -> None:
        self.old_base, self.new_base, self.image, self.rebased = (
            {facts.path: facts._replace(mtime=0) for facts in facts_of(stack)}
            for stack in (trees.old_base, trees.new_base, trees.image, trees.rebased)
        )
        self.own = [placed.entry.path for placed in trees.image.placed() if placed.layer > trees.below]
        """The paths with an entry in the image's own layers."""


def _paths(facts: _Facts) -> Iterator[Concern]:
    files = [path for path, known in facts.old_base.items() if known.type == "file" and known.size]
    if files and not any(facts.new_base.get(path) == facts.old_base[path] for path in files):
        yield Concern(Verdict.REFUSE, b".", "the new base shares no file with the old one")
    for path in facts.own:
        yield from _own_path(path, facts)
    for path, before in facts.old_base.items():
        after = facts.new_base.get(path)
        if path in facts.image or after in (None, before) or before.type == "dir" or path.startswith(_IGNORED):
            continue
        yield Concern(Verdict.REVIEW, path, "the image deletes it, and the new base has a different one")


def _own_path(path: bytes, facts: _Facts) -> Iterator[Concern]:
    own, landed = facts.image[path], facts.rebased.get(path)
    if landed is None:
        yield Concern(Verdict.REFUSE, path, "would be written elsewhere: the new base has a different parent directory")
        return
    if landed != own and not (own.type == landed.type == "dir"):
        yield Concern(Verdict.REFUSE, path, "would change: other hard links of it are in the base")
        return
    before, after = facts.old_base.get(path), facts.new_base.get(path)
    if after is None or after in (before, own) or path.startswith(_IGNORED):
        return
    if own.type == "dir":
        if before is not None and landed == own and after.type == "dir":
            yield Concern(Verdict.REVIEW, path, "mode or owner of the directory are the image's, not the new base's")
    elif path in _DATABASES:
        yield Concern(Verdict.REVIEW, path, "the image's package database hides that of the new base")
    elif before is None:
        yield Concern(Verdict.REVIEW, path, "the new base has its own file here, which the image's hides")
    else:
        yield Concern(Verdict.REVIEW, path, "changed by the image and by the new base: the image's hides the new one")


# --- packages: dpkg's, of both bases and of the image ----------------------------------------------

Installed = dict[str, Fields]
"""Paragraph of each package in dpkg's status file."""


def _packages(trees: Trees) -> tuple[list[str], list[Concern]]:
    """Return the changed packages of the base, as ``name old -> new``, and findings on those of the image."""
    own = trees.image.look_up(_STATUS)
    changes = own is not None and own.layer > trees.below
    try:
        before = _installed(trees.read_image, trees.old_base.look_up(_STATUS))
        after = _installed(trees.read_rebased, trees.new_base.look_up(_STATUS))
        image = _installed(trees.read_image, own) if changes else {}
    except LayerfarmError as error:
        return [], [Concern(Verdict.REVIEW, _STATUS, f"package database is broken: {error.what}")]
    changed = [
        f"{name} {_version(before.get(name))} -> {_version(after.get(name))}"
        for name in sorted({*before, *after})
        if _version(before.get(name)) != _version(after.get(name))
    ]
    if not changes:
        return changed, []
    concerns = []
    if changed:
        what = f"lists the packages of the old base; {len(changed)} differ in the new one: {', '.join(changed[:3])}"
        concerns.append(Concern(Verdict.REVIEW, _STATUS, what + (" …" if len(changed) > 3 else "")))
    for name, fields in image.items():
        if name not in before:
            concerns += _unmet(name, fields, before, after)
    return changed, concerns


def _unmet(name: str, fields: Fields, before: Installed, after: Installed) -> Iterator[Concern]:
    """Yield dependencies of a package that the image added, met by the old base and not by the new one.

    Versions are compared for ``=`` only; symbol versions show better whether a library is new enough.
    """
    wishes = b", ".join(fields[key] for key in (b"Depends", b"Pre-Depends") if key in fields)
    for wish in wishes.decode("utf-8", "replace").split(","):
        needed, _, version = wish.strip().partition(" ")
        needed = needed.partition(":")[0]
        if needed not in before or "|" in wish:
            continue
        if needed not in after:
            yield Concern(Verdict.REVIEW, _STATUS, f"{name} depends on {needed}, which is not in the new base")
        elif version.startswith("(= ") and version[3:-1] != _version(after[needed]):
            what = f"{name} needs {needed} {version[3:-1]}, the new base has {_version(after[needed])}"
            yield Concern(Verdict.REVIEW, _STATUS, what)


def _installed(read: Callable[[Iterable[Source]], Iterator[tuple[Source, bytes]]], status: Source | None) -> Installed:
    content = b"".join(content for _, content in read([status])) if status is not None else b""
    return {
        fields.get(b"Package", b"").decode("utf-8", "replace"): fields
        for fields in paragraphs(content, _STATUS)
        if fields.get(b"Status", b"installed").split()[-1:] == [b"installed"]
    }


def _version(fields: Fields | None) -> str:
    return "none" if fields is None else fields.get(b"Version", b"").decode("utf-8", "replace")
