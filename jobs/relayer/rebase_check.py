"""Whether an image can be put on another base, found in the files themselves.

crane and regctl swap the layers if the lowest ones are the old base's; whether the program still starts is
left to the user. Here both bases' trees, the image's and the one that would come out are held against each
other, and what the image's own files need of the system is looked for in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from layerfarm.jobs.errors import LayerError
from layerfarm.jobs.image import Resolved
from layerfarm.jobs.image.layers import Advanced, read_layer, unheard
from layerfarm.jobs.layer.stack import Stack
from layerfarm.jobs.relayer.equivalence import facts_of
from layerfarm.jobs.relayer.rebase_evidence import Concern, Contents, Examined, Trees, Verdict
from layerfarm.jobs.relayer.rebase_packages import compare_packages
from layerfarm.jobs.relayer.rebase_programs import unmet_needs
from layerfarm.jobs.store import Layout

_DATABASES: Final = frozenset(
    (b"lib/apk/db/installed", b"var/lib/rpm/rpmdb.sqlite", b"var/lib/rpm/Packages.db", b"var/lib/rpm/Packages")
)
_OF_NO_MATTER: Final = (b"var/log/", b"var/cache/", b"tmp/", b"var/tmp/", b"run/", b"var/lib/apt/", b"var/lib/dpkg/")
"""What changes with every build and nobody runs by; dpkg's packages themselves are compared."""


def examine(
    layout: Layout, image: Resolved, below: int, new_layout: Layout, new_base: Resolved, advanced: Advanced = unheard
) -> Examined:
    """Look for what speaks against putting the layers of ``image`` above the ``below`` lowest on ``new_base``.

    Raises:
        StoreError, LayerError: a layer of one of the images cannot be read or applied.
    """
    lower = [list(read_layer(layout, *layer, advanced)) for layer in image.layers[:below]]
    upper = [list(read_layer(layout, *layer, advanced)) for layer in image.layers[below:]]
    new = [list(read_layer(new_layout, *layer, advanced)) for layer in new_base.layers]
    try:
        rebased = Stack.of([*new, *upper])
    except LayerError as error:
        what = f"the image's layers cannot be applied to the new base, {error.what}"
        return Examined([Concern(Verdict.REFUSE, (error.where or ".").encode(), what)])
    trees = Trees(Stack.of(lower), Stack.of(new), Stack.of([*lower, *upper]), below, rebased)
    found = Examined()
    facts = _Facts(trees)
    found.concerns += _paths(facts)
    looked = Contents(layout, image, new_layout, new_base, below, advanced)
    found.concerns += unmet_needs(trees, looked)
    found.packages, more = compare_packages(trees, looked)
    found.concerns = sorted([*found.concerns, *more], key=lambda concern: (-concern.verdict.rank, concern.path))
    return found


# --- paths: written by the image, and other in the new base ----------------------------------------


class _Facts:
    """All that is known of each path of the four trees, times apart: a rebuilt base has new ones everywhere."""

    def __init__(self, trees: Trees) -> None:
        self.old_base, self.new_base, self.image, self.rebased = (
            {facts.path: facts._replace(mtime=0) for facts in facts_of(stack)}
            for stack in (trees.old_base, trees.new_base, trees.image, trees.rebased)
        )
        self.own = [placed.entry.path for placed in trees.image.placed() if placed.layer > trees.below]
        """What the image's own layers have an entry for."""


def _paths(facts: _Facts) -> Iterator[Concern]:
    files = [path for path, known in facts.old_base.items() if known.type == "file" and known.size]
    if files and not any(facts.new_base.get(path) == facts.old_base[path] for path in files):
        yield Concern(Verdict.REFUSE, b".", "the new base shares not one file with the old one")
    for path in facts.own:
        yield from _own_path(path, facts)
    for path, before in facts.old_base.items():
        after = facts.new_base.get(path)
        if path in facts.image or after in (None, before) or before.type == "dir" or path.startswith(_OF_NO_MATTER):
            continue
        yield Concern(Verdict.REVIEW, path, "the image deletes it, and the new base has another one")


def _own_path(path: bytes, facts: _Facts) -> Iterator[Concern]:
    own, landed = facts.image[path], facts.rebased.get(path)
    if landed is None:
        yield Concern(Verdict.REFUSE, path, "would land elsewhere: the new base has something else on the way to it")
        return
    if landed != own and not (own.type == landed.type == "dir"):
        yield Concern(Verdict.REFUSE, path, "would not be what it is now: other names of it lie in the base")
        return
    before, after = facts.old_base.get(path), facts.new_base.get(path)
    if after is None or after in (before, own) or path.startswith(_OF_NO_MATTER):
        return
    if own.type == "dir":
        if before is not None and landed == own and after.type == "dir":
            yield Concern(Verdict.REVIEW, path, "mode or owner of the directory are the image's, not the new base's")
    elif path in _DATABASES:
        yield Concern(Verdict.REVIEW, path, "the image's package database hides that of the new base")
    elif before is None:
        yield Concern(Verdict.REVIEW, path, "the new base has a file of its own here, which the image's hides")
    else:
        yield Concern(Verdict.REVIEW, path, "changed by the image and by the new base: the image's hides the new one")
