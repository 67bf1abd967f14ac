"""``make man``: JSON schemas of the requests and results of all kinds of jobs, and of a job's record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from layerfarm.jobs.flows import Flows
from layerfarm.worker.model import JobRecord

SCHEMAS: Final = Path(__file__).resolve().parents[1] / "docs/schemas"
OWN: Final = Flows()
"""The flows of layerfarm: a test may have registered others in this process."""


def schemas() -> Iterator[tuple[str, str]]:
    """Name and text of each file."""
    for kind in sorted(OWN):
        yield f"{kind}.request.json", _text(OWN[kind].request)
        yield f"{kind}.result.json", _text(OWN[kind].result)
    yield "job.json", _text(JobRecord)


def _text(model: type[BaseModel]) -> str:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(_without_prose(schema), indent=1) + "\n"


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
