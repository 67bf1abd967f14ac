"""The content of files of several layers, in any order, though each layer is read once and from its beginning."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from layerfarm.jobs.errors import MalformedLayer
from layerfarm.jobs.layer.stack import Source, expanded
from layerfarm.jobs.limits import limits
from layerfarm.jobs.tar.reader import MemberReader

_PIECE: Final = 1 << 20
_MOST_OPEN: Final = 4
"""Layers that are read side by side: each takes a thread and some MB."""

OpenLayer = Callable[[int], AbstractContextManager[BinaryIO]]
"""Opens the raw tar of a layer by its number in the stack, 1 for the lowest."""


class Contents:
    """A context manager. What comes in its layer before it is asked for waits in an unnamed file.

    That is little: the largest layers are read side by side, and most builders write a layer in the order of a walk.
    """

    def __init__(self, sources: Iterable[Source], open_layer: OpenLayer, scratch: Path | None) -> None:
        """``sources``: the files that will be asked for, each once; ``scratch``: the directory for the unnamed file."""
        self._wanted: dict[int, dict[int, int]] = {}
        for source in sources:
            self._wanted.setdefault(source.layer, {})[source.ordinal] = source.member.size
        self._open_layer = open_layer
        self._scratch = scratch
        self._opened = ExitStack()
        self._layers: dict[int, _Layer] = {}

    def __enter__(self) -> Contents:
        with ExitStack() as opened:
            spool = _Spool(opened.enter_context(tempfile.TemporaryFile(dir=self._scratch, buffering=0)))
            by_size = sorted(self._wanted, key=lambda layer: (-sum(self._wanted[layer].values()), layer))
            for number in by_size[_MOST_OPEN:]:
                with self._open_layer(number) as stream:
                    self._layers[number] = layer = _Layer(number, stream, self._wanted[number], spool)
                    layer.spool_rest()
            for number in by_size[:_MOST_OPEN]:
                stream = opened.enter_context(self._open_layer(number))
                self._layers[number] = _Layer(number, stream, self._wanted[number], spool)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, traceback)

    def of(self, source: Source) -> Iterator[bytes | memoryview]:
        """The content of a file as it reads, zeros where it has holes; pieces are valid until the next one.

        Raises (while iterating):
            LayerError, LimitExceeded: as reading the layer.
        """
        return self._layers[source.layer].content(source.ordinal)


class _Layer:
    """One layer, as far as it has been read."""

    def __init__(self, number: int, stream: BinaryIO, wanted: Mapping[int, int], spool: _Spool) -> None:
        self._number = number
        self._reader = MemberReader(stream, limits())
        self._members = enumerate(self._reader)
        self._wanted = wanted
        self._spool = spool
        self._waiting: dict[int, tuple[int, int]] = {}

    def content(self, ordinal: int) -> Iterator[bytes | memoryview]:
        if ordinal in self._waiting:
            yield from self._spool.read(*self._waiting.pop(ordinal))
            return
        for at, member in self._members:
            if at == ordinal:
                yield from expanded(self._reader, member)
                return
            if at in self._wanted:
                self._waiting[at] = self._spool.write(expanded(self._reader, member))
        raise MalformedLayer(f"layer {self._number} is not the one that was read before")

    def spool_rest(self) -> None:
        for at, member in self._members:
            if at in self._wanted:
                self._waiting[at] = self._spool.write(expanded(self._reader, member))


class _Spool:
    def __init__(self, file: BinaryIO) -> None:
        self._fd = file.fileno()
        self._end = 0

    def write(self, pieces: Iterable[bytes | memoryview]) -> tuple[int, int]:
        """Append; returns the offset and the size. The hole of a sparse file is one here, too."""
        begin = self._end
        for piece in pieces:
            if isinstance(piece, bytes):  # of a hole: content comes as views of what was read
                self._end += len(piece)
                os.ftruncate(self._fd, self._end)
                continue
            view = piece
            while view:
                written = os.pwrite(self._fd, view, self._end)
                self._end += written
                view = view[written:]
        return begin, self._end - begin

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        end = offset + size
        while offset < end:
            piece = os.pread(self._fd, min(_PIECE, end - offset), offset)
            offset += len(piece)
            yield piece
