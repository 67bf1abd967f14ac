"""The grammar of tags (image-spec annotations.md, "org.opencontainers.image.ref.name")."""

from __future__ import annotations

import re

from layerfarm.jobs.errors import InvalidReference

_COMPONENT = r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*"
_REFNAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")


def check_refname(text: str) -> str:
    """``text`` if it can be a tag.

    Raises:
        InvalidReference: it breaks the grammar.
    """
    if not _REFNAME.fullmatch(text):
        raise InvalidReference(
            "not a valid tag", where=text[:200], hint="letters and digits, joined by one of - . _ : @ + or --, and /"
        )
    return text
