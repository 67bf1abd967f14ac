"""The layers of an image, opened and checked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import BinaryIO, Final, cast

from layerfarm.jobs.compress.decompress import PieceReader, decompress
from layerfarm.jobs.errors import DigestMismatch, LayerfarmError
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.layer.foresight import Foresight
from layerfarm.jobs.layer.stack import Read, read_members
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.verify import hasher

Advanced = Callable[[int], None]


def unheard(nbytes: int) -> None:
    """For those who want to know nothing of progress."""


def read_layer(
    layout: Layout, layer: Descriptor, diff_id: str, advanced: Advanced = unheard, *, hash_content: bool = True
) -> Iterator[Read]:
    """The members of one layer, with the digests of their content if wanted. Raises as :func:`stack_of`."""
    with open_layer(layout, layer, diff_id, advanced) as stream:
        yield from read_members(stream, hash_content=hash_content)


@contextmanager
def open_layer(layout: Layout, layer: Descriptor, diff_id: str, advanced: Advanced = unheard) -> Iterator[BinaryIO]:
    """The tar stream of one layer. What the user leaves of it is read and verified at the end, too.

    Raises (while reading, and at the end):
        BlobNotFound, DigestMismatch, SizeMismatch: the layer is missing or corrupt, by its digest or its diff_id.
        LayerError, LimitExceeded: it is damaged, or larger than the limits.
    """
    digest = hasher(diff_id)
    with layout.open_blob(layer) as blob:
        counted = _Counted(blob)
        # Both digests are computed in the thread that decompresses.
        plain = decompress(cast(BinaryIO, counted), layer.media_type, ahead=True, seen=digest.update)
        with closing(plain):
            told = _Told(plain, counted, advanced)
            yield cast(BinaryIO, told)
            while told.read(1 << 20):
                pass
    found = f"{digest.name}:{digest.hexdigest()}"
    if found != diff_id:
        raise DigestMismatch(f"layer unpacks to {found}, its diff_id is {diff_id}", where=layer.digest)


class _Counted:
    """Passes the blob on, and counts; read by the thread that decompresses."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.count += len(data)
        return data


class _Told:
    """Passes the tar stream on, and tells of the compressed bytes in its reader's own thread, which may raise."""

    def __init__(self, stream: PieceReader, counted: _Counted, advanced: Advanced) -> None:
        self._stream = stream
        self._counted = counted
        self._advanced = advanced
        self._said = 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        count = self._counted.count
        if count != self._said:
            self._advanced(count - self._said)
            self._said = count
        return data


_SMALLER: Final = 32
"""A layer is looked at if it is so many times smaller than what lies below it.

Looking decompresses it once more. For files that are replaced that costs what not writing the old ones saves;
what pays is whatever a layer deletes, and the layers that delete much are small. So a look costs 1 % at most.
"""
_PATIENCE: Final = 0.02
"""Seconds to wait for what takes no longer: layers that only delete are small."""


def worth_a_look(image: Resolved) -> list[int]:
    """The layers, 1 for the lowest, that are small beside those below them."""
    chosen: list[int] = []
    below = 0
    for number, descriptor in enumerate(image.manifest.layers, 1):
        if number > 1 and descriptor.size * _SMALLER <= below:
            chosen.append(number)
        below += descriptor.size
    return chosen


@contextmanager
def foreseen(store: Layout, image: Resolved, limits: Limits) -> Iterator[Foresight | None]:
    """What the small upper layers do to those below; None if there is none to look at.

    A thread fills it, so it may know little at first. What is wrong with a layer is not told here: whoever
    applies it meets the same bytes, and checks them.
    """
    numbers = worth_a_look(image)
    if not numbers:
        yield None
        return
    foresight = Foresight(limits)
    layers = [(number, image.manifest.layers[number - 1]) for number in numbers]
    thread = threading.Thread(target=_look, args=(store, layers, foresight, limits), name="foresee", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    try:
        yield foresight
    finally:
        foresight.stop()
        thread.join()


def _look(store: Layout, layers: list[tuple[int, Descriptor]], foresight: Foresight, limits: Limits) -> None:
    for number, descriptor in layers:
        try:
            with (
                closing(store.open_blob(descriptor)) as blob,
                decompress(blob, descriptor.media_type, limits=limits) as plain,
            ):
                foresight.add(number, cast(BinaryIO, plain))
        except (LayerfarmError, OSError):
            # The layer itself is applied later, and fails then. No more layers are looked at.
            return
