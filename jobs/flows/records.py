"""What a flow knows of each image or layer: a file of the job, for its state goes through Redis (DESIGN law 3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, TypeAdapter

from layerfarm.jobs.flows.base import FileRef, WorkDirectory

RecordT = TypeVar("RecordT", bound=BaseModel)


def keep_records(work: WorkDirectory, name: str, records: Mapping[str, RecordT], kind: type[RecordT]) -> FileRef:
    """Write records by their keys, a digest say, into the file ``name`` of the work directory."""
    content = TypeAdapter(dict[str, kind]).dump_json(dict(records), by_alias=True)  # type: ignore[valid-type]

    def write(path: Path) -> None:
        path.write_bytes(content)

    return work.publish(name, write)


def read_records(work: WorkDirectory, file: FileRef | None, kind: type[RecordT]) -> dict[str, RecordT]:
    """The records, in the order in which they were written; none without a file.

    Raises:
        TreeChanged: the file is gone.
    """
    if file is None:
        return {}
    content = work.open(file).read_bytes()
    return TypeAdapter(dict[str, kind]).validate_json(content)  # type: ignore[valid-type]
