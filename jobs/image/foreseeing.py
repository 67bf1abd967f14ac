"""Looking at the upper layers of an image while the lower ones are already being applied."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import BinaryIO, Final, cast

from layerfarm.jobs.compress.decompress import decompress
from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.image.resolve import Resolved
from layerfarm.jobs.layer.foresight import Foresight
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.store import Descriptor, Layout

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
