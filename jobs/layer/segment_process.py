"""The process that generates segments of a layer's tar for :mod:`layerfarm.jobs.layer.segments`."""

from __future__ import annotations

import mmap
import os
import pickle
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from layerfarm.jobs.compress.codecs import Blocks
from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.fs import DirectoryCache, Widened
from layerfarm.jobs.helpers import forked
from layerfarm.jobs.layer.generate import GenerateOptions, TarBuilder
from layerfarm.jobs.layer.segments import SLOT, SLOTS, Answer

_SMALL: Final = 64 << 10
"""Largest file of a segment, in bytes. The caller reads a larger one in little more time than copying it takes."""


class _LeftToCaller(Exception):
    """The entry cannot be written here."""


class _Slot(Blocks):
    """Collects the pieces of a segment in shared memory."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self.used = 0

    def put(self, data: bytes | memoryview) -> Sequence[bytes]:
        end = self.used + len(data)
        if end > SLOT:
            raise _LeftToCaller
        self._memory[self.used : end] = data
        self.used = end
        return ()

    def read(self, fd: int, size: int) -> tuple[int, Sequence[bytes]]:
        if self.used + size > SLOT:
            raise _LeftToCaller
        count = os.readv(fd, [self._memory[self.used : self.used + size]])
        self.used += count
        return count, ()


class _SegmentBuilder(TarBuilder):
    """Builds the entries that are small and depend on no other entry."""

    def __init__(self, options: GenerateOptions, slot: _Slot) -> None:
        super().__init__(replace(options, warn=_leave), slot)
        self._slot = slot

    def segment(self, batch: list[bytes], directories: DirectoryCache) -> Answer:
        """Write the entries of ``batch`` into the slot, without those that fail."""
        slot = self._slot
        left = []
        for position, key in enumerate(batch):
            before, content = slot.used, self._unreported
            try:
                for _ in self.of_key(key, directories, None):
                    pass
            except (_LeftToCaller, LayerfarmError, OSError):
                slot.used, self._unreported = before, content
                left.append((position, before))
        return Answer([*left, (len(batch), slot.used)], self._unreported)

    def entry(self, directory: int, base: bytes, found: os.stat_result, name: bytes) -> Iterator[bytes]:
        kind = stat.S_IFMT(found.st_mode)
        if (found.st_nlink > 1 and kind != stat.S_IFDIR) or (found.st_size > _SMALL and kind == stat.S_IFREG):
            raise _LeftToCaller
        return super().entry(directory, base, found, name)


def _leave(warning: str) -> None:
    raise _LeftToCaller


def _main(root: int, memory: int, *connections: int) -> None:
    forked(connections, lambda number, connection: _serve(root, memory, number * SLOTS, connection))


def _serve(root: int, memory: int, first: int, connection: int) -> None:
    """Generate the segments that are requested, into the slots from the ``first`` on."""
    # The caller widens modes and restores them. Two processes would record each other's widened modes.
    Widened.forbid()
    shared = memoryview(mmap.mmap(memory, 0))
    with open(connection, "rb", closefd=False) as requests, DirectoryCache(root) as directories:
        options = pickle.load(requests)
        while True:
            try:
                slot, batch = pickle.load(requests)
            except EOFError:  # the caller has ended
                return
            place = (first + slot) * SLOT
            answer = _SegmentBuilder(options, _Slot(shared[place : place + SLOT])).segment(batch, directories)
            os.write(connection, pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
