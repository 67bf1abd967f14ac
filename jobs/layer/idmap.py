"""User and group id maps between container and host (runtime-spec "User namespace mappings")."""

from __future__ import annotations

from typing import Final, NamedTuple

from layerfarm.jobs.errors import RequestError, UnmappedId

HIGHEST_ID: Final = 0xFFFFFFFE
"""The highest uid or gid; 0xFFFFFFFF means "leave as it is" to chown(2) and is nobody's."""


class IdRange(NamedTuple):
    """``size`` ids: ``container`` and following inside are ``host`` and following outside."""

    container: int
    host: int
    size: int


class IdMap(NamedTuple):
    """Ranges, the first that holds an id counts. No ranges: every id is itself."""

    ranges: tuple[IdRange, ...] = ()

    @classmethod
    def of(cls, *rows: tuple[int, int, int]) -> IdMap:
        """From rows ``(container, host, size)``.

        Raises:
            RequestError: a row is empty or leaves the range of ids.
        """
        for container, host, size in rows:
            if container < 0 or host < 0 or size < 1 or max(container, host) + size - 1 > HIGHEST_ID:
                raise RequestError("id mapping is out of range", where=f"{container}:{host}:{size}")
        return cls(tuple(IdRange(*row) for row in rows))

    def to_host(self, container: int) -> int:
        """The host's id for an id of the container.

        Raises:
            UnmappedId: no range holds it.
        """
        if not self.ranges:
            return container
        for inside, outside, size in self.ranges:
            if 0 <= container - inside < size:
                return container - inside + outside
        raise UnmappedId(f"container id {container} cannot be mapped", hint="extend the --uid-map or --gid-map")

    def to_container(self, host: int) -> int:
        """The container's id for an id of the host.

        Raises:
            UnmappedId: no range holds it.
        """
        if not self.ranges:
            return host
        for inside, outside, size in self.ranges:
            if 0 <= host - outside < size:
                return host - outside + inside
        raise UnmappedId(f"host id {host} cannot be mapped", hint="extend the --uid-map or --gid-map")
