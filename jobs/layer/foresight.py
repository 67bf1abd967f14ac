"""What upper layers will replace or delete, told from their headers before the lower layers are applied.

A guess by names as they are written: links that lead elsewhere, hard links and names used again are not
thought of. So nobody may rely on it: what it says is doomed is left out, and written after all if it turns
out to be there at the end (:mod:`layerfarm.jobs.layer.unwritten`). A wrong guess costs time, never a byte.
"""

from __future__ import annotations

from typing import BinaryIO, Final

from layerfarm.jobs.layer.modeltree import clean
from layerfarm.jobs.layer.whiteouts import OPAQUE, PREFIX
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.tar.reader import MemberReader

_MOST_NAMES: Final = 250_000
"""Names that are remembered, some 40 MB; whatever else is doomed is written and removed again."""
_REPLACED: Final = b"0236"
_REPLACED_WITH_ALL_BELOW: Final = 0x32


class Foresight:
    """The names in some layers. May be asked by one thread while another one still adds to it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._single: dict[bytes, int] = {}
        """A path, and the highest layer that puts something else there or deletes it."""
        self._below: dict[bytes, int] = {}
        """A path, and the highest layer that removes all below it."""
        self._stopped = False

    def stop(self) -> None:
        """Let :meth:`add`, in another thread, come to its end."""
        self._stopped = True

    def add(self, layer: int, stream: BinaryIO) -> None:
        """Take up the names of a layer, from its raw tar. Content is passed over, nothing is checked.

        Raises:
            LayerError, LimitExceeded: the stream is damaged; what came before that was taken up.
        """
        single, below = self._single, self._below
        for member in MemberReader(stream, self._limits):
            if self._stopped or len(single) + len(below) >= _MOST_NAMES:
                return
            path = b"/".join(clean(member.name))
            head, _, base = path.rpartition(b"/")
            if base == OPAQUE:
                below[head] = layer
            elif base.startswith(PREFIX):
                path = head + b"/" + base[len(PREFIX) :] if head else base[len(PREFIX) :]
                single[path] = below[path] = layer
            elif member.type in _REPLACED:
                single[path] = layer
                if member.type == _REPLACED_WITH_ALL_BELOW:
                    # A directory that becomes a link is common (usr-merge), one that becomes a file is not.
                    below[path] = layer

    def dooms(self, path: bytes, layer: int) -> bool:
        """Whether a file that ``layer`` has at ``path`` will likely not outlive the layers above."""
        if self._single.get(path, 0) > layer:
            return True
        below = self._below
        if below:
            while path:
                path = path.rpartition(b"/")[0]
                if below.get(path, 0) > layer:
                    return True
        return False
