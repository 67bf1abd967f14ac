"""The layers of an image, opened and checked."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import BinaryIO, Final, cast

from layerfarm.jobs.compress.codecs import Compression
from layerfarm.jobs.compress.decompress import decompress
from layerfarm.jobs.errors import DigestMismatch, LayerfarmError
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.layer.foresight import Foresight
from layerfarm.jobs.layer.stack import Read, read_members
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.verify import hasher

Advanced = Callable[[int], None]
"""Given the number of compressed bytes that were read since its last call; may raise to stop."""


def unheard(nbytes: int) -> None:
    """An :data:`Advanced` that ignores progress."""


def read_layer(
    layout: Layout, layer: Descriptor, diff_id: str, advanced: Advanced = unheard, *, hash_content: bool = True
) -> Iterator[Read]:
    """The members of one layer, with the digests of their content if wanted. Raises as :func:`stack_of`."""
    with open_layer(layout, layer, diff_id, advanced) as stream:
        yield from read_members(stream, hash_content=hash_content)


@contextmanager
def open_layer(
    layout: Layout,
    layer: Descriptor,
    diff_id: str | None,
    advanced: Advanced = unheard,
    limits: Limits | None = None,
) -> Iterator[LayerStream]:
    """The tar stream of one layer. The part that the caller does not read is read and verified at the end.

    The diff_id is over the whole stream, including what follows the end of the tar (umoci.md B6). None: computed as
    sha256 and not compared.

    Raises (while reading, and at the end):
        BlobNotFound, DigestMismatch, SizeMismatch: the layer is missing or corrupt, by its digest or its diff_id.
        LayerError, LimitExceeded: it is damaged, or larger than the limits.
    """
    digest = hasher(diff_id or "sha256:")
    with layout.open_blob(layer) as blob:
        counted = _Counted(blob)
        # Decompressing with the blob's digest, the diff_id, and the reader each have a thread. Unpacking 125,000
        # entries of 2.5 GB, they take 3.2, 1.4 and 3.6 s.
        plain = decompress(cast(BinaryIO, counted), layer.media_type, limits=limits, ahead=True, seen=digest.update)
        with closing(plain):
            stream = LayerStream(plain, counted, plain.compression, advanced)
            yield stream
            while stream.read(1 << 20):
                pass
    stream.diff_id = f"{digest.name}:{digest.hexdigest()}"
    if diff_id is not None and stream.diff_id != diff_id:
        raise DigestMismatch(f"layer unpacks to {stream.diff_id}, its diff_id is {diff_id}", where=layer.digest)


class LayerStream(io.RawIOBase, BinaryIO):
    """The tar stream of a layer. ``compression``: of the blob's bytes, whatever its media type says."""

    def __init__(self, plain: io.RawIOBase, counted: _Counted, compression: Compression, advanced: Advanced) -> None:
        self.compression = compression
        self.diff_id = ""
        """Digest of the stream; empty until :func:`open_layer` has verified it."""
        self._plain = plain
        self._counted = counted
        self._advanced = advanced
        self._reported = 0

    def read(self, size: int | None = -1, /) -> bytes:
        # Progress is reported here, in the reader's own thread, where the callback may raise.
        data = self._plain.read(-1 if size is None else size) or b""
        count = self._counted.count
        if count != self._reported:
            fresh, self._reported = count - self._reported, count
            self._advanced(fresh)
        return data


class _Counted:
    """Counts the bytes read from a blob; read by the thread that decompresses."""

    def __init__(self, stream: BinaryIO) -> None:
        self._read = stream.read
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        data = self._read(size)
        self.count += len(data)
        return data


def other_compression(layer: Descriptor, found: Compression) -> str:
    """The warning about a blob whose media type names another compression than its bytes have."""
    what = "are not compressed" if found is Compression.NONE else f"are {found}"
    return f"bytes of layer {layer.digest} {what}, its media type is {layer.media_type}"


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
