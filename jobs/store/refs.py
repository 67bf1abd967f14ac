"""Tags: entries of ``index.json`` with a ref.name annotation."""

from __future__ import annotations

from layerfarm.jobs.store.descriptor import REF_NAME, Descriptor
from layerfarm.jobs.store.refname import check_refname


def named(descriptor: Descriptor, tag: str) -> Descriptor:
    """The entry of the index that makes ``tag`` the name of ``descriptor``.

    Raises:
        InvalidReference: the tag breaks the grammar.
    """
    check_refname(tag)
    return descriptor.model_copy(update={"annotations": {**(descriptor.annotations or {}), REF_NAME: tag}})


def name_of(descriptor: Descriptor) -> str | None:
    """The tag that this entry of the index is, if any."""
    return (descriptor.annotations or {}).get(REF_NAME)
