"""Serve catalogs: uvicorn with bounded connections, and a keeper for each catalog."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from layerfarm.jobs.errors import CatalogError, RequestError
from layerfarm.worker.catalog.document import read_catalog
from layerfarm.worker.catalog.places import layout_at
from layerfarm.worker.catalog.serve.app import make_app
from layerfarm.worker.catalog.serve.keeper import Keeper
from layerfarm.worker.catalog.serve.metrics import ServeMetrics
from layerfarm.worker.catalog.serve.runner import Runner
from layerfarm.worker.catalog.serve.times import Times

CONNECTIONS: Final = 200
"""Maximum number of connections at a time; others are answered with 503."""
_GRACE: Final = 10
"""Seconds that requests have to end on a stop."""
_log = structlog.get_logger()


def serve(
    files: Sequence[Path],
    address: tuple[str, int],
    secrets: Mapping[str, tuple[bytes, ...]],
    runner: Runner,
    times: Times,
) -> None:
    """Serve the catalogs until SIGTERM or SIGINT; then end after the present image.

    Raises:
        RequestError: the address cannot be used, or there is nothing to do.
        LayerfarmError: a catalog cannot be read, or is served already.
    """
    metrics = ServeMetrics()
    with ExitStack() as stack:
        keepers = [_keeper(file, runner, metrics, times, stack) for file in files]
        if len({keeper.name for keeper in keepers}) < len(keepers):
            raise CatalogError("two catalog files have one name", hint="metrics and logs name catalogs by their files")
        if not secrets and not any(keeper.has_schedule for keeper in keepers):
            raise RequestError("nothing to serve", hint="give --secrets, or a schedule in the catalog file")
        listener = stack.enter_context(_listener(*address))
        asyncio.run(_serve(keepers, listener, secrets, metrics, times))


def _keeper(file: Path, runner: Runner, metrics: ServeMetrics, times: Times, stack: ExitStack) -> Keeper:
    file = file.absolute()
    keeper = Keeper(file, layout_at(Path(read_catalog(file).store)), runner, metrics, times)
    stack.callback(keeper.close)
    return keeper


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as error:
        raise RequestError(f"notifications cannot be served, {error.strerror}", where=f"{host}:{port}") from error


async def _serve(
    keepers: Sequence[Keeper],
    listener: socket.socket,
    secrets: Mapping[str, tuple[bytes, ...]],
    metrics: ServeMetrics,
    times: Times,
) -> None:
    stop = asyncio.Event()
    server = _Server(
        uvicorn.Config(
            make_app(keepers, secrets, metrics, stop, times),
            http=_one_request(times.connection),
            ws="none",
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            headers=[("connection", "close")],
            limit_concurrency=CONNECTIONS,
            backlog=CONNECTIONS,
            timeout_graceful_shutdown=_GRACE,
        )
    )

    def leave() -> None:
        _log.info("stopping")
        stop.set()
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, leave)
    host, port = listener.getsockname()[:2]
    _log.info("serving catalogs", catalogs=[keeper.name for keeper in keepers], host=host, port=port)
    # Local runs use all processors: one after the other.
    turn = asyncio.Semaphore(1)
    async with asyncio.TaskGroup() as group:
        for keeper in keepers:
            group.create_task(keeper.keep(stop, turn))
        group.create_task(server.serve(sockets=[listener]))
    _log.info("stopped")


class _Server(uvicorn.Server):
    """A server that leaves signals to :func:`_serve`: a stop is not a death by the signal."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _one_request(seconds: float) -> type[H11Protocol]:
    """Return a protocol that closes each connection after one request, and after ``seconds``.

    uvicorn has no limit on the time in which a client sends its headers.
    """

    class OneRequest(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._limit = self.loop.call_later(seconds, transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            self._limit.cancel()
            super().connection_lost(exc)

    return OneRequest
