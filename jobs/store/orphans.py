"""Entries of index.json that live as long as what they speak of.

A proof is entered there without a tag (:mod:`layerfarm.jobs.relayer.referrers`), and says in an annotation whose it is.
Were it a root like the others, no image that has one would ever be collected: a manifest leads to its subject.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from layerfarm.jobs.store.descriptor import Descriptor, Index
from layerfarm.jobs.store.layout import Layout
from layerfarm.jobs.store.reach import Read, reachable

SUBJECT: Final = "dev.layerfarm.subject"
"""On an entry of index.json: the digest that the manifest speaks of, so that nobody has to read it to know."""


def subject_of(entry: Descriptor) -> str | None:
    """The digest that the entry says its manifest speaks of."""
    return (entry.annotations or {}).get(SUBJECT)


def living(layout: Layout, entries: Iterable[Descriptor], known: Read | None = None) -> list[Descriptor]:
    """The entries without those whose subject nothing else leads to. ``known``: as :func:`reachable`.

    Raises:
        StoreError: a manifest is missing or corrupt.
    """
    kept: list[Descriptor] = []
    waiting: list[Descriptor] = []
    for entry in entries:
        (kept if subject_of(entry) is None else waiting).append(entry)
    if not waiting:
        return kept
    reached = reachable(layout, kept, known)
    while True:
        # One of them may speak of another one.
        alive = [entry for entry in waiting if subject_of(entry) in reached]
        if not alive:
            return kept
        kept += alive
        waiting = [entry for entry in waiting if entry not in alive]
        reached |= reachable(layout, alive, known)


def drop_orphans(layout: Layout, oldest: float) -> None:
    """Remove the entries of index.json whose subject is gone, if their manifest was last used before ``oldest``.

    ``oldest``: seconds on the store's clock. A proof is entered before its image gets the tag.

    Raises:
        StoreError: a manifest is missing or corrupt; nothing is removed then.
    """

    if not layout.index_text().mentions(SUBJECT):
        return

    def change(index: Index) -> Index:
        alive = {entry.digest for entry in living(layout, index.manifests)}
        kept = [entry for entry in index.manifests if entry.digest in alive or _is_young(layout, entry, oldest)]
        return index.model_copy(update={"manifests": kept})

    layout.update_index(change)


def _is_young(layout: Layout, entry: Descriptor, oldest: float) -> bool:
    try:
        return layout.blob_path(entry.digest).stat().st_mtime > oldest
    except FileNotFoundError:
        return False
