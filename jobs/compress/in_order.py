"""Compress the parts of a stream in parallel, and yield them in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

Part = TypeVar("Part")
Result = TypeVar("Result")


def most_ahead(threads: int) -> int:
    """Return the number of parts that are compressed, or wait for it or for their turn, at most.

    A few parts per thread keep every thread busy and memory constant: an entry of many small files may take as long to
    read as four blocks to compress. The caller writes a part that is compressed only when so many have followed it, and
    many threads wait for the reader instead: they need no more than one part each, and some.
    """
    return min(4 * threads, threads + 16)


def in_order(function: Callable[[Part], Result], parts: Iterable[Part], threads: int, name: str) -> Iterator[Result]:
    """Yield ``map(function, parts)``, computed by this many threads, whose names begin with ``name``."""
    if threads == 1:
        yield from map(function, parts)
        return
    # Imported here: it costs 10 ms, which commands without compression save.
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    most = most_ahead(threads)
    try:
        ahead: deque[Future[Result]] = deque()
        for part in parts:
            ahead.append(pool.submit(function, part))
            if len(ahead) >= most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
