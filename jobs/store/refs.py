"""Tags: entries of ``index.json`` with a ref.name annotation. Pure functions on an index."""

from __future__ import annotations

from jobs.store.descriptor import REF_NAME, Descriptor, Index
from jobs.store.refname import check_refname


def tags_of(index: Index) -> list[str]:
    """Every tag, in the order of the index, each once."""
    return list(dict.fromkeys(name for name in map(_name, index.manifests) if name is not None))


def find_tag(index: Index, tag: str) -> list[Descriptor]:
    """The descriptors with this tag."""
    return [descriptor for descriptor in index.manifests if _name(descriptor) == tag]


def with_tag(index: Index, tag: str, descriptor: Descriptor) -> Index:
    """``index`` with ``tag`` naming ``descriptor`` only, in the place where the tag was, else at the end.

    Raises:
        InvalidReference: the tag breaks the grammar.
    """
    check_refname(tag)
    named = descriptor.model_copy(update={"annotations": {**(descriptor.annotations or {}), REF_NAME: tag}})
    manifests: list[Descriptor] = []
    for old in index.manifests:
        if _name(old) != tag:
            manifests.append(old)
        elif named not in manifests:
            manifests.append(named)
    if named not in manifests:
        manifests.append(named)
    return index.model_copy(update={"manifests": manifests})


def without_tag(index: Index, tag: str) -> Index:
    """``index`` without the entries that have this tag."""
    return index.model_copy(update={"manifests": [old for old in index.manifests if _name(old) != tag]})


def _name(descriptor: Descriptor) -> str | None:
    return (descriptor.annotations or {}).get(REF_NAME)
