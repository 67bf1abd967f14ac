"""Addresses to listen at."""

from __future__ import annotations

from layerfarm.jobs.errors import RequestError


def host_and_port(listen: str, what: str) -> tuple[str, int]:
    """Parse ``HOST:PORT``; without a host, all addresses of the machine. ``what`` is served there.

    Raises:
        RequestError: it is not an address.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        hint = "HOST:PORT, or :PORT for all"
        raise RequestError(f"not an address to serve {what} at", where=listen[:100], hint=hint)
    return host.strip("[]") or "0.0.0.0", int(port)
