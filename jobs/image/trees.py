"""The tree of an image, read from its layers; nothing is unpacked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import BinaryIO, cast

from layerfarm.jobs.compress.decompress import PieceReader, decompress
from layerfarm.jobs.errors import DigestMismatch
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.layer.stack import Read, Stack, read_members
from layerfarm.jobs.store import Descriptor, Layout
from layerfarm.jobs.store.verify import hasher

Advanced = Callable[[int], None]


def unheard(nbytes: int) -> None:
    """For those who want to know nothing of progress."""


def stack_of(layout: Layout, image: Resolved, advanced: Advanced = unheard) -> Stack:
    """The tree of an image. Every blob is verified by its digest, every tar stream by its diff_id.

    ``advanced`` is told the compressed bytes as they are read.

    Raises:
        BlobNotFound, DigestMismatch, SizeMismatch: the image is incomplete or corrupt.
        LayerError, LimitExceeded: a layer cannot be applied.
    """
    return Stack.of(read_layer(layout, layer, diff_id, advanced) for layer, diff_id in image.layers)


def stacks_of(
    layout_old: Layout, old: Resolved, layout_new: Layout, new: Resolved, advanced: Advanced = unheard
) -> tuple[Stack, Stack]:
    """The trees of two images, of which the lowest layers may be the same: those are read once.

    Raises as :func:`stack_of`.
    """
    before, after = Stack(), Stack()
    common = 0
    for layer_old, layer_new in zip(old.layers, new.layers, strict=False):
        if (layer_old[0].digest, layer_old[1]) != (layer_new[0].digest, layer_new[1]):
            break
        reads = list(read_layer(layout_new, *layer_new, advanced))
        before.apply_read(reads)
        after.apply_read(reads)
        common += 1
    for stack, layout, image in ((before, layout_old, old), (after, layout_new, new)):
        for layer, diff_id in image.layers[common:]:
            stack.apply_read(read_layer(layout, layer, diff_id, advanced))
    return before, after


def read_layer(
    layout: Layout, layer: Descriptor, diff_id: str, advanced: Advanced = unheard, *, hash_content: bool = True
) -> Iterator[Read]:
    """The members of one layer, with the digests of their content if wanted. Raises as :func:`stack_of`."""
    with opened_layer(layout, layer, diff_id, advanced) as stream:
        yield from read_members(stream, hash_content=hash_content)


@contextmanager
def opened_layer(layout: Layout, layer: Descriptor, diff_id: str, advanced: Advanced = unheard) -> Iterator[BinaryIO]:
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
