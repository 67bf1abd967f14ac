"""The HTTP endpoints: notifications, health and metrics."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from layerfarm.jobs.errors import LayerfarmError, LimitExceeded
from layerfarm.worker.catalog.serve.authentication import SIGNED, has_token, is_signed
from layerfarm.worker.catalog.serve.keeper import RESULTS, Keeper
from layerfarm.worker.catalog.serve.metrics import ServeMetrics
from layerfarm.worker.catalog.serve.notifications import parse
from layerfarm.worker.catalog.serve.times import Times

LARGEST: Final = 1 << 20
"""Maximum number of bytes of a notification."""
_STATUS: Final = {
    "accepted": 202,
    "malformed": 400,
    "unauthorized": 401,
    "unknown": 404,
    "slow": 408,
    "too large": 413,
    "unavailable": 503,
}
_log = structlog.get_logger()


class _Refused(Exception):
    """The request is refused.

    Parameters:
        result: a key of :data:`_STATUS`.
        message: why, for the person who set up the registry.
    """

    def __init__(self, result: str, message: str | None = None) -> None:
        super().__init__(result)
        self.result = result
        self.message = message


def make_app(
    keepers: Sequence[Keeper],
    secrets: Mapping[str, tuple[bytes, ...]],
    metrics: ServeMetrics,
    stop: asyncio.Event,
    times: Times,
) -> Starlette:
    """Return the application. ``secrets``: by kind of registry; a kind without one is not served."""

    async def notified(request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in secrets:
            return _answer("unknown")
        try:
            events = await _accepted(kind, request)
        except _Refused as refused:
            metrics.notifications.labels(kind, refused.result).inc()
            return _answer(refused.result, message=refused.message)
        metrics.notifications.labels(kind, "accepted").inc()
        for name, number in events.items():
            metrics.events.labels(kind, name).inc(number)
        return _answer("accepted", **events)

    async def _accepted(kind: str, request: Request) -> Counter[str]:
        if stop.is_set():
            raise _Refused("unavailable")
        token = request.query_params.get("token", "")
        if kind != SIGNED and not has_token(kind, secrets[kind], request.headers, token):
            raise _Refused("unauthorized")
        body = await _body(request, times.body)
        if kind == SIGNED and not is_signed(secrets[kind], request.headers, body):
            raise _Refused("unauthorized")
        try:
            notification = parse(kind, request.headers, body)
        except LimitExceeded as error:
            raise _Refused("too large", error.what) from error
        except LayerfarmError as error:
            raise _Refused("malformed", error.what) from error
        try:
            found = [await keeper.accept(notification.events) for keeper in keepers]
        except LayerfarmError as error:
            _log.error("notification cannot be recorded", error=str(error))
            raise _Refused("unavailable") from error
        return _total(found) + Counter(ignored=notification.ignored)

    async def healthy(request: Request) -> Response:
        well = not stop.is_set() and all(keeper.is_healthy for keeper in keepers)
        return JSONResponse({"status": "ok" if well else "unavailable"}, 200 if well else 503)

    async def measured(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(
        routes=[
            Route("/notifications/{kind}", notified, methods=["POST"]),
            Route("/healthz", healthy),
            Route("/metrics", measured),
        ]
    )


async def _body(request: Request, seconds: float) -> bytes:
    """Read the body, not more than :data:`LARGEST` bytes and not longer than ``seconds``."""
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > LARGEST:
        raise _Refused("too large")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > LARGEST:
                    raise _Refused("too large")
    except (TimeoutError, ClientDisconnect) as error:
        raise _Refused("slow") from error
    return bytes(body)


def _total(found: Sequence[Sequence[str]]) -> Counter[str]:
    """Count the events by result; ``found``: by catalog. An event that one of them takes is accepted."""
    return Counter(min(each, key=RESULTS.index) for each in zip(*found, strict=True))


def _answer(result: str, **details: int | str | None) -> Response:
    named = {name: detail for name, detail in details.items() if detail is not None}
    return JSONResponse({"result": result, **named}, _STATUS[result])
