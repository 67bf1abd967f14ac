"""The tags that jobs of a farm have given in a store: each attempt gives its tag once.

A process that is paused just before it gives a tag, and wakes when its job was done by another and a newer job has
moved the tag, would move it back. So a job's tag is given under a name of the job's attempt, and the holder of the
index's lock writes down under that name what is to change before it changes, and that it is done after, in
``.layerfarm/committed`` (:mod:`layerfarm.jobs.store.hours`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from layerfarm.jobs.store.document import Document, encode_document, parse_document
from layerfarm.jobs.store.hours import Hours

_KEPT: Final = 24
"""Hours that are kept, beside the one that it is: longer than a process is paused and woken again."""


class Commit(Document):
    """One change of the index by one attempt at a job."""

    tag: str
    before: list[str]
    """Digests that the tag named; usually none or one."""
    after: str
    done: bool = False


class Commits:
    """Those of one layout. To be used under the lock of its index."""

    def __init__(self, layout: Path) -> None:
        self._layout = layout
        self._written = Hours(layout, "committed", _KEPT)

    def is_done(self, name: str, tag: str, now: list[str]) -> bool:
        """True if the change under ``name`` was made. ``now``: the digests that ``tag`` names.

        If the index does not say it: between the two writings of a holder that died, the tag is as it was before, or
        somebody else has given it since, after whom it is not given again.
        """
        content = self._written.read(name)
        if content is None:
            return False
        commit = parse_document(Commit, content, f"{self._layout}: committed/{name}")
        return commit.done or commit.tag != tag or now != commit.before

    def begin(self, name: str, commit: Commit) -> None:
        """Write down what is to change."""
        self._written.write(name, encode_document(commit))

    def end(self, name: str, commit: Commit) -> None:
        """It has changed."""
        self._written.change(name, encode_document(commit.model_copy(update={"done": True})))
