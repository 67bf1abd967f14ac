"""``make man``: JSON schemas of requests and results, of what ``--json`` prints, and of a job's record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, TypeAdapter

from layerfarm.jobs.flows import Flows
from layerfarm.jobs.image import HistoryEntry
from layerfarm.jobs.store import Descriptor
from layerfarm.worker.catalog.report import Report
from layerfarm.worker.cli.delta_text import Difference
from layerfarm.worker.cli.validate_cmd import Validation
from layerfarm.worker.cli.verify_cmd import Verification
from layerfarm.worker.doctor import Finding
from layerfarm.worker.model import JobEvent, JobRecord
from layerfarm.worker.monitoring.snapshot import Snapshot
from layerfarm.worker.settings import Origin

SCHEMAS: Final = Path(__file__).resolve().parents[1] / "docs/schemas"
OWN: Final = Flows()
"""The flows of layerfarm: a test may have registered others in this process."""
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


class _Described(BaseModel):
    descriptor: Descriptor
    blob: dict[str, Any] | None = None
    """The stored document; absent for the config of an artifact that is not JSON."""


class _Step(HistoryEntry):
    layer: Descriptor | None
    diff_id: str


class _Stat(BaseModel):
    manifest: _Described
    config: _Described
    history: list[_Step] = []
    """Absent for artifacts."""


class Output(NamedTuple):
    """JSON that some commands print."""

    commands: tuple[str, ...]
    type: Any
    form: str


OUTPUTS: Final = {
    "job": Output(("jobs show", "jobs ls"), JobRecord, "one object; `jobs ls`: one a line"),
    "submit.output": Output(("submit",), JobEvent, "one object a line"),
    "top.output": Output(("top",), Snapshot, "one object"),
    "doctor.output": Output(("doctor",), list[Finding], "a list"),
    "catalog.output": Output(("catalog plan", "catalog run", "catalog report"), Report, "one object"),
    "stat.output": Output(("stat",), _Stat, "one object"),
    "diff.output": Output(("diff",), list[Difference], "a list"),
    "validate.output": Output(("validate",), Validation, "one object"),
    "verify.output": Output(("verify",), Verification, "one object"),
    "config-show.output": Output(("config show",), list[Origin], "a list"),
}
"""By the name of the schema. The commands of ``OF_JOBS`` print the result of their job."""
OF_JOBS: Final = {
    **{kind: kind for kind in ("build", "flatten", "rebase", "rechunk", "recompress", "repack", "squash", "strip")},
    "unpack": "unpack",
    "mtree": "manifest",
}
"""Commands that print a job's result with ``--json``, and the kind of the job."""


def schemas() -> Iterator[tuple[str, str]]:
    """Name and text of each file."""
    for kind in sorted(OWN):
        yield f"{kind}.request.json", _text(TypeAdapter(OWN[kind].request).json_schema())
        yield f"{kind}.result.json", _text(_open(TypeAdapter(OWN[kind].result).json_schema()))
    for name, output in OUTPUTS.items():
        yield f"{name}.json", _text(_open(TypeAdapter(output.type).json_schema(mode="serialization")))
    yield "submission.json", _text({"title": "Submission", "oneOf": [_submission(kind) for kind in sorted(OWN)]})


def _submission(kind: str) -> dict[str, Any]:
    """The document of ``submit``, for one kind of job."""
    return {
        "type": "object",
        "properties": {"kind": {"const": kind}, "request": {"$ref": f"{kind}.request.json"}},
        "required": ["kind", "request"],
        "additionalProperties": False,
    }


def _open(value: Any) -> Any:
    """Let outputs have more fields: later releases may add some."""
    if isinstance(value, list):
        return [_open(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {name: _open(each) for name, each in value.items() if (name, each) != ("additionalProperties", False)}


def _text(schema: dict[str, Any]) -> str:
    return json.dumps({"$schema": _DIALECT, **_without_prose(schema)}, indent=1) + "\n"


def _without_prose(value: Any) -> Any:
    """The same without docstrings, which change more often than fields do. A field may be called ``description``."""
    if isinstance(value, list):
        return [_without_prose(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = ((name, each) for name, each in value.items() if name != "description" or not isinstance(each, str))
    return {name: _without_prose(each) for name, each in kept}


def main() -> int:
    """Write all schemas again."""
    SCHEMAS.mkdir(exist_ok=True)
    for path in SCHEMAS.glob("*.json"):
        path.unlink()
    for name, text in schemas():
        (SCHEMAS / name).write_text(text)
    return 0


if __name__ == "__main__":
    main()
